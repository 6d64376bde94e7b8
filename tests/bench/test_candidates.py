"""Devices and peers as candidates."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from fcdense import backends
from fcdense.backends import Device, Probe
from fcdense.backends.cpu import CpuBackend
from fcdense.bench import candidates, questions
from fcdense.bench.candidates import Candidate, CandidateError, Server, find, own, peer_names, serve, variants
from fcdense.bench.cases import Case, Grid
from fcdense.bench.questions import launch, products
from fcdense.bench.runner import max_error, reference
from fcdense.errors import DeviceError, UnknownNameError

GRID = Grid(sizes=((9, 8, 7),), networks=((8, 6, 5),), batches=(9,))


@pytest.fixture(scope="module")
def peer() -> Iterator[Candidate]:
    """The NumPy peer in its process."""
    with closing(Candidate("numpy")) as candidate:
        candidate.wait()
        yield candidate


@pytest.mark.parametrize("question", ["forward", "backward", "train", "predict"])
def test_a_peer_computes_the_same_from_the_same_data(peer: Candidate, question: str) -> None:
    (case,) = questions.cases([question], GRID)
    assert peer.prepare(case)
    assert peer.time(case.steps).ns > 0
    error = max_error(peer.outputs(), reference(case))
    assert isinstance(error, float)
    assert 0.0 < error < 2e-6
    assert peer.time(50).ns > peer.time(1).ns, "time is taken over all calls"


def test_a_peer_may_lack_a_case(peer: Candidate) -> None:
    (case,) = questions.cases(["forward"], Grid(sizes=((2, 2, 2),), activations=("gelu",)))
    assert not peer.prepare(case)
    (case,) = questions.cases(["forward"], Grid(sizes=((2, 2, 2),)))
    assert peer.prepare(case), "the next one is served"


def test_a_peer_tells_its_version(peer: Candidate) -> None:
    assert peer.versions == {"numpy": np.__version__}


def test_a_peer_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "peer_names", lambda: ["not_there"])
    ours, theirs = multiprocessing.Pipe()
    serve("not_there", theirs)
    answer = ours.recv()
    assert isinstance(answer, CandidateError)
    assert "ModuleNotFoundError" in str(answer)


def test_a_request_that_fails_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(server: Server, case: object) -> bool:
        raise MemoryError("too large")

    monkeypatch.setattr(Server, "prepare", fails)
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=("cpu", theirs))
    thread.start()
    assert ours.recv() == ({}, (Case,))
    for _ in range(2):
        ours.send(("prepare", None))
        answer = ours.recv()
        assert isinstance(answer, CandidateError)
        assert str(answer) == "MemoryError: too large"
    ours.close()
    thread.join()


def test_a_peer_that_dies() -> None:
    candidate = Candidate("numpy")
    candidate._process.kill()
    candidate._process.join()
    with pytest.raises(CandidateError, match="ended without an answer"):
        candidate.wait()
    candidate.close()


def compile_for_ever(name: str, connection: Connection) -> None:
    """A candidate that starts another process, and does not answer."""
    os.setpgid(0, 0)
    compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    connection.send(({"compiler": str(compiler.pid)}, (Case,)))
    time.sleep(600)


def test_what_a_candidate_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Candidate("numpy")) as candidate:
        candidate.wait()
        assert os.getpgid(candidate._process.pid or 0) == candidate._process.pid
    monkeypatch.setattr("fcdense.bench.candidates.serve_alone", compile_for_ever)
    with closing(Candidate("numpy")) as candidate:
        candidate.wait()
        compiler = int(candidate.versions["compiler"])
        os.kill(compiler, 0)
        candidate.patience = 0.1
        with pytest.raises(CandidateError, match="its time is over"):
            candidate.note()
    for _ in range(100):
        status = Path(f"/proc/{compiler}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the compiler goes on")


def test_one_that_does_not_answer_is_ended_and_begins_anew() -> None:
    (case,) = questions.cases(["predict"], GRID)
    with closing(Candidate("numpy")) as candidate:
        candidate.wait()
        first = candidate._process.pid
        assert candidate.prepare(case)
        assert candidate._process.pid == first
        candidate.patience = 0.2
        with pytest.raises(CandidateError, match="'numpy': its time is over"):
            candidate.time(10**9)
        assert candidate.patience < 0.0
        with pytest.raises(CandidateError, match="'numpy': its time is over"):
            candidate.prepare(case)
        candidate.kinds = (launch.Launch,)
        assert not candidate.prepare(case), "one that has no such case misses none"
        candidate.patience = math.inf
        assert candidate.prepare(case)
        assert candidate._process.pid != first
        assert candidate.kinds == (Case,)
        assert candidate.note() == ""
        candidate.time(case.steps)
        assert max_error(candidate.outputs(), reference(case)) < 2e-6  # type: ignore[operator]


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (["cpu"], ["cpu eager", "numpy"]),
        (["cuda:0"], ["cuda_torch"]),
        (["cuda:0", "cuda:0 eager"], ["cuda_torch"]),
        (["cpu", "cuda:0"], ["cpu eager", "numpy", "cuda_torch"]),
    ],
)
def test_all_peers_are_those_for_the_devices(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], names: list[str]
) -> None:
    monkeypatch.setattr(candidates, "peer_names", lambda: ["numpy", "cuda_torch"])
    monkeypatch.setattr(candidates, "variants", lambda missing: ["cpu eager"])
    assert candidates.all_peers(devices, {}) == names


def test_no_data_are_drawn_for_what_a_peer_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("numpy")
    monkeypatch.setattr(server, "kinds", (products.Product,))
    assert not server.prepare(launch.Launch(launch.HOW[0]))
    with pytest.raises(AssertionError):
        _ = server.run


def test_peers_for_gpus_come_last() -> None:
    on_gpu = [candidates.is_for_gpu(name) for name in peer_names()]
    assert on_gpu == sorted(on_gpu)
    assert any(on_gpu)


def found_names(devices: list[str], others: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the candidates, whose processes end again."""
    found, missing = find(devices, others)
    for candidate in found:
        candidate.close()
    return [candidate.name for candidate in found], missing


def test_peers_are_files() -> None:
    assert "numpy" in peer_names()
    with pytest.raises(UnknownNameError, match="Unknown peer 'numpi'"):
        find(["cpu"], ["numpi"])


def test_all_peers_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "peer_names", lambda: ["numpy", "not_there"])
    names, missing = found_names(["cpu"], ["all"])
    assert names == ["cpu", *variants({}), "numpy"]
    assert "Candidate 'not_there'" in missing["not_there"]
    assert "fcdense[peers]" in missing["not_there"]
    with pytest.raises(CandidateError, match="not_there"):
        find(["cpu"], ["not_there"])


def test_fcdense_is_compared_with_less_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled(CpuBackend):
        """What Numba would bring."""

    missing: dict[str, str] = {}
    monkeypatch.setattr(candidates.backends, "device", lambda name: Device("cpu", backend=CpuBackend()))
    assert variants(missing) == ["cpu eager"]
    assert "without it" in missing["cpu without numba"]
    monkeypatch.setattr(candidates.backends, "device", lambda name: Device("cpu", backend=Compiled()))
    assert variants({}) == ["cpu eager", "cpu without numba"]


@pytest.mark.parametrize("name", ["cpu", "cpu eager", "cpu without numba", "reference"])
@pytest.mark.parametrize("question", ["train", "predict"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_devices_and_their_variants_are_candidates(name: str, question: str, optimizer: str) -> None:
    grid = Grid(networks=((8, 7, 5),), batches=(9,), activations=("gelu",), optimizers=(optimizer,))
    (case,) = questions.cases([question], grid)
    run = own(name)(case, case.data())
    assert run is not None
    assert run.time(case.steps).ns > 0
    error = max_error(run.outputs(), reference(case))
    assert isinstance(error, float)
    assert error < 2e-6


def test_a_layer_has_nothing_to_capture() -> None:
    (case,) = questions.cases(["forward"], GRID)
    assert own("cpu eager")(case, case.data()) is None
    assert own("cpu")(case, case.data()) is not None


def test_auto_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = (Probe("driver", True, "1 GPU"), Probe("cupy", False, "CuPy is not installed."))
    monkeypatch.setattr(candidates.backends, "cuda_probes", lambda: probes)
    assert found_names(["auto"], []) == (["cpu"], {"cuda": "probe 'cupy' failed: CuPy is not installed."})


def test_a_device_named_twice_is_measured_once() -> None:
    assert found_names(["cpu", "reference", "cpu", "cpu eager"], []) == (["cpu", "reference", "cpu eager"], {})


@pytest.mark.skipif(backends.cuda_probes()[-1].passed, reason="there is a GPU")
def test_an_explicit_gpu_is_an_error_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match="probe '"):
        find(["cpu", "cuda eager"], [])


@pytest.mark.gpu
def test_auto_finds_the_gpu() -> None:
    assert found_names(["auto"], []) == (["cpu", "cuda:0"], {})
