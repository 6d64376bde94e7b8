"""The kernel sources: CUDA C++ headers and Numba functions, installed as ``fcdense.kernels``.

Nothing in here imports fcdense. A source is read through
``importlib.resources.files("fcdense.kernels")``, which works from a checkout and from an installation alike.
"""
