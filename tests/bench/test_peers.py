"""Each peer computes the same as the reference, or says that it has not got the case."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from fcdense.bench import questions
from fcdense.bench.candidates import Candidate, peer_names
from fcdense.bench.cases import Case, Grid
from fcdense.bench.peers import limit_numpy
from fcdense.bench.results import NO_RESULT
from fcdense.bench.runner import max_error, peak_memory, reference

GRID = Grid(
    networks=((8, 7, 6, 5),), batches=(12,), activations=("relu", "gelu", "sigmoid"), optimizers=("adam", "sgd")
)
CASES = [
    *questions.cases(["train", "predict"], GRID),
    *questions.cases(["train", "predict"], Grid(networks=((9, 4),), batches=(1,))),
]
LIBRARIES = {"numpy": "numpy", "sklearn": "sklearn", "jax": "jax", "keras": "tensorflow", "torch": "torch"}
# Keras and scikit-learn add Adam's epsilon elsewhere, which tells where gradients are small.
TOLERANCE = {"keras": 1e-4, "sklearn": 1e-4}
LACKS = {"numpy": "gelu", "sklearn": "gelu"}


@pytest.fixture(scope="module")
def started() -> Iterator[ExitStack]:
    """Closes the processes of peers when the last test has ended."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def processes(started: ExitStack) -> dict[str, Candidate]:
    """Peers that run already."""
    return {}


@pytest.fixture
def peer(request: pytest.FixtureRequest, started: ExitStack, processes: dict[str, Candidate]) -> Candidate:
    """A peer in its process, where its library is installed."""
    name: str = request.param
    library = LIBRARIES[name.removeprefix("limit_").partition("_")[0]]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if name not in processes:
        processes[name] = started.enter_context(closing(Candidate(name)))
        processes[name].wait()
    return processes[name]


COMPARED = ["numpy", "torch", "torch_default", "jax", "keras", "sklearn"]


@pytest.mark.parametrize("peer", COMPARED, indirect=True)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.question} {case.label} {case.setting}")
def test_peers_agree_with_the_reference(peer: Candidate, case: Case) -> None:
    if not peer.prepare(case):
        assert LACKS.get(peer.name) == case.activation or (peer.name, case.question) == ("torch_default", "predict")
        return
    assert LACKS.get(peer.name) != case.activation
    peer.time(case.steps)
    error = max_error(peer.outputs(), reference(case))
    assert isinstance(error, float)
    assert error < TOLERANCE.get(peer.name, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["torch_compile"], indirect=True)
@pytest.mark.parametrize("case", CASES[:1] + CASES[-1:], ids=lambda case: case.question)
def test_what_is_compiled_agrees_with_the_reference(peer: Candidate, case: Case) -> None:
    assert peer.prepare(case)
    peer.time(case.steps)
    error = max_error(peer.outputs(), reference(case))
    assert isinstance(error, float)
    assert error < 2e-6


@pytest.mark.parametrize("peer", ["limit_numpy", "limit_torch"], indirect=True)
@pytest.mark.parametrize("question", ["train", "predict"])
def test_limits_multiply_and_have_no_results(peer: Candidate, question: str) -> None:
    case = next(case for case in CASES if case.question == question)
    assert peer.prepare(case)
    assert peer.time(2).ns > 0
    assert max_error(peer.outputs(), reference(case)) == NO_RESULT


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.question} {case.label} {case.setting}")
def test_limits_count_as_many_operations_as_the_case(case: Case) -> None:
    todo = limit_numpy.products(case, case.data())  # type: ignore[arg-type]
    assert sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in todo) == case.flops
    for a, b, out in todo:
        assert np.dot(a, b, out=out) is out


@pytest.mark.parametrize("peer", COMPARED, indirect=True)
def test_peers_have_no_other_optimizer(peer: Candidate) -> None:
    (case,) = questions.cases(["train"], Grid(networks=((4, 3),), batches=(2,), optimizers=("rmsprop",)))
    assert not peer.prepare(case)


def test_every_peer_is_tested() -> None:
    assert set(peer_names()) == {*COMPARED, "torch_compile", "limit_numpy", "limit_torch"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc, which only Linux has")
def test_memory_of_a_new_process() -> None:
    (case,) = questions.cases(["train"], Grid(networks=((2048, 1024),), batches=(4,)))
    needed = 4 * 2048 * 1024  # bytes of the kernel; Adam has two moments, and NumPy a gradient and what is in between
    assert 4 * needed < peak_memory(case, "numpy") < 12 * needed
