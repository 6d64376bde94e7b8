"""Each peer computes the same as the reference, or says that it has not got the case."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fcdense import backends
from fcdense.bench import questions
from fcdense.bench.candidates import Candidate, CandidateError, is_for_gpu, peer_names
from fcdense.bench.cases import Case, Grid
from fcdense.bench.networks import Network
from fcdense.bench.peers import limit_numpy
from fcdense.bench.questions.bandwidth import Pass
from fcdense.bench.questions.products import Forward, InputGradient, Product, WeightGradient
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


MIXED = [
    *questions.cases(
        ["train", "predict"],
        replace(GRID, dtype="bfloat16", activations=("gelu",), optimizers=("adamw",), batches=(8192,)),
    ),
    *questions.cases(["train"], replace(GRID, dtype="float16", activations=("gelu",), optimizers=("adam",))),
    *questions.cases(["train"], replace(GRID, activations=("gelu",), optimizers=("adamw",))),
]
IN_16_BITS = {"torch", "jax"}


@pytest.mark.parametrize("peer", COMPARED, indirect=True)
@pytest.mark.parametrize("case", MIXED, ids=lambda case: f"{case.question} {case.setting}")
def test_mixed_precision_and_decay(peer: Candidate, case: Case) -> None:
    """A batch whose rows repeat; AdamW in all dtypes, also where PyTorch's optimizers are as they come."""
    assert isinstance(case, Network)
    is_there = peer.prepare(case)
    if not is_there:
        needs_scale = peer.name == "jax" and case.dtype == "float16"
        assert peer.name not in IN_16_BITS | {"torch_default"} or needs_scale or case.question == "predict"
        return
    assert peer.name in IN_16_BITS | {"torch_default"}
    peer.time(case.steps)
    outputs, truth = peer.outputs(), reference(case)
    assert outputs["logits"].shape == truth["logits"].shape == (case.rows, 5)
    error = max_error(outputs, truth)
    assert isinstance(error, float)
    assert error < (case.tolerance or 0.0)
    assert case.dtype == "float32" or error > 1e-5, "float32 is multiplied, not 16 bits"


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
    on_cpu = [name for name in peer_names() if not is_for_gpu(name)]
    assert set(on_cpu) == {*COMPARED, "torch_compile", "limit_numpy", "limit_torch"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc, which only Linux has")
def test_memory_of_a_new_process() -> None:
    (case,) = questions.cases(["train"], Grid(networks=((2048, 1024),), batches=(4,)))
    needed = 4 * 2048 * 1024  # bytes of the kernel; Adam has two moments, and NumPy a gradient and what is in between
    assert 4 * needed < peak_memory(case, "numpy") < 12 * needed


@pytest.mark.skipif(backends.cuda_probes()[-1].passed, reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda_simt", "cuda_torch", "cuda_jax", "cuda_cupy"])
def test_peers_for_gpus_say_why_they_are_not_there(name: str) -> None:
    library = name.removeprefix("cuda_")
    if name != "cuda_simt" and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with closing(Candidate(name)) as candidate, pytest.raises(CandidateError, match=r"Error: .*(GPU|driver|Driver)"):
        candidate.wait()


@pytest.mark.parametrize("kind", [Forward, InputGradient, WeightGradient])
def test_products_of_cupy(kind: type[Product], monkeypatch: pytest.MonkeyPatch) -> None:
    """With NumPy in the place of CuPy: each is the plain product, over operands that lie as ours do."""
    gpu = SimpleNamespace(is_available=lambda: True, Device=lambda: SimpleNamespace(synchronize=lambda: None))
    names = {"__version__": "14", "cuda": gpu, "asarray": np.array, "dot": np.dot, "empty": np.empty}
    cupy = ModuleType("cupy")
    vars(cupy).update(names)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delitem(sys.modules, "fcdense.bench.peers.cuda_cupy", raising=False)
    peer = importlib.import_module("fcdense.bench.peers.cuda_cupy")
    case = kind("float32", "linear", 9, 8, 7)
    data = case.data()
    name, exact = next(iter(case.exact().items()))
    plain = exact - data["b"] if kind is Forward else exact
    np.testing.assert_allclose(peer.product(case, data)(), plain, rtol=1e-5, atol=1e-5, err_msg=name)
    run = peer.prepare(case, data)
    assert run.time(20).ns > 0
    assert run.outputs() == {}
    assert peer.prepare(questions.cases(["forward"], GRID)[0], {}) is None
    monkeypatch.delitem(sys.modules, "fcdense.bench.peers.cuda_cupy")


@pytest.fixture
def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The peer for PyTorch on GPUs, which finds one."""
    torch = pytest.importorskip("torch")
    with monkeypatch.context() as patch:  # no longer: where PyTorch is built for CUDA, its optimizers would ask the GPU
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return importlib.import_module("fcdense.bench.peers.cuda_torch")


@pytest.mark.parametrize("what", ["copy", "adamw"])
def test_passes_of_torch(on_the_gpu: ModuleType, what: str) -> None:
    case = Pass(what, 1000)
    run = on_the_gpu.passes(case, case.data(), on="cpu")
    run.time(case.steps)
    error = max_error(run.outputs(), case.exact())
    assert isinstance(error, float)
    assert error <= (case.tolerance or 0.0)


def test_a_step_is_warmed_up_captured_and_replayed(on_the_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stream and a graph that note what they are asked."""
    compiled = importlib.import_module("fcdense.bench.peers.cuda_torch_compile")
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def within(*given: Any, stream: Any = None) -> Iterator[None]:
        events.append("capture" if stream else "on side")
        yield
        events.append("end")

    cuda = {"Stream": Stream, "current_stream": lambda: Stream("main"), "stream": within, "graph": within}
    for name, fake in cuda.items():
        monkeypatch.setattr(compiled.torch.cuda, name, fake)
    graph = SimpleNamespace(replay=lambda: events.append("replay"))
    monkeypatch.setattr(compiled.torch.cuda, "CUDAGraph", lambda: graph)
    run = compiled.in_a_graph(lambda: events.append("step"))
    for _ in range(5):
        run()
    warm_up = ["side waits for main", "on side", "step", "end", "main waits for side"]
    assert events == [*warm_up, *warm_up, "capture", "step", "end", "replay", "replay", "replay"]
