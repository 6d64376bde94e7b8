"""Devices and peers as candidates."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from fcdense import backends
from fcdense.backends import Probe
from fcdense.bench import candidates, questions
from fcdense.bench.candidates import DeviceCandidate, PeerCandidate, PeerError, find, peer_names, serve
from fcdense.bench.cases import Grid
from fcdense.bench.runner import max_error, reference
from fcdense.errors import DeviceError, UnknownNameError

GRID = Grid(sizes=((9, 8, 7),), networks=((8, 6, 5),), batches=(9,))


@pytest.fixture(scope="module")
def peer() -> Iterator[PeerCandidate]:
    """The NumPy peer in its process."""
    candidate = PeerCandidate("numpy")
    yield candidate
    candidate.close()


@pytest.mark.parametrize("question", ["forward", "backward", "train"])
def test_a_peer_computes_the_same_from_the_same_data(peer: PeerCandidate, question: str) -> None:
    (case,) = questions.cases([question], GRID)
    assert peer.prepare(case)
    assert peer.time(1) > 0
    error = max_error(peer.outputs(), reference(case))
    assert error is not None
    assert 0.0 < error < 2e-6
    assert peer.time(50) > peer.time(1), "time is taken over all calls"


def test_a_peer_may_lack_a_case(peer: PeerCandidate) -> None:
    (case,) = questions.cases(["forward"], Grid(sizes=((2, 2, 2),), activation="gelu"))
    assert not peer.prepare(case)
    (case,) = questions.cases(["forward"], Grid(sizes=((2, 2, 2),)))
    assert peer.prepare(case), "the next one is served"


def test_a_peer_tells_its_version(peer: PeerCandidate) -> None:
    assert peer.versions == {"numpy": np.__version__}


def test_a_peer_that_cannot_be_imported() -> None:
    ours, theirs = multiprocessing.Pipe()
    serve("fcdense.bench.peers.not_there", theirs)
    answer = ours.recv()
    assert isinstance(answer, PeerError)
    assert "ModuleNotFoundError" in str(answer)


def test_a_peer_that_dies() -> None:
    candidate = PeerCandidate("numpy")
    candidate._process.kill()
    candidate._process.join()
    with pytest.raises(PeerError, match="ended without an answer"):
        candidate.time(1)
    candidate.close()


def test_peers_are_files() -> None:
    assert "numpy" in peer_names()
    with pytest.raises(UnknownNameError, match="Unknown peer 'numpi'"):
        find(["cpu"], ["numpi"])


def test_a_device_is_a_candidate() -> None:
    candidate = DeviceCandidate(backends.device("cpu"))
    (case,) = questions.cases(["forward"], GRID)
    assert candidate.name == "cpu"
    assert candidate.prepare(case)
    assert candidate.time(2) > 0
    assert candidate.outputs()["y"].shape == (9, 7)
    candidate.close()


def test_auto_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = (Probe("driver", True, "1 GPU"), Probe("cupy", False, "CuPy is not installed."))
    monkeypatch.setattr(candidates.backends, "cuda_probes", lambda: probes)
    found, missing = find(["auto"], [])
    assert [candidate.name for candidate in found] == ["cpu"]
    assert missing == {"cuda": "probe 'cupy' failed: CuPy is not installed."}


def test_a_device_named_twice_is_measured_once() -> None:
    found, missing = find(["cpu", "reference", "cpu"], [])
    assert [candidate.name for candidate in found] == ["cpu", "reference"]
    assert missing == {}


@pytest.mark.skipif(backends.cuda_probes()[-1].passed, reason="there is a GPU")
def test_an_explicit_gpu_is_an_error_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match="probe '"):
        find(["cpu", "cuda"], [])


@pytest.mark.gpu
def test_auto_finds_the_gpu() -> None:
    found, missing = find(["auto"], [])
    assert [candidate.name for candidate in found] == ["cpu", "cuda:0"]
    assert missing == {}
