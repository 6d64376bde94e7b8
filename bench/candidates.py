"""Candidates: who is measured. A candidate is one column of a table: a device of fcdense, or another library."""

from __future__ import annotations

import multiprocessing
import pkgutil
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from fcdense import backends
from fcdense.backends import Device
from fcdense.errors import FcdenseError, unknown_name

from . import peers
from .cases import Arrays, Case, Run


class PeerError(FcdenseError, RuntimeError):
    """A peer that is not installed, or that failed."""


class Candidate(ABC):
    """Runs cases, one after another: `prepare` a case, then `time` it as often as wanted.

    Attributes
    ----------
    name : str
        Heading of its columns.
    versions : dict of str
        What to note in the results beside the versions that are always there.
    """

    name: str
    versions: dict[str, str]

    @abstractmethod
    def prepare(self, case: Case) -> bool:
        """Take up a case in place of the last one. False: this candidate does not have it."""

    @abstractmethod
    def time(self, calls: int) -> int:
        """Nanoseconds for this many calls."""

    @abstractmethod
    def outputs(self) -> Arrays:
        """The results of the first call."""

    @abstractmethod
    def close(self) -> None:
        """Free what the candidate holds."""


class DeviceCandidate(Candidate):
    """fcdense on one of its devices, in this process."""

    def __init__(self, device: Device) -> None:
        self.name = device.name
        self.versions = {}
        self._device = device
        self._run: Run | None = None

    def prepare(self, case: Case) -> bool:
        self._run = None  # its memory is free before the next case takes more
        self._run = case.prepare(self._device, case.data())
        return True

    def time(self, calls: int) -> int:
        assert self._run is not None
        return self._run.time(calls)

    def outputs(self) -> Arrays:
        assert self._run is not None
        return self._run.outputs()

    def close(self) -> None:
        self._run = None


class PeerCandidate(Candidate):
    """Another library, in a process of its own: two libraries' threads and allocators never meet."""

    def __init__(self, name: str) -> None:
        if name not in peer_names():
            unknown_name("peer", name, peer_names())
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(f"{peers.__name__}.{name}", theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.versions = self._answer()

    def prepare(self, case: Case) -> bool:
        return bool(self._ask("prepare", case))

    def time(self, calls: int) -> int:
        return int(self._ask("time", calls))

    def outputs(self) -> Arrays:
        arrays: Arrays = self._ask("outputs", None)
        return arrays

    def close(self) -> None:
        self._connection.close()  # the peer reads the end of the pipe and leaves
        self._process.join()

    def _ask(self, request: str, argument: object) -> Any:
        with suppress(OSError):  # a peer that is gone does not answer either
            self._connection.send((request, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise PeerError(f"Peer '{self.name}' ended without an answer; its own message stands above.") from None
        if isinstance(answer, PeerError):
            raise PeerError(f"Peer '{self.name}': {answer}")
        return answer


def serve(module: str, connection: Connection) -> None:
    """The peer's process: answer requests until the pipe closes."""
    try:
        peer = import_module(module)
        connection.send({peer.__name__.rpartition(".")[2]: peer.VERSION})
        run: Run | None = None
        while True:
            request, argument = connection.recv()
            if request == "prepare":
                run = None
                run = peer.prepare(argument, argument.data())
                connection.send(run is not None)
            else:
                assert run is not None
                connection.send(run.time(argument) if request == "time" else run.outputs())
    except EOFError:
        return
    except Exception as error:
        connection.send(PeerError(f"{type(error).__name__}: {error}"))


def peer_names() -> list[str]:
    """The peers that there are."""
    return [module.name for module in pkgutil.iter_modules(peers.__path__)]


def find(devices: list[str], others: list[str]) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates for these devices and peers (`others`), and what is not here with the reason.

    "auto" is the CPU and, where it works, the GPU.

    Raises
    ------
    DeviceError
        A device asked for by its name is not there.
    PeerError
        A peer is not installed.
    """
    missing: dict[str, str] = {}
    wanted: list[str] = []
    for name in devices:
        if name != "auto":
            wanted.append(name)
            continue
        wanted.append("cpu")
        probe = backends.cuda_probes()[-1]
        if probe.passed:
            wanted.append("cuda")
        else:
            missing["cuda"] = f"probe '{probe.name}' failed: {probe.detail}"
    found: list[Candidate] = [DeviceCandidate(device) for device in dict.fromkeys(map(backends.device, wanted))]
    return [*found, *map(PeerCandidate, dict.fromkeys(others))], missing
