"""Work for the emulation: a few calls of the CUDA backend each, over shapes that leave tiles and blocks half empty.

Each gives the arrays that it made, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from fcdense import activations
from fcdense.backends.base import Backend
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.replay import Feed, Keep
from fcdense.program import trace
from tests.backends.calls import contiguous
from tests.cuda.sums import DATA, Sums
from tests.emulation import EmulatedDriver

F32 = np.dtype(np.float32)
HostArray = np.ndarray[Any, Any]
TWICE = trace(lambda x: 2 * x, 1, name="twice")


def upload(backend: Backend, *arrays: HostArray) -> list[Any]:
    return [backend.from_host(array) for array in arrays]


def products(backend: CudaBackend) -> list[HostArray]:
    """Layers forward and back, over tiles that are not full and several blocks of the depth."""
    rng = np.random.default_rng(0)
    x, w, b, dz = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((70, 37), (37, 67), (67,), (70, 67)))
    x, w, b, dz = upload(backend, x, w, b, dz)
    out, dx, dw, db = (backend.empty(shape, F32) for shape in ((70, 67), (70, 37), (37, 67), (37,)))
    backend.dense(x, w, b, activations.relu, out=out)
    backend.dense_grad_input(dz, w, activations.relu, x, out=dx, db=db)
    backend.dense_grad_weight(x, dz, out=dw)
    return [backend.to_host(array) for array in (out, dx, dw, db)]


def rows(backend: CudaBackend) -> list[HostArray]:
    """Rows of a warp and of a block, and sums in parts."""
    rng = np.random.default_rng(1)
    results = []
    for shape in ((5, 70), (3, 1500)):
        z, t = rng.normal(size=shape).astype(np.float32), rng.integers(0, shape[1], shape[0])
        out, dz, loss = backend.empty(shape, F32), backend.empty(shape, F32), backend.empty((), F32)
        backend.softmax(*upload(backend, z), out=out)
        backend.softmax_xent(*upload(backend, z, t), None, 0.25, loss=loss, dz=dz)
        results += [backend.to_host(array) for array in (out, dz, loss)]
    x, sums, norm = rng.normal(size=(300, 40)).astype(np.float32), backend.empty((40,), F32), backend.empty((), F32)
    (x,) = upload(backend, x)
    backend.reduce("sum", x, (0,), out=sums)
    backend.reduce("max", x, (0, 1), out=norm)
    return [*results, backend.to_host(sums), backend.to_host(norm)]


KINDS = [(dtype, columns) for dtype in (ml_dtypes.bfloat16, np.float16, np.float32) for columns in (72, 67)]
"""What tensor cores multiply, with lines that may be read 16 bytes at a time, and with odd ones."""


def whole_numbers(dtype: Any, columns: int) -> list[HostArray]:
    """x, w, b and dz of a layer: five tiles and more of the depth, in two parts."""
    rng = np.random.default_rng(columns)
    return [
        rng.integers(-2, 3, shape).astype(dtype) for shape in ((70, 272), (272, columns), (columns,), (70, columns))
    ]


def layer(backend: CudaBackend, dtype: Any, columns: int, lay: Callable[..., Any] = contiguous) -> list[HostArray]:
    """It forward and back, with inputs that `lay` makes."""
    x, w, b, dz = (lay(array, backend) for array in whole_numbers(dtype, columns))
    outs = [backend.empty(shape, np.dtype(dtype)) for shape in ((70, columns), (70, 272), (272, columns), (272,))]
    backend.dense(x, w, b, activations.relu, out=outs[0])
    backend.dense_grad_input(dz, w, activations.relu, x, out=outs[1], db=outs[3])
    backend.dense_grad_weight(x, dz, out=outs[2])
    return [backend.to_host(array) for array in outs]


def many_sums(backend: CudaBackend) -> list[HostArray]:
    """Of more columns than a block has, in parts."""
    (x,) = upload(backend, np.random.default_rng(2).normal(size=(300, 260)).astype(np.float32))
    sums = backend.empty((260,), F32)
    backend.reduce("sum", x, (0,), out=sums)
    return [backend.to_host(sums)]


def cross_entropy(backend: CudaBackend) -> list[HostArray]:
    """Of rows of probabilities, with the gradient and without."""
    rng = np.random.default_rng(7)
    z, t = upload(backend, *(rng.random((5, 70)).astype(np.float32) for _ in range(2)))
    loss, alone, dz = backend.empty((), F32), backend.empty((), F32), backend.empty((5, 70), F32)
    backend.softmax_xent(z, t, None, 0.25, loss=alone)
    backend.softmax_xent(z, t, None, 0.25, loss=loss, dz=dz)
    return [backend.to_host(array) for array in (alone, loss, dz)]


def elements(backend: CudaBackend) -> list[HostArray]:
    """Programs, copies, dropout and rows by their numbers, of 91 numbers."""
    x, index, stream = upload(
        backend,
        np.random.default_rng(8).normal(size=(7, 13)).astype(np.float32),
        np.array([1, 6, 0, 0]),
        np.array([3, 4], np.uint64),
    )
    twice, turned, dropped, taken = (backend.empty(shape, F32) for shape in ((7, 13), (13, 7), (7, 13), (4, 13)))
    added = backend.zeros((7, 13), F32)
    backend.map(TWICE, (x,), out=(twice,))
    backend.copy(x.T, out=turned)
    backend.dropout(x, 0.5, stream, out=dropped)
    backend.gather_rows(x, index, out=taken)
    backend.scatter_add_rows(taken, index, out=added)
    return [backend.to_host(array) for array in (twice, turned, dropped, taken, added)]


def rounds(backend: CudaBackend) -> list[HostArray]:
    """Three steps in a row, which take their rows, some of them as numbers of another type, and leave their results."""
    sums = Sums(backend)
    results = [np.zeros((4, 2, 3), dtype) for dtype in (np.float64, np.float64, np.float32)]
    data, order, converted = backend.from_host(DATA), np.array([7, 2, 0, 9, 2, 2, 5, 5]), backend.zeros((2, 3), F32)
    batch = backend.zeros((2, 3), DATA.dtype)
    replay = sums.replay()
    replay._calls = [*replay._calls, sums.call("copy", (converted,), (batch,), x=batch, out=converted)]
    feeds = [Feed(data, order, sums.batch), Feed(data, order, batch)]
    run = replay.rounds(feeds, [*map(Keep, (sums.total, sums.batch, converted), results)])
    assert run is not None
    assert run(3) == 3
    return [*results]


def odd_lines(backend: CudaBackend) -> list[HostArray]:
    """A product on tensor cores of lines that are read number by number."""
    a, b = upload(backend, *whole_numbers(ml_dtypes.bfloat16, 67)[:2])
    out = backend.empty((70, 67), a.dtype)
    backend.matmul(a, b, out=out)
    return [backend.to_host(out)]


def added_parts(backend: CudaBackend) -> list[HostArray]:
    """A product of several tiles of rows, in two parts that are added to what is there."""
    rng = np.random.default_rng(9)
    x, dz, out = upload(
        backend, *(rng.integers(-2, 3, shape).astype(np.float16) for shape in ((272, 136), (272, 72), (136, 72)))
    )
    backend.dense_grad_weight(x, dz, out=out, mode="accumulate")
    return [backend.to_host(out)]


def tensor_cores(backend: CudaBackend) -> list[HostArray]:
    """Lines of float16 that are copied 16 bytes at a time."""
    return layer(backend, np.float16, 72)


WORK: dict[str, Callable[[CudaBackend], list[HostArray]]] = {
    "products": products,
    "rows": rows,
    "many sums": many_sums,
    "cross entropy": cross_entropy,
    "elements": elements,
    "rounds": rounds,
    "tensor cores": tensor_cores,
    "odd lines": odd_lines,
    "added parts": added_parts,
}


@cache
def undamaged(name: str) -> list[HostArray]:
    """What a work gives."""
    return WORK[name](CudaBackend(EmulatedDriver()))
