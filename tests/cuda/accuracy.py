"""How near every activation and its derivative come to float64, on the processor and on a GPU alike."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from fcdense import activations, emit

NAMES = sorted(set(activations.names()) - {"softmax", "log_softmax"})
F32 = np.dtype(np.float32)


def computed(name: str, backend: Any, x: np.ndarray[Any, Any]) -> list[tuple[Any, Any]]:
    """The activation and its derivative: by the backend, and in float64."""
    program = activations.get(name).forward_with_derivative
    outs = tuple(backend.empty(x.shape, x.dtype) for _ in range(2))
    backend.map(program, (backend.from_host(x),), out=outs)
    with np.errstate(all="ignore"):
        exact = emit.apply(program, x.astype(np.float64))
    return [(backend.to_host(ours), theirs) for ours, theirs in zip(outs, exact, strict=True)]


def assert_accurate(name: str, backend: Any) -> None:
    """In float32: within 4 eps max(1, |f|), and NaN where it is."""
    x = np.concatenate([np.linspace(-9, 9, 241), [0.0, -0.0, 1e-30, -87.5, 88.5, np.nan]]).astype(F32)
    for ours, theirs in computed(name, backend, x):
        bound = 4 * np.finfo(np.float32).eps * np.maximum(1.0, np.abs(theirs)) + 1e-37
        with np.errstate(all="ignore"):
            wrong = ~(np.abs(ours - theirs) <= bound) & np.isfinite(theirs)
        assert not wrong.any(), f"{name} at {x[wrong]}: {ours[wrong]}, not {theirs[wrong]}"
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


def assert_as_good_as_bfloat16(name: str, backend: Any) -> None:
    """In bfloat16, by approximate functions: little more than half of the space between two numbers."""
    x = np.linspace(-9, 9, 241).astype(ml_dtypes.bfloat16)
    for ours, theirs in computed(name, backend, x):
        error = np.abs(ours.astype(np.float64) - theirs)
        assert (error <= 1.25 * 2.0**-8 * np.maximum(1.0, np.abs(theirs))).all(), f"{name}: {error.max()}"
