"""A step on the emulated GPU that is made many times in a row, and the rows that it adds up."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Call
from fcdense.cuda.graph import GraphReplay
from fcdense.program import trace
from tests.emulation import EmulatedDriver

F64 = np.dtype(np.float64)
ADD = trace(lambda a, b: a + b, 2, name="add")
FINITE = trace(lambda x: (x - x == 0) * 1.0, 1, name="is_finite")
DATA = np.arange(30.0).reshape(10, 3)


class Sums:
    """total += batch, unless a number of the batch is not finite; `drawn` counts all rounds that begin."""

    def __init__(self, backend: CudaBackend | None = None) -> None:
        self.backend = backend = backend or CudaBackend(EmulatedDriver())
        self.batch, self.total, self.kept = (backend.zeros(shape, F64) for shape in ((2, 3), (2, 3), ()))
        self.largest, self.go_on = backend.zeros((), F64), backend.zeros((), F64)
        self.state, self.stream = (backend.zeros((2,), np.dtype(np.uint64)) for _ in range(2))

    def call(self, primitive: str, writes: tuple[Any, ...], reads: tuple[Any, ...], **arguments: Any) -> Call:
        return Call(primitive, arguments, reads, writes)

    def replay(self) -> GraphReplay:
        gate: dict[str, Any] = {"scalars": (), "when": None}
        calls = [
            self.call("next_stream", (self.stream, self.state), (), state=self.state, out=self.stream),
            self.call(
                "reduce", (self.largest,), (self.batch,), operation="sum", x=self.batch, axes=(0, 1), out=self.largest
            ),
            self.call(
                "map", (self.go_on,), (self.largest,), program=FINITE, inputs=(self.largest,), out=(self.go_on,), **gate
            ),
            self.call(
                "map", (self.total,), (self.total, self.batch, self.go_on), program=ADD,
                inputs=(self.total, self.batch), scalars=(), out=(self.total,), when=self.go_on,
            ),
            self.call(
                "map", (self.kept,), (self.kept, self.go_on), program=ADD, inputs=(self.kept, self.go_on),
                out=(self.kept,), **gate,
            ),
        ]  # fmt: skip
        return GraphReplay(self.backend, calls)
