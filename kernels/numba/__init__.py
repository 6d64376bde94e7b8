"""Kernels compiled by Numba: the CPU's, which need the extra `numba`, and gpu_dense, which needs `numba-cuda`."""
