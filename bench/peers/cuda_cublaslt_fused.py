"""cuBLASLt with bias, GELU and bias gradient inside of the product, by the fastest of the algorithms that it names.

Its GELU is the one with tanh, and what it keeps for the backward pass is the sum before it instead of the derivative.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from fcdense.backends import Device
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda.cublaslt_types import Epilogue, Operand
from fcdense.cuda.cublaslt_types import Product as Told
from fcdense.cuda.driver import Driver
from fcdense.errors import DeviceError, FcdenseError

from ..cases import Arrays, Case, Run
from ..families import TRIALS
from ..questions.products import Forward, InputGradient, Operands, Product, WeightGradient
from ..replays import Replays
from . import cuda_cublaslt

VERSIONS = cuda_cublaslt.VERSIONS
KINDS = (Product,)
ALGORITHMS = 8


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products of layers with `gelu_tanh`, and weight gradients of all layers."""
    return fused(cuda_cublaslt.DEVICE, case, data)


def fused(device: Device, case: Case, data: Arrays) -> Run | None:
    """The product by the library alone, on a GPU that has it."""
    backend = device.backend
    if not isinstance(case, Product) or not isinstance(backend, CudaBackend) or backend.driver.library is None:
        return None
    if case.activation != "gelu_tanh" and not isinstance(case, WeightGradient):
        return None
    driver, library = backend.driver, backend.driver.library
    sets = case.sets(device, data)
    products = [told(driver, case, on) for on in sets]
    if reason := library.refusal(products[0]):
        raise DeviceError(f"cuBLASLt {library.version} does not compute {products[0]}: {reason}.")
    algorithms = library.algorithms(products[0], ALGORITHMS)
    found = []
    for number, algorithm in enumerate(algorithms, 1):

        def launch(algorithm: Any = algorithm) -> None:
            for product in products:
                driver.enqueue(partial(library.run, product, algorithm=algorithm))

        with suppress(FcdenseError):  # one that the library names and cannot run
            replay = driver.record(launch)
            replay()
            found.append((min(driver.timed(replay) for _ in range(TRIALS)), number, replay))
    if not found:
        raise DeviceError(f"cuBLASLt {library.version} runs none of its {len(algorithms)} algorithms: {products[0]}.")
    _, number, replay = min(found, key=lambda one: one[0])
    return Replays(
        replay,
        lambda: case.outputs(device, sets[0]),
        note=f"algorithm {number} of {len(algorithms)}",
        timed=driver.timed,
        each=len(sets),
    )


def told(driver: Driver, case: Product, on: Operands) -> Told:
    """A product over these operands as the library is told it."""

    def operand(array: Any) -> Operand:
        (rows, columns), (row, column) = array.shape, (step // array.dtype.itemsize for step in array.strides)
        return Operand(driver.address(array), rows, columns, row, column, array.dtype)

    def line(array: Any) -> Operand:
        return operand(array.reshape(1, -1))

    if isinstance(case, Forward):
        x, w, y, b, z = (on[name] for name in ("x", "w", "y", "b", "slope"))  # z where we would keep f'(z)
        return Told(operand(x), operand(w), operand(y), Epilogue.GELU_AUX_BIAS, line(b), operand(z))
    if isinstance(case, InputGradient):
        dz, w, dx, db, z = (on[name] for name in ("dz", "w", "dx", "db", "z"))
        return Told(operand(dz), operand(w.T), operand(dx), Epilogue.DGELU_BGRAD, line(db), operand(z))
    return Told(operand(on["x"].T), operand(on["dz"]), operand(on["dw"]))
