"""CuPy: its products (cuBLAS's gemmEx), without what a layer does to the sums, and its copy.

They are launched from Python, because CuPy refuses its products while a stream is captured.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any

import cupy

from fcdense.cuda import tuning
from fcdense.errors import DeviceError

from ..cases import Arrays, Case, Run
from ..questions.bandwidth import Pass
from ..questions.products import Forward, InputGradient, Product

VERSIONS = {"cupy": cupy.__version__}
KINDS = (Product, Pass)

if not cupy.cuda.is_available():
    raise DeviceError(f"CuPy {cupy.__version__} finds no GPU.")


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products and copies."""
    arrays = {name: cupy.asarray(array) for name, array in data.items()}
    if isinstance(case, Pass) and case.what == "copy":
        w, out = arrays["w"], cupy.empty_like(arrays["w"])
        return Run(partial(cupy.copyto, out, w), lambda: {"w": cupy.asnumpy(out[case.compared])}, synchronise)
    if not isinstance(case, Product):
        return None
    nbytes = sum(array.nbytes for array in arrays.values())
    copies = ({name: array.copy() for name, array in arrays.items()} for _ in range(tuning.in_turn(nbytes) - 1))
    sets = [arrays, *copies]
    in_turn = cycle([product(case, on) for on in sets])
    return Run(lambda: next(in_turn)(), dict, synchronise)


def product(case: Product, on: dict[str, Any]) -> partial[Any]:
    """The product over these operands, into an array of its own."""
    if isinstance(case, Forward):
        a, b = on["x"], on["w"]
    elif isinstance(case, InputGradient):
        a, b = on["dz"], on["w"].T
    else:
        a, b = on["x"].T, on["dz"]
    return partial(cupy.dot, a, b, out=cupy.empty((a.shape[0], b.shape[1]), a.dtype))


def synchronise() -> None:
    """Wait for the GPU."""
    cupy.cuda.Device().synchronize()
