"""Dense networks on CPU and GPU, fused and without a framework."""

from fcdense import _checkout as _checkout  # by being imported it makes fcdense.kernels findable in a checkout

__version__ = "0.1.0"
