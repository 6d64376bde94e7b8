"""The questions' work, data and results."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from fcdense import backends
from fcdense.bench import questions
from fcdense.bench.cases import Case, Grid, Run
from fcdense.bench.runner import max_error, reference
from fcdense.errors import ArgumentError, UnknownNameError

GRID = Grid(sizes=((5, 7, 3),), networks=((6, 5, 4, 3),), batches=(8,))


def one(question: str, **changes: Any) -> Case:
    """The first case of a question on the small grid."""
    return questions.cases([question], Grid(**{**vars(GRID), **changes}))[0]


def test_flops_in_closed_form() -> None:
    assert one("forward").flops == 2 * 5 * 7 * 3
    assert one("backward").flops == 2 * (2 * 5 * 7 * 3)
    forward, weights = [2 * 8 * (6 * 5 + 5 * 4 + 4 * 3)] * 2
    assert one("train").flops == forward + weights + 2 * 8 * (5 * 4 + 4 * 3)


def test_labels_name_the_problem() -> None:
    assert one("forward").label == "5x7x3"
    assert one("forward", activation="tanh", dtype="float64").setting == "tanh, float64"
    assert one("train").label == "6-5-4-3, batch 8"
    assert one("train").setting == "relu, float32, adam"


def test_a_grid_gives_all_its_rows() -> None:
    grid = Grid(sizes=((1, 2, 3), (4, 5, 6)), networks=((2, 3), (4, 5, 6)), batches=(1, 2, 3))
    found = questions.cases(["train", "forward"], grid)
    assert [case.question for case in found] == ["train"] * 6 + ["forward"] * 2
    keys = [(case.question, case.label, case.setting) for case in found]
    assert len(set(keys)) == len(keys)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="'forward'"):
        questions.cases(["forwards"], GRID)
    with pytest.raises(UnknownNameError, match="optimizer"):
        questions.cases(["train"], Grid(optimizer="adm"))
    with pytest.raises(ArgumentError, match="works on rows"):
        one("forward", activation="softmax").function  # noqa: B018


@pytest.mark.parametrize("question", questions.names())
def test_every_question_says_what_it_measures(question: str) -> None:
    assert len(questions.summary(question)) > len(question)


@pytest.mark.parametrize("question", ["forward", "backward", "train"])
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
    case = one(question, activation="tanh", dtype="float64")
    expected = exact(case.data())
    for results in (reference(case), outputs_of(case, "cpu")):
        assert results.keys() == expected.keys()
        for name, array in results.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-14)


def outputs_of(case: Case, device: str) -> dict[str, np.ndarray[Any, Any]]:
    run = case.prepare(backends.device(device), case.data())
    run.call()
    return run.outputs()


def test_training_gradients_are_central_differences() -> None:
    """The loss of the step, differentiated by moving one weight in plain NumPy."""
    case = one("train", activation="tanh", dtype="float64")
    data = case.data()

    def logits(data: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        y = data["x"]
        for index in range(3):
            z = y @ data[f"w{index}"] + data[f"b{index}"]
            y = np.tanh(z)
        return z

    def loss(data: dict[str, np.ndarray[Any, Any]]) -> float:
        z = logits(data)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(len(z)), data["target"]].mean())

    results = outputs_of(case, "cpu")
    assert results["loss"] == pytest.approx(loss(data), rel=1e-12)
    # Adam's first step moves every weight by the learning rate against its gradient
    stepped = {name: data[name] - 1e-3 * np.sign(results.get(name, 0.0)) for name in data if name[0] in "wb"}
    np.testing.assert_allclose(results["logits_after"], logits({**data, **stepped}), rtol=1e-4, atol=1e-5)
    h = 1e-6
    for name in ("w0", "b0", "w1", "b1", "w2", "b2"):
        place = tuple(size // 2 for size in data[name].shape)
        sides = []
        for sign in (1, -1):
            moved = data[name].copy()
            moved[place] += sign * h
            sides.append(loss({**data, name: moved}))
        assert results[name][place] == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("question", ["forward", "backward", "train"])
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
def test_the_cpu_agrees_with_the_reference(question: str, activation: str) -> None:
    case = one(question, activation=activation)
    error = max_error(outputs_of(case, "cpu"), reference(case))
    assert error is not None
    assert 0.0 < error < 2e-6


def test_max_error_is_relative_to_the_largest_value() -> None:
    truth = {"a": np.array([1.0, -4.0]), "zero": np.zeros(2)}
    assert max_error({"a": np.array([1.5, -4.0]), "zero": np.zeros(2)}, truth) == 0.125
    assert max_error({"a": np.array([1.0, -4.0]), "zero": np.array([0.0, 0.25])}, truth) == 0.25
    assert max_error({"a": np.array([np.nan, -4.0]), "zero": np.zeros(2)}, truth) is None


def test_a_run_waits_for_its_device() -> None:
    events: list[str] = []
    run = Run(lambda: events.append("call"), dict, lambda: (time.sleep(0.01), events.append("end"))[1])
    assert run.time(3) >= 10_000_000
    assert events == ["call"] * 3 + ["end"]
