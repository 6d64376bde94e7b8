"""The contract: every primitive a backend offers, declared once. A backend is one class that builds them.

Conventions. All operands live on the backend's device. Every result is written into an array that the caller passes
(`out`, `aux`, `db`, `loss`, `dz`); a primitive allocates nothing that outlives the call. Inputs may be strided,
read-only or of size 0; outputs are written whole and, unless a primitive says otherwise, share no memory with inputs.
Outputs are C-contiguous, except those of `map`, `copy` and `fill`, which may be strided.
Floating operands of one call have one dtype, and results are rounded to it; sums of 16-bit numbers run in float32.
NaN and infinities propagate.
Axes: B rows, I features in, O features out, K classes.

Mixed precision, on a backend that has it: where the other operands of `dense`, `dense_grad_input`, `dense_grad_weight`
and `act_grad` are of 16 bits (float16, bfloat16), the bias, `db` and the `out` of `dense_grad_weight` may be float32;
and where the operands of `map` are float32, outputs may be of 16 bits, each rounded once.

What changes from step to step lies in an array, never in a number handed to a primitive: the calls of one step can then
be recorded and made again (`fcdense.capture`). So `map` takes its scalars from an array as well, and `when` it applies;
dropout takes its stream from one.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from fcdense.activation import Activation
from fcdense.arena import Array, Buffers, Workspace
from fcdense.backends.replay import Call, CallList, Feed, Keep, Replay
from fcdense.errors import ContractError, DeviceError
from fcdense.program import Program

Mode = Literal["overwrite", "accumulate"]
"""What writing a gradient means: replace what is there, or add to it."""

Reduction = Literal["sum", "max", "min"]

ADDED_TO = {
    ("dense_grad_weight", "out"),
    ("dense_grad_input", "db"),
    ("act_grad", "db"),
    ("scatter_add_rows", "out"),
    ("next_stream", "state"),
}
"""Outputs that are added to where `mode` says so; a primitive that has no mode always adds."""


def primitive(function: Any) -> Any:
    """Mark a method as part of the contract; `Backend.primitives` lists them."""
    function.is_primitive = True
    return function


def uniform_stream(stream: np.ndarray[Any, Any]) -> np.random.Generator:
    """The random numbers of one dropout call: Philox 4x64 keyed by both words (Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=stream))


_drawing = threading.Lock()


def draw_stream(state: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """`Backend.next_stream` in host memory."""
    with _drawing:
        out[...] = state
        np.add(state[1:], 1, out=state[1:])


class Replayed(Protocol):
    """What a recorded step asks of those who keep numbers on the host, such as an optimizer's learning rate."""

    def before_replay(self) -> None:
        """Write what the replay is going to read. Raises `CaptureError` where the recorded calls no longer fit."""

    def after_replay(self) -> None:
        """Bring the host's numbers up to date."""

    def rounds(self, most: int) -> ReplayedRounds:
        """The same for up to `most` replays in a row."""


class ReplayedRounds(Protocol):
    """What those who keep numbers on the host do around `Replay.rounds`.

    Attributes
    ----------
    feeds, keeps
        What goes in and out at each round.
    go_on : Array or None
        Float64 of shape (), 0 after a round that changed nothing.
    """

    feeds: Sequence[Feed]
    keeps: Sequence[Keep]
    go_on: Array | None

    def before(self, count: int) -> int:
        """Write what the next `count` rounds are going to read, or fewer of them; how many, at least 1.

        Raises `CaptureError` where the recorded calls no longer fit.
        """

    def after(self, count: int) -> None:
        """Bring the host's numbers up to date after `count` rounds, none of which was refused."""


class _Pool(threading.local):
    """The workspace of each thread."""

    def __init__(self, backend: Backend) -> None:
        self.workspace = Workspace(backend)


class Backend(ABC):
    """One implementation of all primitives on one kind of device."""

    name: str
    is_host: bool = True
    """Whether its arrays are NumPy's."""
    mixed_precision: bool = True
    """Whether it has mixed precision."""
    cache: int = 1 << 20
    """Bytes that stay near what computes from one call to the next: in the L2 cache of a processor core."""

    def __init__(self) -> None:
        self._pool = _Pool(self)

    @property
    def is_recording(self) -> bool:
        """Whether calls of this thread are noted and not made, so that nothing can be read."""
        return False

    @property
    def unrecorded(self) -> Backend:
        """Itself; for a recording backend the one that computes, whose memory outlives a recording."""
        return self

    @property
    def workspace(self) -> Buffers:
        """Temporary buffers, a pool for each thread."""
        return self._pool.workspace

    def release(self) -> None:
        """Let go of the temporary buffers of this thread that nobody uses."""
        self._pool.workspace.release()

    @classmethod
    def primitives(cls) -> tuple[str, ...]:
        """Names of the primitives, in the order of their declaration."""
        return tuple(name for name, member in vars(Backend).items() if getattr(member, "is_primitive", False))

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined contents, aligned unless it is small. Raises `OutOfMemory` with the bytes asked for."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of zeros, aligned as that of `empty`."""
        array = self.empty(shape, dtype)
        self.fill(0.0, out=array)
        return array

    def broadcast_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        """`x` repeated to `shape`, in its own memory. Raises ValueError where the shapes do not fit."""
        return np.broadcast_to(x, shape)

    def view(
        self, base: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        """An array in the memory of the contiguous array `base`, from `offset` bytes on."""
        return np.ndarray(shape, dtype, base, offset, strides)

    @abstractmethod
    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """The device's array with the contents of a NumPy array (that array itself if the device uses host memory)."""

    def write(self, array: np.ndarray[Any, Any], *, out: Array) -> None:
        """Copy a NumPy array into one of the device, cast to its dtype; a C-contiguous `out` takes no more memory."""
        self.copy(self.from_host(array), out=out)

    def adopt(self, array: Array) -> Array:
        """A caller's CuPy array as one of this device, in the same memory; see `fcdense.cuda.driver.Driver.adopt`."""
        raise DeviceError(f"An array lies on a GPU, but it is used on {self.name}. Copy it first: cupy.asnumpy(array).")

    def hand_over(self, array: Array) -> Array:
        """An array of this device as one for the caller's own NumPy or CuPy, in the same memory."""
        return array

    @abstractmethod
    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A NumPy array with the contents of `array` (a view of it where host memory is the device's)."""

    def join(self, participant: Replayed) -> None:
        """Take part in the recording: `participant` is asked before and after each replay.

        A recording backend overrides it; called where `is_recording` holds.
        """
        raise ContractError(f"{self.name} does not record, so there is no recording that {participant!r} could join.")

    def hold_back(self, arrays: Sequence[Array], reason: str) -> None:
        """Refuse, for this reason, whatever else the step that is recorded does with `arrays`.

        A recording backend overrides it; called where `is_recording` holds.
        """
        raise ContractError(f"{self.name} does not record, so there is no recording that could refuse anything.")

    @property
    def implementation(self) -> str:
        """What runs the primitives, and why, for `fcdense.explain`."""
        return self.name

    def replay(self, calls: Sequence[Call], kept: Sequence[Array] = ()) -> Replay:
        """What runs recorded calls again, over the same arrays, with the same bits as one after another.

        Gradients that only the calls themselves read need not be written (`Replay.consumed`); `kept` are those that
        somebody reads afterwards.
        """
        return CallList(self, calls)

    # dense layers

    @primitive
    @abstractmethod
    def dense(
        self, x_bi: Array, w_io: Array, b_o: Array | None, act: Activation, *, out: Array, aux: Array | None = None
    ) -> None:
        """out_bo = f(x_bi @ w_io + b_o).

        `aux` (shape and dtype of `out`) receives f'(x_bi @ w_io + b_o); ask for it only when `act.aux` is
        "derivative". Where `act.aux` is "output" the backward pass reads `out` itself.
        """

    @primitive
    @abstractmethod
    def dense_grad_input(
        self,
        dz_bo: Array,
        w_io: Array,
        act: Activation,
        aux_bi: Array | None,
        *,
        out: Array,
        db: Array | None = None,
        mode: Mode = "overwrite",
    ) -> None:
        """out_bi = (dz_bo @ w_io.T) * f'_bi, and db_i = column sums of out.

        `act` and `aux_bi` are those of the layer below, so that its `act_grad` needs no pass of its own; pass the
        linear activation and None for the plain input gradient. `mode` speaks of `db`.
        """

    @primitive
    @abstractmethod
    def dense_grad_weight(self, x_bi: Array, dz_bo: Array, *, out: Array, mode: Mode = "overwrite") -> None:
        """out_io = x_bi.T @ dz_bo, or out_io += x_bi.T @ dz_bo."""

    @primitive
    @abstractmethod
    def act_grad(
        self,
        dy_bo: Array,
        aux_bo: Array | None,
        act: Activation,
        *,
        out: Array | None,
        db: Array | None = None,
        mode: Mode = "overwrite",
    ) -> None:
        """out_bo = dy_bo * f'_bo, and db_o = its column sums. `mode` speaks of `db`.

        `out` may be `dy_bo`; it may be None if the activation is linear and only the sums are wanted. `aux_bo` is what
        `act.aux` names: f(z), f'(z), or None for a linear activation.
        """

    # rows

    @primitive
    @abstractmethod
    def softmax(self, z_bk: Array, *, out: Array, log: bool = False) -> None:
        """Each row: exp(z - m) / sum exp(z - m), or z - m - log sum exp(z - m), with m the row's maximum."""

    @primitive
    @abstractmethod
    def softmax_xent(
        self,
        z_bk: Array,
        target: Array,
        weight_b: Array | None,
        scale: float,
        *,
        loss: Array,
        dz: Array | None = None,
    ) -> None:
        """Cross entropy after softmax, and its gradient, in one primitive.

        loss = scale * sum_b weight_b * sum_k t_bk * (logsumexp(z_b) - z_bk)
        dz_bk = scale * weight_b * (softmax(z_b)_k * sum_j t_bj - t_bk)

        `target` holds class numbers (int64, shape (B,)) or the t_bk themselves (dtype and shape of z, any
        non-negative rows). `loss` has shape (). `dz` may be `z_bk`. A term with t_bk = 0 contributes 0, also where
        z_bk is -inf. A class number outside of 0 ... K - 1 makes `loss` and its row of `dz` NaN.
        """

    # elementwise

    @primitive
    @abstractmethod
    def elementwise_loss(
        self,
        program: Program,
        prediction: Array,
        target: Array,
        weight: Array | None,
        scale: float,
        scalars: Sequence[float] = (),
        *,
        loss: Array,
        dz: Array | None = None,
    ) -> None:
        """loss = scale * sum weight * l(p, t) and dz = scale * weight * dl/dp, one pass.

        `program` has inputs (p, t), the scalars of the loss, and outputs (l, dl/dp). `weight` broadcasts against
        `prediction`; `target` has its shape. `loss` has shape ().
        """

    @primitive
    @abstractmethod
    def map(
        self,
        program: Program,
        inputs: Sequence[Array],
        scalars: Sequence[float] | Array = (),
        *,
        out: Sequence[Array],
        when: Array | None = None,
    ) -> None:
        """out_k = program_k(inputs, scalars), elementwise; inputs broadcast against the outputs, which have one shape.

        An output may be one of the inputs of the same shape: optimizers update parameters and slots in place.
        `scalars` are numbers, as a tuple or list or as a float64 vector; that of an array is read when the call runs.
        `when` is a float64 array of shape (): where it holds 0, the call changes nothing.
        """

    @primitive
    @abstractmethod
    def next_stream(self, state: Array, *, out: Array) -> None:
        """out = state, then state[1] += 1: a stream of random numbers that no other call is given.

        Both are uint64 of shape (2,): a key, and the number of the stream modulo 2^64. Calls from several threads get
        different streams.
        """

    @primitive
    @abstractmethod
    def dropout(self, x: Array, rate: float, stream: Array, *, out: Array) -> None:
        """out = x * mask / (1 - rate), mask drawn from `stream` alone: the same call masks the gradient.

        Each element is kept where a uniform number is >= rate. `stream` is what `next_stream` wrote. `out` may be `x`.
        """

    # arrays

    @primitive
    @abstractmethod
    def reduce(self, operation: Reduction, x: Array, axes: tuple[int, ...], *, out: Array) -> None:
        """out = sum, maximum or minimum of x over `axes`, which `out` lacks. NaN wins in max and min."""

    @primitive
    @abstractmethod
    def matmul(self, a: Array, b: Array, *, out: Array) -> None:
        """out = a @ b over the last two axes; leading axes broadcast."""

    @primitive
    @abstractmethod
    def copy(self, x: Array, *, out: Array) -> None:
        """out = x, broadcast and cast to the dtype of `out`. They may overlap: `out` receives what `x` held before."""

    @primitive
    @abstractmethod
    def fill(self, value: float, *, out: Array) -> None:
        """out = value, everywhere."""

    @primitive
    @abstractmethod
    def gather_rows(self, x: Array, index: Array, *, out: Array) -> None:
        """out[k] = x[index[k]]; `index` is int64, in range."""

    @primitive
    @abstractmethod
    def scatter_add_rows(self, x: Array, index: Array, *, out: Array) -> None:
        """out[index[k]] += x[k], in the order of k; the gradient of `gather_rows`."""

    @primitive
    @abstractmethod
    def norm2(self, x: Array, *, out: Array) -> None:
        """out = sum of the squares of all elements, float64, shape (); NaN or infinite when `x` holds such a value.

        Elements whose square would overflow their dtype are squared in float64; a sum beyond float64 is infinite.
        """
