"""What losses refuse, and that the message names the first wrong row, its value and the cure."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fcdense import activations, losses, ops
from fcdense.errors import ArgumentError, DataError, DeviceError, DTypeError, ShapeError, UnknownNameError
from fcdense.tensor import Tensor, tensor

LOGITS = np.array([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3], [2.0, 1.0, 0.0], [-1.0, 3.0, 0.0]])
REGRESSION = [losses.mean_squared_error, losses.mean_absolute_error, losses.huber]


@pytest.mark.parametrize("loss", [*REGRESSION, losses.binary_cross_entropy_with_logits])
def test_one_trailing_axis_may_be_missing(loss):
    p, t = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.0, 1.0])
    expected = loss(tensor(p), t).item()
    assert loss(tensor(p[:, None]), t).item() == expected
    assert loss(tensor(p), t[:, None]).item() == expected
    assert loss(tensor(p[:, None]), [[1], [0], [1]]).item() == expected
    assert loss(tensor(p), tensor(t)).item() == expected


@pytest.mark.parametrize("loss", [*REGRESSION, losses.binary_cross_entropy_with_logits])
@pytest.mark.parametrize(
    ("prediction", "target"),
    [((3, 1), (1, 3)), ((3,), (1, 3)), ((1,), (3,)), ((3, 2), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1)), ((3,), (4,))],
)
def test_nothing_is_broadcast(loss, prediction, target):
    message = f"prediction has shape {prediction}, target {target}"
    with pytest.raises(ShapeError, match=re.escape(message)):
        loss(tensor(np.ones(prediction)), np.ones(target))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 1, 3, 7], DataError, r"target is 3 in row 2; 3 logits have the classes 0 to 2"),
        ([0, -1, 1, -2], DataError, r"target is -1 in row 1; .* pass it as ignore_index"),
        ([0.0, 1.0, 2.0, 1.0], DataError, r"0\.0 in row 0; class numbers are integers.*astype\('int64'\)"),
        ([0.0, 1.0, np.nan, 1.0], DataError, r"nan in row 2; class numbers are integers"),
        (["cat", "dog", "cat", "cow"], DTypeError, r"'cat' in row 0.*np\.unique"),
        (np.array([0, 1, None, 2], object), DTypeError, r"None in row 2"),
        ([0, 1, [0, 1, 0], 2], ShapeError, r"\[0, 1, 0\] in row 2.*class numbers in every row"),
        ([[1, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 1]], DataError, r"target is \[0, 2, 0\] in row 2; expected prob"),
        ([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], DataError, r"\[0, 0, 0\] in row 1"),
        (np.full((4, 3), np.nan), DataError, r"in row 0; expected probabilities"),
        ([[1.5, -0.5, 0.0]] * 4, DataError, r"\[1\.5, -0\.5, 0\.0\] in row 0"),
        (
            [0, 1, 2],
            ShapeError,
            r"shape \(3,\), the logits \(4, 3\).*\(4,\) or rows of probabilities \(4, 3\)",
        ),
        (np.zeros((4, 2)), ShapeError, r"target has shape \(4, 2\)"),
        (np.zeros((1, 4), int), ShapeError, r"target has shape \(1, 4\)"),
        (np.zeros(4, complex), DTypeError, "complex"),
    ],
)
def test_wrong_classes(target, error, message):
    with pytest.raises(error, match=message):
        losses.cross_entropy(tensor(LOGITS), target)


@pytest.mark.parametrize("kind", [list, tuple, np.uint8, np.uint64, np.int32, tensor, object])
def test_right_classes(kind):
    labels = [0, 2, 1, 1]
    given = kind(labels) if kind in (list, tuple, tensor) else np.array(labels, kind)
    expected = losses.cross_entropy(tensor(LOGITS), np.eye(3)[labels]).item()
    assert losses.cross_entropy(tensor(LOGITS), given).item() == pytest.approx(expected, rel=1e-15)


def test_ignored_class_does_not_hide_others():
    with pytest.raises(DataError, match="-2 in row 3"):
        losses.cross_entropy(tensor(LOGITS), [-1, 0, -1, -2], ignore_index=-1)
    with pytest.raises(ArgumentError, match="sample_weight=0"):
        losses.cross_entropy(tensor(LOGITS), np.eye(3)[[0, 1, 2, 2]], ignore_index=-1)
    for wrong in (1.0, True, "0"):
        with pytest.raises(ArgumentError, match="ignore_index is"):
            losses.cross_entropy(tensor(LOGITS), [0, 1, 2, 0], ignore_index=wrong)


@pytest.mark.parametrize("target", [[0, 1, 2], [0.0, -0.1, 1.0], [1.0, np.nan, 0.5]])
def test_binary_targets_are_probabilities(target):
    row = 2 if target[2] == 2 else 1
    with pytest.raises(DataError, match=rf"in row {row}; expected a probability"):
        losses.binary_cross_entropy_with_logits(tensor([0.0, 1.0, 2.0]), target)
    assert losses.binary_cross_entropy_with_logits(tensor([0.0]), [True]).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 2.0], ShapeError, r"shape \(2,\), expected one for each row: \(4,\)"),
        (2.0, ShapeError, r"shape \(\)"),
        (np.ones((4, 2)), ShapeError, r"shape \(4, 2\)"),
        ([0.0, 0.0, 0.0, 0.0], DataError, "0 in every row"),
        ([1.0, -1.0, 1.0, 1.0], DataError, r"sample_weight is -1\.0 in row 1"),
        ([1.0, 1.0, np.nan, 1.0], DataError, "nan in row 2"),
        ([np.inf, 1.0, 1.0, 1.0], DataError, "inf in row 0"),
        (["a", "b", "c", "d"], DTypeError, "sample_weight has dtype"),
    ],
)
@pytest.mark.parametrize("loss", [losses.mse, losses.cross_entropy])
def test_wrong_weights(loss, weights, error, message):
    target = [0, 1, 2, 0] if loss is losses.cross_entropy else LOGITS
    with pytest.raises(error, match=message):
        loss(tensor(LOGITS), target, weights)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 2.0], ShapeError, r"class_weight has shape \(2,\), expected one weight for each class: \(3,\)"),
        ({3: 1.0}, ArgumentError, "class 3; the 3 classes are 0 to 2"),
        ({"cat": 1.0}, ArgumentError, "'cat'"),
        ({0: -1.0}, DataError, r"class_weight is -1\.0 in row 0"),
        ([1.0, np.nan, 1.0], DataError, "nan in row 1"),
    ],
)
def test_wrong_class_weights(weights, error, message):
    with pytest.raises(error, match=message):
        losses.cross_entropy(tensor(LOGITS), [0, 1, 2, 0], class_weight=weights)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, np.nan, "0.1"])
def test_wrong_smoothing(smoothing):
    with pytest.raises(ArgumentError, match=r"label_smoothing is .* from 0 to 1"):
        losses.cross_entropy(tensor(LOGITS), [0, 1, 2, 0], label_smoothing=smoothing)


def test_wrong_predictions():
    with pytest.raises(ArgumentError, match=r"prediction is ndarray.*fc\.tensor"):
        losses.mse(LOGITS, LOGITS)
    with pytest.raises(DTypeError, match="int64, expected floats"):
        losses.mse(tensor([1, 2]), [1.0, 2.0])
    with pytest.raises(ShapeError, match=r"K >= 2.*binary_cross_entropy_with_logits"):
        losses.cross_entropy(tensor(LOGITS[:, :1]), [0, 0, 0, 0])
    for loss, target in ((losses.mse, np.ones((0, 3))), (losses.cross_entropy, np.ones(0, int))):
        with pytest.raises(ShapeError, match=r"\(0, 3\) is empty"):
            loss(tensor(np.ones((0, 3))), target)
    with pytest.raises(DeviceError, match=r"target\.to\('cpu'\)"):
        losses.mse(tensor(LOGITS, device="cpu"), tensor(LOGITS, device="reference"))


def layer(activation: str) -> Tensor:
    """The output of a dense layer, recorded."""
    return ops.dense(tensor(LOGITS), tensor(np.ones((3, 2)), requires_grad=True), None, activations.get(activation))


CURE = "the prediction is the result of a {} already. Give the layer no activation: {} takes logits"


@pytest.mark.parametrize("view", [lambda y: y, lambda y: y.reshape(8, 1).reshape(4, 2), lambda y: y[:, :]])
def test_probabilities_are_refused_where_logits_belong(view):
    z = layer("linear")
    for activated, name in (
        (ops.softmax(z), "softmax"),
        (layer("sigmoid"), "sigmoid"),
        (activations.get("sigmoid")(z), "sigmoid"),
    ):
        with pytest.raises(ArgumentError, match=CURE.format(name, "cross_entropy")):
            losses.cross_entropy(view(activated), [0, 1, 1, 0])
        with pytest.raises(ArgumentError, match=CURE.format(name, "binary_cross_entropy_with_logits")):
            losses.binary_cross_entropy_with_logits(view(activated), np.ones((4, 2)))
        assert losses.mse(view(activated), np.ones((4, 2))).item() > 0
    assert losses.cross_entropy(view(layer("tanh")), [0, 1, 1, 0]).item() > 0


def test_errors_leave_nothing_recorded(rng):
    p = tensor(rng.standard_normal((3, 2)), requires_grad=True)
    with pytest.raises(DataError):
        losses.cross_entropy(p, [0, 1, 2])
    assert p.grad is None
    with pytest.raises(UnknownNameError, match="delta"):
        losses.huber(p, p.numpy(), detla=2.0)
    for delta in (0.0, -1.0, np.nan, np.inf, "1"):
        with pytest.raises(ArgumentError, match=r"huber: delta is .* > 0"):
            losses.huber(p, p.numpy(), delta=delta)
