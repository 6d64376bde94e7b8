"""The targets of arrays, all of which are looked at before anything is learned from any."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fcdense.arena import Array
from fcdense.conversion import is_on_gpu
from fcdense.data import Batch, DataLoader
from fcdense.errors import FcdenseError
from fcdense.losses import Loss
from fcdense.nn import Module
from fcdense.nn.input import device_of
from fcdense.targets import weights_by_class
from fcdense.tensor import Tensor, placed


class ArrayTargets:
    """The targets of all rows, where a loader knows its arrays; other sources show theirs batch by batch.

    Parameters
    ----------
    model : nn.Module
    loader : DataLoader
    class_weight : mapping or sequence, optional
        What `Trainer` was given: it looks at targets too.
    name : str
        Before an error, so that it says whose targets they are.
    whole : Batch, optional
        The arrays that the rows were taken from, to be looked at in their place: errors name the rows of these.
    also : ArrayTargets, optional
        Those of other rows, to be looked at as soon as these.
    """

    def __init__(
        self,
        model: Module,
        loader: DataLoader,
        class_weight: Any = None,
        *,
        name: str = "",
        whole: Batch | None = None,
        also: ArrayTargets | None = None,
    ) -> None:
        self._model = model
        arrays = loader.arrays
        self._y: Any = None if arrays is None else arrays.y
        whole = whole or arrays
        self._whole = whole if whole is not None and _each_counts(whole) else None
        self._class_weight = class_weight
        self._name = name
        self._also = also
        self._seen_by: Loss | None = None
        self._passed: Any = None

    def check(self, loss: Loss, batch: Batch, prediction: Any) -> None:
        """Refuse what `loss` would, given what the model made of the first batch of such rows.

        Rows of weight 0 may have any target, as long as no other row is in their batch: then the batches tell.

        Raises
        ------
        FcdenseError
            A target is wrong; the row in the message is that of the arrays.
        """
        if not isinstance(prediction, Tensor) or prediction.shape[:1] != (len(batch.x),):
            return  # which the loss refuses
        if self._whole is not None and loss is not self._seen_by and _are_alike(self._whole, batch):
            self._look(loss, self._whole.y, (len(self._whole.x), *prediction.shape[1:]))
            self._seen_by = loss
        # An axis as long as the batch may be of another length for other rows.
        if self._also is not None and len(batch.x) not in prediction.shape[1:]:
            self._also.check(loss, batch, prediction)

    def check_batches(self, loss: Loss, rest: tuple[int, ...]) -> None:
        """Refuse what `loss` would in any batch, where predictions have the shape (B, *rest): all of `on_host`."""
        self._look(loss, self._y, (len(self._y), *rest))

    def _look(self, loss: Loss, y: Any, shape: tuple[int, ...]) -> None:
        """At targets of predictions of a shape, once."""
        asked = loss, y.shape, shape
        if asked == self._passed:
            return
        check = loss.target_check
        try:
            if check is not None:
                check(y.shape, lambda: self._read(y), shape)
            if self._class_weight is not None:
                weights_by_class(self._class_weight, self._read(y), shape, None, loss.ignore_index)
        except FcdenseError as error:
            raise type(error)(f"{self._name}{error}") from None
        self._passed = asked

    def _read(self, y: Any) -> Array:
        return self.on_host if y is self._y else self._on_host(y)

    @cached_property
    def on_host(self) -> Array:
        """Those of the batches, on the host."""
        return self._on_host(self._y)

    def _on_host(self, y: Any) -> Array:
        return placed(y, device_of(self._model)).numpy() if is_on_gpu(y) else y


def _each_counts(arrays: Batch) -> bool:
    """Whether each row has a target, and none has weight 0."""
    return arrays.y is not None and (arrays.sample_weight is None or bool(arrays.sample_weight.all()))


def _are_alike(some: Batch, others: Batch) -> bool:
    """Whether rows and targets have the shape of others."""
    pairs = ((some.x, others.x), (some.y, others.y))
    return all(a is not None and b is not None and a.shape[1:] == b.shape[1:] for a, b in pairs)
