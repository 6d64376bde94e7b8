"""Products for the tests of cuBLASLt's binding, with what ought to come out, told row by row in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.cuda.cublaslt_types import Epilogue, Operand, Product
from tests.cuda.fake_cublaslt import R_16BF, R_16F, R_32F, R_64F, decode, encode

Array = np.ndarray[Any, Any]
KINDS = {"float32": R_32F, "float64": R_64F, "float16": R_16F, "bfloat16": R_16BF}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "tf32": 2.0**-10}
WORKSPACE, SIZE, STREAM = 1 << 20, 4 << 20, 0x5EED
"""No address that anybody may touch."""


class Placed:
    """A matrix in memory of its own, with `gap` numbers of NaN after each of its rows, or columns if transposed."""

    def __init__(self, values: Array, dtype: str, transposed: bool = False, gap: int = 0, shift: int = 0) -> None:
        self.kind, self.transposed = KINDS.get(dtype), transposed
        given = values.T if transposed else values
        stored = given.astype(np.uint8) if self.kind is None else encode(given, self.kind)
        count, self.length = stored.shape
        step = self.length + gap
        memory = np.full(count * step * stored.itemsize + 512, 0xFF, np.uint8)
        start = -memory.ctypes.data % 256 + shift
        self.lines = memory[start : start + count * step * stored.itemsize].view(stored.dtype).reshape(count, step)
        self.lines[:, : self.length] = stored
        strides = (1, step) if transposed else (step, 1)
        self.operand = Operand(self.lines.ctypes.data, *values.shape, *strides, dtype)

    @property
    def values(self) -> Array:
        stored = self.lines[:, : self.length]
        values = stored if self.kind is None else decode(stored, self.kind)
        return values.T if self.transposed else values

    @property
    def gaps_are_whole(self) -> bool:
        return bool((np.ascontiguousarray(self.lines[:, self.length :]).view(np.uint8) == 0xFF).all())


def gelu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def bits(mask: Array) -> Array:
    return np.packbits(mask, axis=1, bitorder="little")


class Case:
    """A product of random numbers with all that its epilogue needs, and what ought to come out."""

    def __init__(
        self,
        rng: np.random.Generator,
        epilogue: Epilogue = Epilogue.DEFAULT,
        dtype: str = "float32",
        out: str = "",
        transposed: tuple[bool, bool] = (False, False),
        shape: tuple[int, int, int] | None = None,
        gaps: bool = False,
        shift: int = 0,
        **options: Any,
    ) -> None:
        rows, depth, columns = shape or rng.integers(2, 36, 3)
        gap = lambda: int(rng.integers(1, 9)) if gaps else 0  # noqa: E731
        out = out or dtype
        self.a = Placed(rng.normal(size=(rows, depth)), dtype, transposed[0], gap(), shift)
        self.b = Placed(rng.normal(size=(depth, columns)), dtype, transposed[1], gap(), shift)
        held = rng.normal(size=(rows, columns)) if options.get("accumulate") else np.full((rows, columns), np.nan)
        self.out = Placed(held, out, False, gap(), shift)
        self.bias = self.aux = None
        length = rows if epilogue == Epilogue.ROW_SUMS_OF_A else columns
        if "BIAS" in epilogue.name:
            self.bias = Placed(rng.normal(size=(1, length)), out, shift=shift)
        elif "BGRAD" in epilogue.name or "SUMS" in epilogue.name:
            self.bias = Placed(np.full((1, length), np.nan), out, shift=shift)
        padding = lambda n, multiple: -n % multiple + multiple * gaps  # noqa: E731
        if epilogue.name.startswith(("RELU_AUX", "DRELU")):
            mask = bits(rng.random((rows, columns)) < 0.5)
            self.aux = Placed(mask, "uint8", gap=padding(mask.shape[1], 16))
        elif epilogue.name.startswith(("GELU_AUX", "DGELU")):
            self.aux = Placed(rng.normal(size=(rows, columns)), out, gap=padding(columns, 8))
        operands = [x and x.operand for x in (self.bias, self.aux)]
        self.product = Product(self.a.operand, self.b.operand, self.out.operand, epilogue, *operands, **options)
        self.expected = self._expected(epilogue.name)
        precision = max(EPSILON[out], EPSILON["tf32"] if options.get("tf32") else 0.0)
        self.bound = 8 * precision * (1 + (np.abs(self.a.values) @ np.abs(self.b.values)).max())

    def _expected(self, name: str) -> dict[str, Array]:
        a, b = self.a.values, self.b.values
        z = a @ b + (self.out.values if self.product.accumulate else 0)
        wanted = {}
        if "BIAS" in name:
            z = z + self.bias.values
        if name.startswith("RELU"):
            wanted = {"aux": bits(z > 0)}
            z = np.maximum(z, 0)
        if name.startswith("GELU"):
            wanted = {"aux": z}
            z = gelu(z)
        if name.startswith("DRELU"):
            z = z * np.unpackbits(self.aux.values, axis=1, bitorder="little")[:, : z.shape[1]]
        if name.startswith("DGELU"):
            z = z * gelu(self.aux.values + 1e-30j).imag / 1e-30  # the derivative, without a difference
        if "BGRAD" in name:
            wanted = {"bias": z.sum(0)[None]}
        if name == "COLUMN_SUMS_OF_B":
            wanted = {"bias": b.sum(0)[None]}
        if name == "ROW_SUMS_OF_A":
            wanted = {"bias": a.sum(1)[None]}
        return {"out": z} | (wanted if "AUX" in name or "bias" in wanted else {})

    def check(self) -> None:
        for name, wanted in self.expected.items():
            placed = getattr(self, name)
            bound = 0 if placed.kind is None else self.bound
            np.testing.assert_allclose(self._known(name), wanted, rtol=0, atol=bound, err_msg=f"{name}: {self.product}")
            assert placed.kind is None or placed.gaps_are_whole, name

    def _known(self, name: str) -> Array:
        """What was written, without the bits that stand for no column."""
        values = getattr(self, name).values
        if values.dtype != np.uint8:
            return values
        return bits(np.unpackbits(values, axis=1, bitorder="little")[:, : self.product.out.columns])
