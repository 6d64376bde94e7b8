"""The questions' work, data and results."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from fcdense import backends
from fcdense.bench import questions
from fcdense.bench.cases import Case, Grid, Run, tolerance
from fcdense.bench.results import NO_RESULT, NOT_FINITE
from fcdense.bench.runner import max_error, reference
from fcdense.errors import ArgumentError, DeviceError, UnknownNameError

GRID = Grid(sizes=((5, 7, 3),), networks=((6, 5, 4, 3),), batches=(8,))


def one(question: str, **changes: Any) -> Case:
    """The first case of a question on the small grid."""
    return questions.cases([question], Grid(**{**vars(GRID), **changes}))[0]


def test_flops_in_closed_form() -> None:
    assert one("forward").flops == 2 * 5 * 7 * 3
    assert one("backward").flops == 2 * (2 * 5 * 7 * 3)
    forward, weights = [2 * 8 * (6 * 5 + 5 * 4 + 4 * 3)] * 2
    assert one("predict").flops == forward
    assert one("train").flops == forward + weights + 2 * 8 * (5 * 4 + 4 * 3)


def test_labels_name_the_problem() -> None:
    assert one("forward").label == "5x7x3"
    assert one("forward", activations=("tanh",), dtype="float64").setting == "tanh, float64"
    assert one("train").label == "6-5-4-3, batch 8"
    assert one("train").setting == "relu, float32, adam"


def test_a_grid_gives_all_its_rows() -> None:
    grid = Grid(sizes=((1, 2, 3), (4, 5, 6)), networks=((2, 3), (4, 5, 6)), batches=(1, 2, 3))
    found = questions.cases(["train", "forward"], grid)
    assert [case.question for case in found] == ["train"] * 6 + ["forward"] * 2
    keys = [(case.question, case.label, case.setting) for case in found]
    assert len(set(keys)) == len(keys)


def test_every_activation_and_optimizer() -> None:
    grid = Grid(networks=((2, 3),), batches=(1,), activations=("relu", "gelu"), optimizers=("adam", "sgd"))
    settings = [case.setting for case in questions.cases(["train"], grid)]
    assert settings == [f"{f}, float32, {o}" for f in ("relu", "gelu") for o in ("adam", "sgd")]
    assert [case.activation for case in questions.cases(["forward"], Grid(((1, 2, 3),), activations=("relu", "gelu")))]


def test_large_networks_are_left_out() -> None:
    grid = Grid(networks=((100, 100),), batches=(1, 1000), max_gflop=0.03)
    assert [case.batch for case in questions.cases(["train"], grid)] == [1]  # 0.04 GFLOP at batch 1000
    assert [case.batch for case in questions.cases(["predict"], grid)] == [1, 1000]  # 0.02


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="'forward'"):
        questions.cases(["forwards"], GRID)
    with pytest.raises(UnknownNameError, match="optimizer"):
        questions.cases(["train"], Grid(optimizers=("adm",)))
    with pytest.raises(ArgumentError, match="works on rows"):
        one("forward", activations=("softmax",)).function  # noqa: B018


@pytest.mark.parametrize("question", questions.names())
def test_every_question_says_what_it_measures(question: str) -> None:
    assert len(questions.summary(question)) > len(question)


@pytest.mark.parametrize("question", ["forward", "backward", "train", "predict"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_data_is_random_and_the_same_every_time(question: str, dtype: str) -> None:
    case = one(question, dtype=dtype)
    first, second = case.data(), case.data()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        if name != "target":
            assert array.dtype == dtype
            assert np.count_nonzero(array) == array.size, "zeros flatter"


def exact_forward(data: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {"y": np.tanh(data["x"] @ data["w"] + data["b"])}


def exact_backward(data: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    dz = data["dy"] / np.cosh(data["x"] @ data["w"] + data["b"]) ** 2
    return {"dx": dz @ data["w"].T, "dw": data["x"].T @ dz, "db": dz.sum(axis=0)}


@pytest.mark.parametrize(("question", "exact"), [("forward", exact_forward), ("backward", exact_backward)])
def test_layers_compute_what_they_say(question: str, exact: Any) -> None:
    case = one(question, activations=("tanh",), dtype="float64")
    expected = exact(case.data())
    for results in (reference(case), outputs_of(case, "cpu")):
        assert results.keys() == expected.keys()
        for name, array in results.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-14)


def outputs_of(case: Case, device: str) -> dict[str, np.ndarray[Any, Any]]:
    run = case.prepare(backends.device(device), case.data())
    run.time(case.steps)
    return run.outputs()


def logits_of(parameters: list[np.ndarray[Any, Any]], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The network 6-5-4-3 with tanh, in plain NumPy."""
    for w, b in zip(parameters[::2], parameters[1::2], strict=True):
        z = x @ w + b
        x = np.tanh(z)
    return z


def test_prediction_computes_what_it_says() -> None:
    case = one("predict", activations=("tanh",), dtype="float64")
    data = case.data()
    expected = logits_of([data[name] for name in ("w0", "b0", "w1", "b1", "w2", "b2")], data["x"])
    for results in (reference(case), outputs_of(case, "cpu")):
        np.testing.assert_allclose(results["logits"], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_three_steps_of_training(optimizer: str) -> None:
    """The textbook's updates, with gradients from moving each weight a little."""
    case = one("train", activations=("tanh",), dtype="float64", optimizers=(optimizer,))
    data = case.data()
    parameters = [data[name].copy() for name in ("w0", "b0", "w1", "b1", "w2", "b2")]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]

    def loss() -> float:
        z = logits_of(parameters, data["x"])
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(len(z)), data["target"]].mean())

    h = 1e-5
    for step in (1, 2, 3):
        last = loss()
        gradients = []
        for p in parameters:
            g = np.empty_like(p)
            for place in np.ndindex(p.shape):
                kept = p[place]
                p[place] = kept + h
                above = loss()
                p[place] = kept - h
                g[place] = (above - loss()) / (2 * h)
                p[place] = kept
            gradients.append(g)
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            if optimizer == "sgd":
                p -= 0.01 * g
                continue
            m[...] = 0.9 * m + 0.1 * g
            v[...] = 0.999 * v + 0.001 * g * g
            p -= 1e-3 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    logits = logits_of(parameters, data["x"])
    for results in (reference(case), outputs_of(case, "cpu")):
        assert results["loss"] == pytest.approx(last, rel=1e-9)
        np.testing.assert_allclose(results["logits"], logits, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("question", ["train", "predict"])
def test_a_captured_step_computes_what_the_eager_one_does(question: str) -> None:
    case = one(question)
    device = backends.device("cpu")
    captured, eager = case.prepare(device, case.data()), case.prepare_eager(device, case.data())
    assert eager is not None
    for run in (captured, eager):
        run.time(10)
    for name, array in eager.outputs().items():
        np.testing.assert_array_equal(captured.outputs()[name], array)


@pytest.mark.parametrize("question", ["train", "predict"])
def test_large_batches_repeat_rows_so_that_the_reference_needs_few(question: str) -> None:
    (case,) = questions.cases([question], Grid(networks=((5, 4, 3),), batches=(8192,), dtype="float64"))
    data = case.data()
    assert data["x"].shape == (8192, 5)
    np.testing.assert_array_equal(data["x"][256:512], data["x"][:256])
    np.testing.assert_array_equal(data["target"][-256:], data["target"][:256])
    assert len(np.unique(data["x"], axis=0)) == 256
    run = case.prepare(backends.device("numpy"), data)
    assert run is not None
    run.time(case.steps)
    truth = reference(case)
    assert truth["logits"].shape == (256, 3)
    assert max_error(run.outputs(), truth) < 1e-10  # type: ignore[operator]
    whole = {"loss": truth.get("loss", np.zeros(())), "logits": np.tile(truth["logits"], (32, 1))}
    assert max_error({name: whole[name] for name in truth}, truth) == 0.0


def test_other_batches_repeat_nothing() -> None:
    for batch in (4096, 5000):
        assert len(np.unique(one("predict", networks=((1, 3),), batches=(batch,)).data()["x"])) > batch - 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_networks_of_16_bits_are_mixed(dtype: str) -> None:
    """Their arrays are float32; the processor refuses to multiply them in 16 bits."""
    case = one("train", dtype=dtype)
    assert {array.dtype.name for array in case.data().values()} == {"float32", "int64"}
    exact = one("train", dtype="float64").exact()
    assert max_error(case.exact(), exact) < 1e-5, "the reference rounds nothing"  # type: ignore[operator]
    run = case.prepare(backends.device("cpu"), case.data())
    assert run is not None
    with pytest.raises(DeviceError, match=dtype):
        run.time(1)
    for layer in questions.cases(["forward", "products"], Grid(sizes=((3, 4, 5),), dtype=dtype)):
        assert {array.dtype.name for array in layer.data().values()} == {dtype}


def test_more_depth_is_more_rounding() -> None:
    assert tolerance("bfloat16", 0) == tolerance("bfloat16", 2**21) / 2 == 2**-7
    assert tolerance("float32", 0) == 2**-19 < tolerance("float32", 1024) < 2**-17
    with pytest.raises(KeyError):
        tolerance("int8", 1)


def test_a_layer_has_no_step_to_capture() -> None:
    case = one("forward")
    assert case.prepare_eager(backends.device("cpu"), case.data()) is None


@pytest.mark.parametrize("question", ["forward", "backward", "train", "predict"])
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
def test_the_cpu_agrees_with_the_reference(question: str, activation: str) -> None:
    case = one(question, activations=(activation,))
    error = max_error(outputs_of(case, "cpu"), reference(case))
    assert isinstance(error, float)
    assert 0.0 < error < 2e-6


def test_max_error_is_relative_to_the_largest_value() -> None:
    truth = {"a": np.array([1.0, -4.0]), "zero": np.zeros(2)}
    assert max_error({"a": np.array([1.5, -4.0]), "zero": np.zeros(2)}, truth) == 0.125
    assert max_error({"a": np.array([1.0, -4.0]), "zero": np.array([0.0, 0.25])}, truth) == 0.25
    assert max_error({"a": np.array([np.nan, -4.0]), "zero": np.zeros(2)}, truth) == NOT_FINITE
    assert max_error({"loss": np.array(3e-7)}, {"loss": np.array(1e-7)}) == pytest.approx(2e-7)
    assert max_error({"loss": np.array(5.0)}, {"loss": np.array(4.0)}) == 0.25
    assert max_error({}, truth) == NO_RESULT


def test_a_run_waits_for_its_device() -> None:
    events: list[str] = []
    run = Run(lambda: events.append("call"), dict, lambda: (time.sleep(0.01), events.append("end"))[1])
    assert run.time(3).ns >= 10_000_000
    assert events == ["call"] * 3 + ["end"]
