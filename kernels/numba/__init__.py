"""Kernels compiled by Numba: the CPU's (extra `numba`), and gpu_dense (extra `numba-cuda12` or `numba-cuda13`)."""
