"""The targets of arrays, all of which are looked at before anything is learned from any."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fcdense.arena import Array
from fcdense.conversion import is_on_gpu
from fcdense.data import Batch, Batches, DataLoader
from fcdense.errors import FcdenseError
from fcdense.losses import Loss
from fcdense.nn import Module
from fcdense.nn.input import device_of
from fcdense.tensor import Tensor, placed


class ArrayTargets:
    """The targets of all rows of `Batches`; nothing of other sources, which show theirs batch by batch.

    Parameters
    ----------
    model : nn.Module
    loader : DataLoader
    name : str
        Before an error, so that it says whose targets they are.
    also : ArrayTargets, optional
        Others, to be looked at as soon as these.
    """

    def __init__(self, model: Module, loader: DataLoader, name: str = "", *, also: ArrayTargets | None = None) -> None:
        self._model = model
        self._x: Any = None
        self._y: Any = None
        if isinstance(loader.source, Batches):
            self._x, self._y, _ = loader.source.arrays
        self._name = name
        self._also = also
        self._seen: Any = None

    def check(self, loss: Loss, batch: Batch, prediction: Any) -> None:
        """Refuse what `loss` would, given what the model made of a batch of such rows: once for a loss and a shape.

        Raises
        ------
        FcdenseError
            A target is wrong; the row in the message is that of the arrays.
        """
        if not isinstance(prediction, Tensor) or prediction.shape[:1] != (len(batch.x),):
            return  # which the loss refuses
        seen = loss, prediction.shape[1:]
        if self._y is not None and seen != self._seen and self._x.shape[1:] == batch.x.shape[1:]:
            self._look(loss, (len(self._x), *prediction.shape[1:]))
            self._seen = seen
        if self._also is not None:
            self._also.check(loss, batch, prediction)

    def _look(self, loss: Loss, shape: tuple[int, ...]) -> None:
        """At all of them, beside predictions of a shape."""
        check = loss.target_check
        if check is None:
            return
        try:
            check(self._y.shape, lambda: self.on_host, shape)
        except FcdenseError as error:
            raise type(error)(f"{self._name}{error}") from None

    @cached_property
    def on_host(self) -> Array:
        """All of them, on the host."""
        return placed(self._y, device_of(self._model)).numpy() if is_on_gpu(self._y) else self._y
