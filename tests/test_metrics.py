"""Metrics against whole-array NumPy formulas and scikit-learn, under uneven batches and weights; NaN, ties, errors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fcdense import metrics
from fcdense.errors import ArgumentError, DataError, DTypeError, ShapeError, UnknownNameError

ROWS, CLASSES = 101, 7
SPLITS = {"whole": [], "ones": list(range(1, ROWS)), "uneven": [1, 3, 40, 40, 77, 100]}


def stream(metric, prediction, target, weights=None, cuts=()):
    """Return the result of `metric` over the rows split at `cuts`."""
    metric = metrics.get(metric)
    for rows in np.split(np.arange(len(prediction)), cuts):
        metric.update(prediction[rows], target[rows], None if weights is None else weights[rows])
    return metric.result()


@pytest.fixture(params=["float32", "float64"])
def classes(request):
    rng = np.random.default_rng(1)
    return rng.standard_normal((ROWS, CLASSES)).astype(request.param), rng.integers(0, CLASSES, ROWS)


@pytest.fixture
def values():
    rng = np.random.default_rng(2)
    target = rng.standard_normal((ROWS, 3)) * [1, 10, 0.1] + [0, 5, -3]
    return target + 0.3 * rng.standard_normal((ROWS, 3)), target


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def weights(request):
    drawn = np.random.default_rng(3).uniform(0, 2, ROWS)
    drawn[::5] = 0
    return drawn if request.param else None


def r2_formula(prediction, target, weights):
    """In exact rational arithmetic."""
    w = [Fraction(float(v)) for v in (np.ones(len(target)) if weights is None else weights)]
    scores = []
    for p, y in zip(prediction.T, target.T, strict=True):
        p, y = [Fraction(float(v)) for v in p], [Fraction(float(v)) for v in y]
        mean = sum(a * b for a, b in zip(w, y, strict=True)) / sum(w)
        residual = sum(a * (b - c) ** 2 for a, b, c in zip(w, y, p, strict=True))
        scores.append(1 - residual / sum(a * (b - mean) ** 2 for a, b in zip(w, y, strict=True)))
    return float(sum(scores) / len(scores))


REGRESSION = {
    "mse": lambda p, y, w: np.average(((p - y) ** 2).mean(axis=1), weights=w),
    "rmse": lambda p, y, w: math.sqrt(np.average(((p - y) ** 2).mean(axis=1), weights=w)),
    "mae": lambda p, y, w: np.average(np.abs(p - y).mean(axis=1), weights=w),
    "r2": r2_formula,
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", REGRESSION)
def test_regression(name, split, values, weights):
    expected = REGRESSION[name](*values, weights)
    assert stream(name, *values, weights, SPLITS[split]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_accuracy(split, classes, weights):
    prediction, target = classes
    expected = np.average(
        [int(row.argmax()) == label for row, label in zip(prediction, target, strict=True)], weights=weights
    )
    assert stream("accuracy", prediction, target, weights, SPLITS[split]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("k", [1, 2, 5, CLASSES])
def test_top_k(k, split, classes, weights):
    prediction, target = classes
    hits = [label in np.argsort(-row)[:k] for row, label in zip(prediction, target, strict=True)]
    result = stream(f"top_{k}", prediction, target, weights, SPLITS[split])
    assert result == pytest.approx(np.average(hits, weights=weights), rel=1e-13)


def test_sklearn(classes, values, weights):
    sk = pytest.importorskip("sklearn.metrics")
    prediction, target = classes
    cuts, labels = SPLITS["uneven"], np.arange(CLASSES)
    expected = sk.accuracy_score(target, prediction.argmax(axis=1), sample_weight=weights)
    assert stream("accuracy", prediction, target, weights, cuts) == pytest.approx(expected, rel=1e-12)
    expected = sk.top_k_accuracy_score(target, prediction, k=3, labels=labels, sample_weight=weights)
    assert stream("top_3", prediction, target, weights, cuts) == pytest.approx(expected, rel=1e-12)
    p, y = values
    for name, fn in [("mse", sk.mean_squared_error), ("mae", sk.mean_absolute_error), ("r2", sk.r2_score)]:
        assert stream(name, p, y, weights, cuts) == pytest.approx(fn(y, p, sample_weight=weights), rel=1e-12)


def test_target_layouts(classes):
    prediction, labels = classes
    expected = stream("accuracy", prediction, labels)
    one_hot = np.eye(CLASSES)[labels]
    smoothed = (0.9 * one_hot + 0.1 / CLASSES).astype(np.float32)
    for target in [labels[:, None], labels.astype(np.uint8), labels.astype(np.float32), one_hot, one_hot > 0, smoothed]:
        assert stream("accuracy", prediction, target) == expected
        assert stream("top_1", prediction, target) == expected
    metric = metrics.Accuracy()
    metric.update(prediction.tolist(), labels.tolist())
    assert metric.result() == expected


def test_leading_axes(classes, values):
    prediction, labels = (array[:100] for array in classes)
    metric = metrics.Accuracy()
    metric.update(prediction.reshape(4, 25, CLASSES), labels.reshape(4, 25), np.ones((4, 25)))
    assert metric.result() == stream("accuracy", prediction, labels)
    p, y = (array[:100] for array in values)
    for name in REGRESSION:
        metric = metrics.get(name)
        metric.update(p.reshape(4, 25, 3), y.reshape(4, 25, 3))
        assert metric.result() == stream(name, p, y)


def test_binary_accuracy():
    logits, labels = np.array([-2.0, -0.1, 0.0, 0.1, 3.0]), np.array([0, 1, 0, 1, 1])
    for p in (logits, logits[:, None]):
        for y in (labels, labels[:, None], labels.astype(bool), labels.astype(float)):
            assert stream("accuracy", p, y) == 4 / 5
    probabilities = np.array([0.2, 0.5, 0.7])
    assert stream(metrics.Accuracy(threshold=0.5), probabilities, np.array([0, 0, 1])) == 1.0
    assert stream(metrics.Accuracy(), probabilities, np.array([0, 0, 1])) == 1 / 3


def test_ties_go_to_the_lower_class():
    p = np.zeros((CLASSES, CLASSES))
    labels = np.arange(CLASSES)
    assert stream("accuracy", p, labels) == 1 / CLASSES
    for k in range(1, CLASSES + 1):
        assert stream(f"top_{k}", p, labels) == pytest.approx(k / CLASSES)
    assert stream("top_2", np.array([[1.0, 3.0, 1.0, 1.0]] * 4), np.arange(4)) == 2 / 4


def test_infinite_scores_rank():
    p = np.array([[-np.inf, 0.0, np.inf], [np.inf, np.inf, -np.inf]])
    assert stream("accuracy", p, np.array([2, 0])) == 1.0
    assert stream("top_2", p, np.array([0, 1])) == 0.5


@pytest.mark.parametrize(
    "shapes", [((4,), (4,)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 1), (4, 1)), ((2, 2, 1), (2, 2))]
)
def test_single_output_shapes(shapes):
    p, y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 1.0, 5.0, 5.0])
    for name, expected in [("mse", 5 / 4), ("rmse", math.sqrt(5 / 4)), ("mae", 3 / 4), ("r2", 1 - 5 / 16)]:
        metric = metrics.get(name)
        metric.update(p.reshape(shapes[0]), y.reshape(shapes[1]))
        assert metric.result() == pytest.approx(expected, rel=1e-14)


def test_r2_keeps_its_digits_at_an_offset():
    rng = np.random.default_rng(0)
    noise = rng.integers(-8, 9, (ROWS, 1)) / 8.0
    y = noise + 2.0**40
    p = y + rng.integers(-2, 3, (ROWS, 1)) / 8.0
    for cuts in SPLITS.values():
        assert stream("r2", p, y, cuts=cuts) == pytest.approx(r2_formula(p, y, None), rel=1e-12)


def test_r2_of_a_constant_target():
    y = np.full((9, 1), 0.1)
    assert stream("r2", y, y, cuts=[2, 5]) == 1.0
    assert stream("r2", y + 1e-9, y, cuts=[2, 5]) == 0.0
    both = np.hstack([y, np.arange(9.0)[:, None]])
    assert stream("r2", both + np.array([1, 0]), both, cuts=[4]) == 0.5


def test_zero_weights_remove_rows(values, classes):
    keep = np.arange(ROWS) % 3 != 0
    for name in REGRESSION:
        p, y = values
        assert stream(name, p, y, keep * 1.0, SPLITS["uneven"]) == pytest.approx(
            stream(name, p[keep], y[keep]), rel=1e-12
        )
    p, y = classes
    assert stream("accuracy", p, y, keep) == pytest.approx(stream("accuracy", p[keep], y[keep]), rel=1e-13)


@pytest.mark.parametrize("name", [*metrics.TABLE, "top_1"])
def test_no_rows(name):
    metric = metrics.get(name)
    assert math.isnan(metric.result())
    width = 2 if name in ("accuracy", "top_1") else 1
    metric.update(np.zeros((0, width)), np.zeros((0,), np.int64))
    metric.update(np.ones((3, width)), np.ones(3), np.zeros(3))
    assert math.isnan(metric.result())


def test_r2_needs_two_rows():
    assert math.isnan(stream("r2", np.ones((1, 1)), np.ones((1, 1))))
    assert math.isnan(stream("r2", np.ones((2, 1)), np.array([[1.0], [2.0]]), np.array([1.0, 0.0])))


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_in_regression(name, side, value, values):
    arrays = [array.copy() for array in values]
    arrays[side][0, 0] = value
    result = stream(name, *arrays, cuts=[1, 50])
    if math.isnan(value) or (name == "r2" and side == 1):
        assert math.isnan(result)
    else:
        assert result == (-math.inf if name == "r2" else math.inf)


@pytest.mark.parametrize("name", ["accuracy", "top_2"])
def test_nan_in_scores(name, classes):
    prediction, labels = classes
    prediction = prediction.copy()
    prediction[50, 3] = np.nan
    assert math.isnan(stream(name, prediction, labels, cuts=SPLITS["uneven"]))
    assert math.isnan(stream("accuracy", np.array([np.nan, 1.0]), np.array([0, 1])))


@pytest.mark.parametrize("name", [*metrics.TABLE, "top_2"])
def test_reset(name, values, classes):
    p, y = classes if name in ("accuracy", "top_2") else values
    metric = metrics.get(name)
    metric.update(p[:50], y[:50])
    metric.reset()
    metric.update(p[50:], y[50:])
    assert metric.result() == stream(name, p[50:], y[50:])


def test_r2_takes_another_width_after_reset(values):
    metric = metrics.get("r2")
    metric.update(*values)
    metric.reset()
    metric.update(values[0][:, :2], values[1][:, :2])
    assert metric.result() == stream("r2", values[0][:, :2], values[1][:, :2])


def test_small_dtypes_do_not_wrap():
    p, y = np.array([[0], [250]], np.uint8), np.array([[250], [0]], np.uint8)
    assert stream("mae", p, y) == 250.0
    assert stream("mse", p.astype(np.float16), y.astype(np.float16)) == 62500.0


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    p = np.array([[1.0, 2.0], [3.0, -1.0]], ml_dtypes.bfloat16)
    assert stream("accuracy", p, np.array([1, 1])) == 0.5
    assert stream("mse", p, np.zeros((2, 2), np.float32)) == 15 / 4


class OnDevice:
    """What a tensor shows of itself: no NumPy array, but a `.numpy()`."""

    __array__ = None

    def __init__(self, array):
        self.array = array

    def numpy(self):
        return self.array


def test_tensors(values, classes):
    for name, (p, y) in [("mse", values), ("r2", values), ("accuracy", classes)]:
        metric = metrics.get(name)
        metric.update(OnDevice(p), OnDevice(y), OnDevice(np.ones(ROWS)))
        assert metric.result() == stream(name, p, y)


def mean_gap(prediction, target):
    return np.abs(prediction - target).mean()


def test_function(values):
    metric = metrics.get(mean_gap)
    assert metric.name == "mean_gap"
    assert stream(mean_gap, *values, cuts=SPLITS["uneven"]) == pytest.approx(stream("mae", *values), rel=1e-13)
    with pytest.raises(ArgumentError, match=r"'mean_gap'.*RowMean"):
        metric.update(*values, np.ones(ROWS))
    with pytest.raises(ShapeError, match="one number"):
        stream(lambda p, y: p - y, *values)
    metric.update(np.zeros((0, 3)), np.zeros((0, 3)))
    assert math.isnan(metric.result())


def test_row_mean_subclass(values, weights):
    class WithinOne(metrics.RowMean):
        name = "within_one"

        def per_row(self, prediction, target):
            return (np.abs(prediction - target) < 0.3).all(axis=-1)

    p, y = values
    expected = np.average((np.abs(p - y) < 0.3).all(axis=1), weights=weights)
    assert stream(WithinOne, p, y, weights, SPLITS["uneven"]) == pytest.approx(expected, rel=1e-13)


def test_get():
    for name, kind in metrics.TABLE.items():
        metric = metrics.get(name)
        assert type(metric) is kind
        assert metric.name == name
    assert isinstance(metrics.get("top_5"), metrics.TopK)
    assert metrics.get("top_12").name == "top_12"
    assert metrics.get(metric) is metric
    assert metrics.get(metrics.Accuracy) is not metrics.get(metrics.Accuracy)
    with pytest.raises(UnknownNameError, match="accuracy"):
        metrics.get("acuracy")
    for name in ("top_0", "top_k", "top_05"):
        with pytest.raises(UnknownNameError, match="top_5"):
            metrics.get(name)
    with pytest.raises(ArgumentError, match="None"):
        metrics.get(None)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "5", None])
def test_bad_k(k):
    with pytest.raises(ArgumentError, match="k is"):
        metrics.TopK(k)


def test_bad_threshold():
    with pytest.raises(ArgumentError, match="threshold is nan"):
        metrics.Accuracy(threshold=math.nan)


F23, L2 = np.ones((2, 3)), np.array([0, 1])
BAD = [
    ("mse", F23, np.ones((2, 2)), None, ShapeError, r"\(2, 3\) and target \(2, 2\)"),
    ("mse", np.ones((3, 1)), np.ones((1, 3)), None, ShapeError, "different shapes"),
    ("mae", np.ones(3), np.ones((3, 3)), None, ShapeError, "different shapes"),
    ("r2", np.float64(1), np.float64(1), None, ShapeError, r"shape \(\)"),
    ("rmse", np.ones((2, 0)), np.ones((2, 0)), None, ShapeError, "O >= 1"),
    ("mse", F23 * 1j, F23, None, DTypeError, "complex128"),
    ("accuracy", F23, np.array(["a", "b"]), None, DTypeError, "<U1"),
    ("accuracy", F23, np.array([0, None]), None, DTypeError, "object"),
    ("accuracy", L2, L2, None, DTypeError, "not classes"),
    ("accuracy", F23, np.array([0, 3]), None, DataError, "class 3, expected the integers 0 to 2"),
    ("accuracy", F23, np.array([-1, 0]), None, DataError, "class -1"),
    ("accuracy", F23, np.array([0.5, 0]), None, DataError, "class 0.5"),
    ("accuracy", F23, np.array([np.nan, 0]), None, DataError, "class nan"),
    ("accuracy", np.ones(2), np.array([0, 2]), None, DataError, "integers 0 to 1"),
    ("accuracy", F23, np.ones((2, 3)), None, DataError, "not one-hot"),
    ("accuracy", F23, np.array([[2, -1, 0], [1, 0, 0]]), None, DataError, "not one-hot"),
    ("accuracy", F23, np.array([0, 1, 2]), None, ShapeError, r"expected labels \(2,\) or one-hot \(2, 3\)"),
    ("accuracy", np.ones((3, 1)), np.ones((3, 2)), None, ShapeError, r"expected labels \(3,\) for"),
    ("top_5", F23, L2, None, ShapeError, "3 classes"),
    ("top_1", np.ones((2, 1)), L2, None, ShapeError, "1 classes"),
    ("mse", F23, F23, np.ones(3), ShapeError, r"one weight per row: \(2,\)"),
    ("mse", F23, F23, np.ones((2, 1)), ShapeError, "one weight per row"),
    ("r2", F23, F23, np.array([1, -1]), DataError, "holds -1"),
    ("accuracy", F23, L2, np.array([1, np.nan]), DataError, "holds nan"),
    ("accuracy", F23, L2, np.array([1, np.inf]), DataError, "holds inf"),
    ("r2", np.ones((2, 4)), np.ones((2, 4)), None, ShapeError, "4 outputs, the batches before had 3"),
]


@pytest.mark.parametrize(("name", "p", "y", "w", "error", "words"), BAD)
def test_bad_batches_change_nothing(name, p, y, w, error, words):
    metric = metrics.get(name)
    rng = np.random.default_rng(0)
    width = 7 if name == "top_5" else 3
    good = (rng.standard_normal((5, width)), rng.standard_normal((5, width)))
    if name in ("accuracy", "top_1", "top_5"):
        good = (good[0], rng.integers(0, 3, 5))
    metric.update(*good)
    before = metric.result()
    with pytest.raises(error, match=words):
        metric.update(p, y, w)
    assert metric.result() == before
    metric.update(*good)
    assert metric.result() == pytest.approx(before, rel=1e-13)


@pytest.mark.parametrize("weights", [np.array([1.0, 0.0, 3.0]), np.arange(6.0).reshape(3, 2)])
def test_weights_of_rows_count_for_all_below_them(weights, rng):
    scores, labels = rng.normal(size=(3, 2, 4)), rng.integers(0, 4, (3, 2))
    each = np.broadcast_to(weights.reshape(3, -1), (3, 2))
    expected = np.average(scores.argmax(-1) == labels, weights=each)
    assert stream("accuracy", scores, labels, weights) == pytest.approx(expected, rel=1e-12)
    errors = np.square(scores - 1.0).mean(-1)
    assert stream("mse", scores, np.ones_like(scores), weights) == pytest.approx(np.average(errors, weights=each))
