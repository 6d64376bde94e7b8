"""The contract for shapes and layouts that nobody thought of: hypothesis looks for a call that breaks it."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fcdense import activations
from tests.backends import cases
from tests.backends.bounds import assert_within_bound
from tests.backends.calls import DEVICES, LAYOUTS, backend_of, contiguous, draw, reference, run
from tests.backends.cases import EXACT_ACTS, SMOOTH_ACTS, Case
from tests.backends.formulas import axpy

pytestmark = pytest.mark.parametrize("on", DEVICES)

few = settings(max_examples=60)
size = st.integers(0, 9)
sizes = st.tuples(size, size, size)
acts = st.sampled_from([*EXACT_ACTS, *SMOOTH_ACTS])
modes = st.sampled_from(["overwrite", "accumulate"])
layouts = st.sampled_from(
    [contiguous, *(LAYOUTS[name] for name in ("transposed", "strided", "padded_rows", "reversed"))]
)
dtypes = st.sampled_from(["float16", "float32", "float64"])


def check(on: str, case: Case, layout: Any, dtype: str) -> None:
    """One call with random data within the bounds."""
    values = draw(case, dtype, np.random.default_rng(0))
    assert_within_bound(run(backend_of(on), case, values, layout=layout), case, values, dtype)


@few
@given(sizes=sizes, act=acts, bias=st.booleans(), layout=layouts, dtype=dtypes)
def test_dense(on: str, sizes: Any, act: Any, bias: bool, layout: Any, dtype: str) -> None:
    check(on, cases.dense(*sizes, act, bias), layout, dtype)


@few
@given(sizes=sizes, act=acts, mode=modes, db=st.booleans(), layout=layouts, dtype=dtypes)
def test_dense_grad_input(on: str, sizes: Any, act: Any, mode: str, db: bool, layout: Any, dtype: str) -> None:
    check(on, cases.dense_grad_input(*sizes, act, mode, db), layout, dtype)


@few
@given(sizes=sizes, mode=modes, layout=layouts, dtype=dtypes)
def test_dense_grad_weight(on: str, sizes: Any, mode: str, layout: Any, dtype: str) -> None:
    check(on, cases.dense_grad_weight(*sizes, mode), layout, dtype)


@few
@given(b=st.integers(0, 300), o=st.integers(0, 130), act=acts, mode=modes, layout=layouts)
def test_act_grad(on: str, b: int, o: int, act: Any, mode: str, layout: Any) -> None:
    check(on, cases.act_grad(b, o, act, mode), layout, "float32")


@few
@given(b=size, k=st.integers(1, 40), rows=st.booleans(), weight=st.booleans(), layout=layouts, dtype=dtypes)
def test_softmax_xent(on: str, b: int, k: int, rows: bool, weight: bool, layout: Any, dtype: str) -> None:
    check(on, cases.softmax_xent(b, k, rows, weight), layout, dtype)


@few
@given(b=size, k=st.integers(1, 40), log=st.booleans(), layout=layouts, dtype=dtypes)
def test_softmax(on: str, b: int, k: int, log: bool, layout: Any, dtype: str) -> None:
    check(on, cases.softmax(b, k, log), layout, dtype)


@few
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=40), layout=layouts, dtype=dtypes)
def test_map_broadcasts(on: str, shapes: Any, layout: Any, dtype: str) -> None:
    check(on, cases.map_(axpy, shapes.result_shape, *shapes.input_shapes), layout, dtype)


@few
@given(shape=hnp.array_shapes(max_dims=3, max_side=9), inner=hnp.array_shapes(max_dims=3, max_side=9), data=st.data())
def test_loss_weights_broadcast(on: str, shape: Any, inner: Any, data: st.DataObject) -> None:
    weight = data.draw(
        hnp.broadcastable_shapes(shape, max_dims=len(shape)).filter(lambda w: np.broadcast_shapes(w, shape) == shape)
    )
    check(on, cases.elementwise_loss(shape, weight), contiguous, "float32")


@few
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    operation=st.sampled_from(["sum", "max", "min"]),
    data=st.data(),
    layout=layouts,
    dtype=dtypes,
)
def test_reduce(on: str, shape: Any, operation: str, data: st.DataObject, layout: Any, dtype: str) -> None:
    able = [axis for axis, n in enumerate(shape) if n or operation == "sum"]
    axes = data.draw(st.lists(st.sampled_from(able), unique=True)) if able else []
    check(on, cases.reduce(operation, shape, tuple(sorted(axes))), layout, dtype)


@few
@given(
    shapes=hnp.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", min_side=0, max_side=6),
    layout=layouts,
    dtype=dtypes,
)
def test_matmul(on: str, shapes: Any, layout: Any, dtype: str) -> None:
    check(on, cases.matmul(*shapes.input_shapes), layout, dtype)


@few
@given(rows=st.integers(1, 9), index=hnp.array_shapes(min_side=0), rest=hnp.array_shapes(min_side=0), layout=layouts)
def test_rows(on: str, rows: int, index: Any, rest: Any, layout: Any) -> None:
    check(on, cases.gather_rows(rows, index, rest), layout, "float32")
    check(on, cases.scatter_add_rows(rows, index, rest), layout, "float32")


@few
@given(
    out=hnp.array_shapes(min_dims=0, min_side=0),
    data=st.data(),
    layout=layouts,
    source=dtypes,
    target=st.sampled_from(["float16", "float32", "float64", "bool"]),
)
def test_copy(on: str, out: Any, data: st.DataObject, layout: Any, source: str, target: str) -> None:
    x = data.draw(
        hnp.broadcastable_shapes(out, max_dims=len(out), min_side=0).filter(
            lambda w: np.broadcast_shapes(w, out) == out
        )
    )
    check(on, cases.copy(x, out, target), layout, source)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_of_masked_logits(on: str, log: bool) -> None:
    """-inf is a way to say "not this class": it has no share, and no warning."""
    backend = backend_of(on)
    z = np.array([[0.0, -np.inf, 0.0], [-np.inf, -np.inf, 5.0]], np.float32)
    out = backend.empty(z.shape, z.dtype)
    backend.softmax(backend.from_host(z), out=out, log=log)
    share = np.array([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]], np.float32)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(backend.to_host(out), np.log(share) if log else share, rtol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_cross_entropy_of_masked_logits(on: str, rows: bool) -> None:
    backend = backend_of(on)
    z = np.array([[0.0, -np.inf, 0.0]], np.float32)
    target = np.array([[0.0, 0.0, 1.0]], np.float32) if rows else np.array([2])
    loss, dz = backend.empty((), z.dtype), backend.empty(z.shape, z.dtype)
    backend.softmax_xent(backend.from_host(z), backend.from_host(target), None, 1.0, loss=loss, dz=dz)
    assert float(backend.to_host(loss)) == pytest.approx(np.log(2.0))
    np.testing.assert_allclose(backend.to_host(dz), [[0.5, 0.0, -0.5]], rtol=1e-6)


@pytest.mark.parametrize("number", [-1, 3, 4, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("row", [0, 1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_a_number_that_is_no_class(
    on: str, number: int, row: int, weighted: bool, rng: np.random.Generator
) -> None:
    """The loss is NaN and so is the row of its gradient; the other rows are as ever."""
    backend = backend_of(on)
    case = cases.softmax_xent(4, 3, False, weighted)
    values = draw(case, "float32", rng)
    expected = run(backend, case, values)["dz"]
    expected[row] = np.nan
    values["target"][row] = number
    for layout, in_place in ((contiguous, False), (contiguous, True), (LAYOUTS["strided"], False)):
        got = run(backend, case, values, layout=layout, in_place=in_place)
        assert np.isnan(got["loss"])
        np.testing.assert_allclose(got["dz"], expected, rtol=1e-6)  # other layouts may be served by other code
    got = reference(case, values)
    assert np.isnan(got["loss"])
    np.testing.assert_allclose(got["dz"], expected, rtol=1e-5)
    without = cases.softmax_xent(4, 3, False, weighted, dz=False)
    assert np.isnan(run(backend, without, values | {"dz": None})["loss"])


@pytest.mark.parametrize("log", [False, True])
def test_softmax_of_extreme_logits(on: str, log: bool) -> None:
    backend = backend_of(on)
    z = np.array([[1e4, 0.0], [-1e4, 0.0], [3e38, -3e38]], np.float32)
    out = backend.empty(z.shape, z.dtype)
    with np.errstate(over="ignore"):  # the last row's difference is out of range
        backend.softmax(backend.from_host(z), out=out, log=log)
    expected = [[0.0, -1e4], [-1e4, 0.0], [0.0, -np.inf]] if log else [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    np.testing.assert_array_equal(backend.to_host(out), np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_norm2_beyond_the_range_of_the_dtype(on: str, dtype: str) -> None:
    backend = backend_of(on)
    large = float(np.finfo(dtype).max) / 4 if dtype != "float64" else 1e150
    x, out = np.full(50_000, large, dtype), backend.empty((), np.dtype(np.float64))
    backend.norm2(backend.from_host(x), out=out)
    assert float(backend.to_host(out)) == pytest.approx(50_000 * float(x[0]) ** 2, rel=1e-6)


def test_half_precision_sums_do_not_stall(on: str) -> None:
    """float16 cannot count beyond 2048; its sums run in float32."""
    backend = backend_of(on)
    x = backend.from_host(np.ones((5000, 3), np.float16))
    for axes, shape in (((0,), (3,)), ((0, 1), ())):
        out = backend.empty(shape, np.dtype(np.float16))
        backend.reduce("sum", x, axes, out=out)
        np.testing.assert_array_equal(
            backend.to_host(out), np.full(shape, 5000.0 * (3 if not shape else 1), np.float16)
        )
    out, db = backend.empty(x.shape, x.dtype), backend.empty((3,), x.dtype)
    backend.act_grad(x, None, activations.linear, out=out, db=db)
    np.testing.assert_array_equal(backend.to_host(db), np.full(3, 5000.0, np.float16))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_that_it_should(on: str, rate: float) -> None:
    backend, count = backend_of(on), 200_000
    x, out = backend.from_host(np.ones(count, np.float32)), backend.empty((count,), np.dtype(np.float32))
    backend.dropout(x, rate, backend.from_host(np.array([1, 1], np.uint64)), out=out)
    kept = np.count_nonzero(backend.to_host(out))
    assert abs(kept - (1 - rate) * count) < 5 * np.sqrt(count * rate * (1 - rate))


def test_dropout_depends_on_both_words(on: str) -> None:
    backend = backend_of(on)
    x = backend.from_host(np.ones(64, np.float32))
    seen = set()
    for words in ((1, 1), (1, 2), (2, 1), (2**64 - 1, 1), (1, 2**40)):
        out = backend.empty((64,), np.dtype(np.float32))
        backend.dropout(x, 0.5, backend.from_host(np.array(words, np.uint64)), out=out)
        seen.add(backend.to_host(out).tobytes())
    assert len(seen) == 5
