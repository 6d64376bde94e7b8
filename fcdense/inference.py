"""Running a trained model over many rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from fcdense import changes, nn, tape
from fcdense.backends import recording
from fcdense.capture import Captured
from fcdense.conversion import host_array, is_on_gpu
from fcdense.data import Batches, DataLoader
from fcdense.data.checks import as_count
from fcdense.errors import ArgumentError, CaptureError, ShapeError
from fcdense.log import logger
from fcdense.nn.input import device_of
from fcdense.precision import widened
from fcdense.recorded_step import Variant
from fcdense.tensor import Tensor, placed

Array = np.ndarray[Any, Any]

KEPT_SHAPES = 4
"""Shapes of rows for which a model's forward pass is kept as a recording, the last ones used."""

_holds: dict[nn.Module, tuple[int, bool]] = {}
"""Modules to go back to training: how many blocks keep them in evaluation mode, and whether captured steps were told.
"""

_switching = threading.RLock()
"""Held while modes change; a signal's handler may predict meanwhile."""


@np.errstate(all="ignore")
def predict(model: nn.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """The outputs of `model`, row by row, computed in evaluation mode.

    From the second array of one shape and dtype on, the forward pass is a replay (`fcdense.capture`), with the same
    bits; a model that cannot be captured is called each time. What its `forward` depends on beside attributes of its
    modules (globals, fields of other objects) is as it was then; where that changes, call ``model.eval()`` and the
    model itself inside of ``fcdense.no_grad()``.

    Parameters
    ----------
    model : nn.Module
        Returns one tensor. Its mode is the same afterwards.
    x : array (N, ..., I), or batches as `DataLoader` takes them (of which only x is used)
        N may be 0. What NaN and infinities do, the outputs show.
    batch_size : int
        Rows of an array in one call. It matters for memory and speed, and for the last bits of the result.

    Returns
    -------
    NumPy array (N, ..., O); a CuPy array where `x` is one
        Inside of `fcdense.use_precision` float32, however the layers multiply.

    Raises
    ------
    ArgumentError
        `model` is no module (of a `Trainer` it is ``trainer.model``) or returns no tensor; the batches are shuffled.
    ShapeError
        `x` is no array (N, ..., I), or the outputs are not one for each row.
    DeviceError
        `x` lies on a GPU, and the model elsewhere.
    """
    require_module(model, "predict")
    size = as_count("batch_size", batch_size)
    if not (isinstance(x, list | tuple) or hasattr(x, "__array__")):
        with evaluating(model), tape.no_grad():
            return np.concatenate([_on_host(_output(model(rows), rows)) for rows in _batches(x)])
    rows = placed(x, device_of(model), "x") if is_on_gpu(x) else host_array(x, "x")
    if rows.ndim < 2:
        raise ShapeError(f"x has shape {rows.shape}; expected rows of features (N, ..., I). A single row is x[None].")
    forwards = vars(model).get("_forwards")
    with tape.no_grad():
        if isinstance(forwards, Forwards) and forwards.is_settled:
            return _predicted(forwards, rows, size)
        with evaluating(model) as modules:
            forwards = forwards_of(model, modules)
            result = _predicted(forwards, rows, size)
        forwards.settle()
        return result


def _predicted(forwards: Forwards, rows: Any, size: int) -> Any:
    n = len(rows)
    parts = [rows] if n <= size else [rows[start : start + size] for start in range(0, n, size)]
    joined = _joined_there if isinstance(rows, Tensor) else _joined
    if not forwards.lock.acquire(blocking=False):  # another thread is in the buffers
        return joined(map(forwards.called, parts), n)
    try:
        return joined(map(forwards, parts), n)
    finally:
        forwards.lock.release()


def _joined(outputs: Iterator[Tensor], n: int) -> Array:
    """Outputs of `n` rows in all on the host, one after another; the next may overwrite the one before."""
    first = _on_host(next(outputs))
    if len(first) == n:
        return np.array(first)
    result = np.empty((n, *first.shape[1:]), first.dtype)
    at = len(first)
    result[:at] = first
    for output in outputs:
        result[at : at + len(output)] = _on_host(output)
        at += len(output)
    return result


def _joined_there(outputs: Iterator[Tensor], n: int) -> Any:
    """As `_joined`, in an array on their device that the caller may have."""
    result, at = None, 0
    for output in map(widened, outputs):
        backend = output.device.backend
        if result is None:
            result = backend.empty((n, *output.shape[1:]), output.dtype)
        backend.copy(output.array, out=result[at : at + len(output)])
        at += len(output)
    return backend.hand_over(result)


class Forwards:
    """The forward passes of one model that are recorded, by shape and dtype of the rows.

    The model owns it, as recordings hold the model; a copy of the model begins without any.
    """

    def __init__(self, model: nn.Module, modules: list[nn.Module]) -> None:
        self.lock = threading.Lock()
        self.modules = modules
        self.reason = ""
        self._model = model
        # Code of the user's own may depend on what is no attribute of a layer, so it is asked at every call.
        self._is_plain = all(nn.LAYERS.get(type(module).__name__) is type(module) for module in modules)
        self._kept: OrderedDict[Any, CapturedForward | None] = OrderedDict()
        self._settings = -1
        self._contents: list[tuple[Any, Any]] = []

    @property
    def is_settled(self) -> bool:
        """Whether all modules are known to be the same, without a walk through them."""
        return self._settings == changes.settings.number and all(now == then for now, then in self._contents)

    def settle(self) -> None:
        """Note the modules, as long as they stay like that."""
        if self._is_plain:
            values = (value for module in self.modules for value in list(vars(module).values()))
            self._contents = [(value, value.copy()) for value in values if type(value) in (list, dict)]
            self._settings = changes.settings.number

    def called(self, rows: Any) -> Tensor:
        """The output for `rows` of a call of the model."""
        with _held(self.modules, is_told=False):
            return _output(self._model(rows), rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return NoForwards, ()

    def __call__(self, rows: Any) -> Tensor:
        """The output for `rows`, an array of the host or a tensor; the next call may overwrite it."""
        if self.reason or not rows.size or recording.is_recording():
            return self.called(rows)
        key = rows.shape, rows.dtype
        if key not in self._kept:
            self._kept[key] = None
            if len(self._kept) > KEPT_SHAPES:
                self._kept.popitem(last=False)
            return self.called(rows)
        self._kept.move_to_end(key)
        captured = self._kept[key] or self._recorded(key, rows)
        if captured is None:
            return self.called(rows)
        try:
            if not self._is_plain:
                captured.look_again()
            return _output(captured(rows), rows)
        except CaptureError:  # parameters have moved
            del self._kept[key]
            return self.called(rows)

    def _recorded(self, key: Any, rows: Any) -> CapturedForward | None:
        captured = CapturedForward(self._model, self.modules)
        try:
            captured.record(rows if isinstance(rows, Tensor) else placed(rows, device_of(self._model)))
        except Exception as error:  # what is wrong without a recording too, the call itself will tell
            self.reason = str(error)
            logger.info("forward passes of %s are not captured: %s", type(self._model).__name__, error)
            return None
        self._kept[key] = captured
        return captured


class CapturedForward(Captured):
    """The forward pass of a model that is made of `modules`, in evaluation mode: recorded in it, and compared in it.

    A replay needs no mode, so that the modules are left alone while nothing was set.
    """

    def __init__(self, model: nn.Module, modules: list[nn.Module]) -> None:
        super().__init__(model)
        self._modules = modules

    def _fitting(self) -> Variant:
        with _held(self._modules, is_told=False):
            return super()._fitting()


class NoForwards:
    """What a copy of a model has in their place."""

    modules: ClassVar[list[nn.Module]] = []


def forwards_of(model: nn.Module, modules: list[nn.Module]) -> Forwards:
    """The recorded forward passes of a model that is made of `modules`; none if it was made of others before."""
    found = vars(model).get("_forwards")
    if isinstance(found, Forwards) and [*map(id, found.modules)] == [*map(id, modules)]:
        return found
    made = Forwards(model, modules)
    object.__setattr__(model, "_forwards", made)  # no setting of the model
    return made


def require_module(given: Any, who: str) -> None:
    """Raise `ArgumentError`, with the cure, where what was given as the model is no module."""
    if isinstance(given, nn.Module):
        return
    held = next((name for name in ("model", "__wrapped__") if isinstance(getattr(given, name, None), nn.Module)), "")
    if held == "model":
        cure = f"Pass its model: {type(given).__name__.lower()}.model."
    elif held:
        cure = "Pass the module that was captured."
    elif isinstance(given, type) and issubclass(given, nn.Module):
        cure = f"Pass an instance: {given.__name__}(...)."
    else:
        cure = f"Call {who}(model, x)."
    shown = given.__name__ if isinstance(given, type) else "None" if given is None else type(given).__name__
    raise ArgumentError(f"{who} got {shown} as the model; expected an nn.Module. {cure}")


def _output(result: Any, rows: Any) -> Tensor:
    if not isinstance(result, Tensor):
        raise ArgumentError(f"The model returned {type(result).__name__}; predict needs one tensor.")
    if not result.ndim or len(result) != len(rows):
        raise ShapeError(f"The model returned shape {result.shape} for {len(rows)} rows; predict needs one for each.")
    return result


def _on_host(output: Tensor) -> Array:
    return np.asarray(widened(output.numpy()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Evaluation mode inside the `with` block; afterwards each layer is in the mode in which it was.

    Gives the modules of the model.
    """
    modules = list(model.modules())
    with _held(modules, is_told=True):
        yield modules


@contextmanager
def _held(modules: Iterable[nn.Module], *, is_told: bool) -> Iterator[None]:
    """Keep `modules` in evaluation mode inside the `with` block; blocks of several threads may overlap.

    Captured steps are told of the change only where the block may replay some (`is_told`): they look at it then.
    """
    mine: list[nn.Module] = []
    try:
        with _switching:
            for module in modules:
                count, told = _holds.get(module, (0, False))
                if count or module.training:
                    _holds[module] = count + 1, told or is_told
                    mine.append(module)
                    object.__setattr__(module, "training", False)
            if mine and is_told:
                changes.settings.bump()
        yield
    finally:
        with _switching:
            was_told = [_released(module) for module in mine]
            if any(was_told):
                changes.settings.bump()


def _released(module: nn.Module) -> bool:
    """One block less that keeps the module; after the last one it is in training again. Whether others are told."""
    count, told = _holds.pop(module)
    if count > 1:
        _holds[module] = count - 1, told
        return False
    object.__setattr__(module, "training", True)
    return told


def _batches(x: Any) -> Iterator[Any]:
    """What `predict` calls the model with, of batches that somebody else makes."""
    source = x.source if isinstance(x, DataLoader) else x
    if isinstance(source, Batches) and source.shuffle:
        raise ArgumentError(
            "The batches are shuffled, so predictions could not be told apart; make them shuffle=False."
        )
    for batch in x if isinstance(x, DataLoader) else DataLoader(x):
        yield batch.x
