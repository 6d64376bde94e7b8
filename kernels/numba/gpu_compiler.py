"""What compiles kernels in Python for GPUs: numba-cuda, where it is installed beside a NumPy that it works with."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

MISSING = (
    "GPU kernels in Python need the package numba-cuda: pip install 'numba-cuda[cu13]', or [cu12], as nvidia-smi names."
)


def refusal() -> str:
    """Why numba-cuda compiles nothing here; "" if it does. Asked without importing it."""
    if find_spec("numba_cuda") is None:
        return MISSING
    # Up to 0.30.4, after which NumPy is not followed any more, it takes np.row_stack before it compiles anything.
    if not hasattr(np, "row_stack"):
        return (
            f"numba-cuda compiles nothing beside NumPy {np.__version__}, which lacks what numba-cuda uses of it: "
            "pip install 'numpy<2.5'."
        )
    return ""
