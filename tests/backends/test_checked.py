"""`CheckedBackend` accepts what the contract allows and catches what it forbids, on both sides of a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fcdense import activations
from fcdense.backends import Device
from fcdense.backends.base import Backend
from fcdense.backends.checked import CheckedBackend, fits
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import ContractError
from fcdense.ops import dense
from fcdense.tensor import tensor
from tests.backends import cases
from tests.backends.calls import draw, first, run
from tests.backends.cases import Case
from tests.backends.formulas import DOUBLE, axpy, greater

F32 = np.dtype(np.float32)
MODERATE = {
    "dense": cases.dense(5, 4, 3, activations.gelu),
    "dense_grad_input": cases.dense_grad_input(5, 4, 3, activations.tanh),
    "dense_grad_weight": cases.dense_grad_weight(5, 4, 3),
    "act_grad": cases.act_grad(5, 3, activations.gelu),
    "softmax": cases.softmax(5, 3, False),
    "softmax_xent": cases.softmax_xent(5, 3, False),
    "elementwise_loss": cases.elementwise_loss((5, 3), (3,)),
    "map": cases.map_(axpy, (5, 3), (5, 3), (3,)),
    "next_stream": cases.next_stream(),
    "dropout": cases.dropout((5, 3), 0.5),
    "reduce": cases.reduce("sum", (5, 3), (0,)),
    "matmul": cases.matmul((2, 5, 4), (4, 3)),
    "copy": cases.copy((5, 3), (5, 3)),
    "fill": cases.fill(1.0, (5, 3)),
    "gather_rows": cases.gather_rows(5, (4,), (3,)),
    "scatter_add_rows": cases.scatter_add_rows(5, (4,), (3,)),
    "norm2": cases.norm2(5, 3),
}


def broken(primitive: str, spoil: Any) -> Backend:
    """A CPU backend whose `primitive` is followed (or replaced, if it returns True) by `spoil(arguments)`."""

    def method(self: CpuBackend, **given: Any) -> None:
        if spoil(given) is not True:
            getattr(CpuBackend, primitive)(self, **given)
            spoil(given)

    return type("Broken", (CpuBackend,), {primitive: method})()


def outputs_of(case: Case) -> list[str]:
    return [name for name, wanted in case.arguments.items() if isinstance(first(wanted), cases.Out)]


INPUTS = cases.Floats | cases.Index | cases.Words


def inputs_of(case: Case) -> list[str]:
    return [name for name, wanted in case.arguments.items() if isinstance(first(wanted), INPUTS)]


def some(array: Any) -> Any:
    """The array, or the first of several."""
    return array[0] if isinstance(array, tuple) else array


OUTPUTS = [(p, name) for p, case in MODERATE.items() for name in outputs_of(case)]
ADDED = [(p, name) for p, name in OUTPUTS if MODERATE[p].arguments[name] and first(MODERATE[p].arguments[name]).added]
EVERY_OUTPUT = [output for output in OUTPUTS if output not in ADDED]
EVERY_INPUT = [(p, name) for p, case in MODERATE.items() for name in inputs_of(case)]


def test_every_primitive_has_a_case_here() -> None:
    assert set(MODERATE) == set(Backend.primitives())


@pytest.mark.parametrize("primitive", MODERATE)
def test_a_right_backend_passes(primitive: str, rng: np.random.Generator) -> None:
    run(CpuBackend(), MODERATE[primitive], draw(MODERATE[primitive], F32, rng))


# ---- what a backend does wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("primitive", "name"), EVERY_OUTPUT)
def test_a_backend_that_forgets_the_last_element(primitive: str, name: str, rng: np.random.Generator) -> None:
    unwritten: list[Any] = []

    def spoil(given: dict[str, Any]) -> None:
        last = some(given[name]).reshape(-1)[-1:]
        if not unwritten:
            unwritten.append(last.copy())
        last[...] = unwritten[0]

    with pytest.raises(ContractError, match=rf"^{primitive} on cpu: {name}(\[0\])? was not written whole: 1 of"):
        run(broken(primitive, spoil), MODERATE[primitive], draw(MODERATE[primitive], F32, rng))


@pytest.mark.parametrize(("primitive", "name"), EVERY_INPUT)
def test_a_backend_that_changes_an_input(primitive: str, name: str, rng: np.random.Generator) -> None:
    def spoil(given: dict[str, Any]) -> None:
        some(given[name]).reshape(-1)[0] = 1

    values = draw(MODERATE[primitive], F32, rng)
    some(values[name]).reshape(-1)[0] = 0
    with pytest.raises(ContractError, match=rf"^{primitive} on cpu: {name}(\[0\])? was changed; it is an input"):
        run(broken(primitive, spoil), MODERATE[primitive], values)


@pytest.mark.parametrize(("primitive", "name"), [o for o in EVERY_OUTPUT if o[0] != "next_stream"])  # integers
def test_a_backend_that_adds_where_it_should_overwrite(primitive: str, name: str, rng: np.random.Generator) -> None:
    def spoil(given: dict[str, Any]) -> bool:
        out = some(given[name])
        before = out.copy()
        getattr(CpuBackend(), primitive)(**given)
        np.add(before, out, out=out)
        return True

    with pytest.raises(ContractError, match="was not written whole"):
        run(broken(primitive, spoil), MODERATE[primitive], draw(MODERATE[primitive], F32, rng))


def test_a_backend_that_forgets_a_condition(rng: np.random.Generator) -> None:
    case = cases.map_(greater, (5, 3), (5, 3), (3,), dtype="bool")
    with pytest.raises(ContractError, match=r"map on cpu: out\[0\] was not written whole: 15 of 15"):
        run(broken("map", lambda given: True), case, draw(case, F32, rng))


def test_a_backend_that_does_not_look_at_its_flag(rng: np.random.Generator) -> None:
    given = draw(MODERATE["map"], F32, rng) | {"when": np.zeros(())}
    CheckedBackend(CpuBackend()).map(**given)

    def spoil(arguments: dict[str, Any]) -> None:
        arguments["out"][0][0, 0] += 1.0

    with pytest.raises(ContractError, match=r"^map on cpu: out\[0\] was changed, though `when` holds 0"):
        CheckedBackend(broken("map", spoil)).map(**given)


def test_a_backend_that_returns_its_result(rng: np.random.Generator) -> None:
    class Returning(CpuBackend):
        def matmul(self, a: Any, b: Any, *, out: Any) -> Any:
            super().matmul(a, b, out=out)
            return out

    with pytest.raises(ContractError, match="matmul on cpu: the call returned something"):
        run(Returning(), MODERATE["matmul"], draw(MODERATE["matmul"], F32, rng))


def test_a_backend_that_writes_beyond_an_output(rng: np.random.Generator) -> None:
    """This one is caught by the guards of the suite."""

    def spoil(given: dict[str, Any]) -> None:
        beyond = np.lib.stride_tricks.as_strided(given["out"], (16,), (4,), writeable=True)
        beyond[-1] = 0.0

    with pytest.raises(AssertionError, match="written outside of an output"):
        run(broken("softmax", spoil), MODERATE["softmax"], draw(MODERATE["softmax"], F32, rng))


# ---- what a caller does wrong ----------------------------------------------------------------------------------------


def arguments(case: Case) -> dict[str, Any]:
    return draw(case, F32, np.random.default_rng(0))


def call(case: Case, given: dict[str, Any]) -> None:
    getattr(CheckedBackend(CpuBackend()), case.primitive)(**given)


EVERY_ARRAY = [*EVERY_INPUT, *OUTPUTS]
FREE = {("norm2", "x"), ("fill", "out")}  # of any shape and float dtype, whatever the other arguments are


def refused(primitive: str, name: str, change: Any) -> str:
    """The message when one array of a right call is changed."""
    given = arguments(MODERATE[primitive])
    value = given[name]
    given[name] = (change(value[0]), *value[1:]) if isinstance(value, tuple) else change(value)
    with pytest.raises(ContractError) as error:
        call(MODERATE[primitive], given)
    return str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
@pytest.mark.parametrize(("primitive", "name"), [a for a in EVERY_ARRAY if a not in FREE and a[0] != "copy"])
def test_an_array_of_another_dtype(primitive: str, name: str, dtype: str) -> None:
    message = refused(primitive, name, lambda array: array.astype(dtype))
    assert message.startswith(f"{primitive} on cpu: ")
    assert " has dtype " in message
    assert dtype in message


@pytest.mark.parametrize(("primitive", "name"), [a for a in EVERY_ARRAY if a not in FREE])
def test_an_array_of_another_rank(primitive: str, name: str) -> None:
    message = refused(primitive, name, lambda array: np.zeros((2, *array.shape, 2), array.dtype))
    assert message.startswith(f"{primitive} on cpu: ")
    assert " has shape " in message


@pytest.mark.parametrize(("primitive", "name"), EVERY_ARRAY)
def test_an_array_of_another_device(primitive: str, name: str) -> None:
    message = refused(primitive, name, lambda array: memoryview(array))
    assert message.startswith(f"{primitive} on cpu: {name}")
    assert "is a memoryview, not an array of this device (ndarray)" in message


@pytest.mark.parametrize(
    ("primitive", "changed", "message"),
    [
        ("dense", {"b_o": np.zeros(4, F32)}, r"b_o has shape \(4,\); expected 'O' where B = \(5,\)"),
        ("dense", {"w_io": np.zeros((5, 3), F32)}, "w_io has shape"),
        ("dense", {"act": activations.relu}, "aux is given; relu has aux 'output'"),
        ("act_grad", {"act": activations.linear}, "aux_bo is given; linear has aux 'none'"),
        ("act_grad", {"aux_bo": None}, "aux_bo is None; gelu has aux 'derivative'"),
        ("act_grad", {"act": DOUBLE}, "aux_bo is given; double has aux 'none'"),
        ("act_grad", {"out": None}, "out is None; gelu is not linear"),
        ("dense_grad_input", {"aux_bi": None}, "aux_bi is None; tanh has aux 'output'"),
        ("dense_grad_weight", {"mode": "add"}, "mode is 'add'"),
        ("softmax_xent", {"target": np.zeros(5, np.int32)}, "target has dtype int32; expected int64"),
        ("softmax_xent", {"loss": np.zeros(1, F32)}, r"loss has shape \(1,\)"),
        ("gather_rows", {"index": np.array([0, 5, 1, 1])}, "index holds 0 to 5; expected 0 to 4"),
        ("scatter_add_rows", {"index": np.array([0, 5, 1, 1])}, "index holds 0 to 5; expected 0 to 4"),
        ("scatter_add_rows", {"index": np.array([0, -1, 1, 1])}, "index holds -1 to 1"),
        ("map", {"scalars": np.zeros(2)}, r"scalars has shape \(2,\); expected 'N' where .*N = \(1,\)"),
        ("map", {"scalars": np.zeros(1, F32)}, "scalars has dtype float32; expected float64"),
        ("map", {"when": np.ones(1)}, r"when has shape \(1,\)"),
        ("map", {"when": np.ones((), F32)}, "when has dtype float32; expected float64"),
        ("dropout", {"stream": np.zeros(3, np.uint64)}, r"stream has shape \(3,\); expected '2'"),
        ("next_stream", {"state": np.zeros(4, np.uint64)[::2]}, "state is not contiguous"),
        ("elementwise_loss", {"weight": np.zeros((2, 5, 3), F32)}, "weight has shape"),
        ("reduce", {"axes": (1,)}, r"out has shape \(3,\); expected '\*R' where \*R = \(5,\)"),
        ("copy", {"x": np.zeros((4, 3), F32)}, "x has shape"),
        ("norm2", {"out": np.zeros((), F32)}, "out has dtype float32; expected float64"),
        ("softmax", {"out": np.zeros((3, 5), F32).T}, "out is not contiguous"),
        ("map", {"out": (np.broadcast_to(np.zeros(3, F32), (5, 3)),)}, r"out\[0\] has several elements in one place"),
    ],
)
def test_an_argument_that_does_not_fit(primitive: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        call(MODERATE[primitive], arguments(MODERATE[primitive]) | changed)


@pytest.mark.parametrize(("primitive", "name"), [o for o in EVERY_OUTPUT if o[0] not in {"copy", "fill"}])
def test_an_output_that_is_half_an_input(primitive: str, name: str) -> None:
    given = arguments(MODERATE[primitive])
    memory = np.zeros(1000, np.uint8)
    out = some(given[name])
    shifted: Any = np.ndarray(out.shape, out.dtype, buffer=memory, offset=8)
    given[name] = (shifted,) if isinstance(given[name], tuple) else shifted
    for argument in inputs_of(MODERATE[primitive]):
        x = some(given[argument])
        start: Any = np.ndarray(x.shape, x.dtype, buffer=memory)
        overlapping = (start, *given[argument][1:]) if isinstance(given[argument], tuple) else start
        with pytest.raises(ContractError, match=rf"^{primitive} on cpu: {name}(\[0\])? overlaps {argument}"):
            call(MODERATE[primitive], given | {argument: overlapping})


def test_two_outputs_in_one_place() -> None:
    given = arguments(MODERATE["dense"])
    with pytest.raises(ContractError, match="aux overlaps out"):
        call(MODERATE["dense"], given | {"aux": given["out"]})


def test_an_output_that_is_an_input_where_that_is_not_allowed() -> None:
    given = arguments(cases.softmax(5, 3, False))
    with pytest.raises(ContractError, match="softmax on cpu: out overlaps z_bk"):
        call(MODERATE["softmax"], given | {"out": given["z_bk"]})


# ---- the rules, and use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "shape", "known", "holds"),
    [
        ("B I", (2, 3), {}, True),
        ("B I", (2,), {}, False),
        ("B B", (2, 3), {}, False),
        ("", (), {}, True),
        ("", (1,), {}, False),
        ("*S", (), {}, True),
        ("*S", (2, 3), {"*S": (2, 3)}, True),
        ("*S", (2, 3), {"*S": (3,)}, False),
        ("<L M K", (3,), {"*L": ()}, False),
        ("<L M K", (3, 4), {"*L": (2,)}, True),
        ("<L M K", (1, 3, 4), {"*L": (2,)}, True),
        ("<L M K", (3, 3, 4), {"*L": (2,)}, False),
        ("*K *R", (2, 3, 4), {"*K": (2,)}, True),
        ("*K *R", (2, 3, 4), {"*K": (2,), "*R": (3,)}, False),
        ("B | B K", (2,), {"B": (2,), "K": (3,)}, True),
        ("B | B K", (2, 3), {"B": (2,), "K": (3,)}, True),
        ("B | B K", (2, 2), {"B": (2,), "K": (3,)}, False),
        ("<S", (1, 3), {"*S": (2, 3)}, True),
        ("<S", (2,), {"*S": (2, 3)}, False),
        ("<S", (1, 2, 3), {"*S": (2, 3)}, False),
    ],
)
def test_shape_rules(rule: str, shape: tuple[int, ...], known: dict[str, Any], holds: bool) -> None:
    assert fits(rule, shape, dict(known)) is holds


def test_a_network_runs_on_it() -> None:
    on = Device("cpu", backend=CheckedBackend(CpuBackend()))
    x, w = (tensor(np.ones(shape, F32), device=on, requires_grad=True) for shape in ((5, 4), (4, 3)))
    dense(x, w, activation=activations.gelu).sum().backward()
    assert w.grad is not None
    assert w.grad.shape == (4, 3)


def test_its_name_tells_what_is_inside() -> None:
    assert CheckedBackend(CpuBackend()).name == "checked cpu"
