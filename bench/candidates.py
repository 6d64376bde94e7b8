"""Candidates: who is measured. A candidate is one column of a table: a device of fcdense, or another library."""

from __future__ import annotations

import math
import multiprocessing
import os
import pkgutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from fcdense import backends
from fcdense.backends.cpu import CpuBackend
from fcdense.errors import FcdenseError, unknown_name

from . import memory, peers
from .cases import Arrays, Case, Lap, Run

EAGER, PLAIN = " eager", " without numba"
ON_GPU = "cuda_"
"""How the names of peers begin that compute on a GPU."""
OVER = "its time is over; --append adds what is missing."
SECONDS_TO_LEAVE = 5.0
"""Of a process, until it is killed."""

Prepare = Callable[[Case, Arrays], Run | None]


class CandidateError(FcdenseError, RuntimeError):
    """A candidate that is not installed, or that failed."""


class Candidate:
    """A process of its own that runs cases, one after another: `prepare` a case, then `time` it as often as wanted.

    So two libraries' threads and allocators never meet. The process starts at once; `versions` waits for it.

    Attributes
    ----------
    name : str
        Heading of its columns.
    versions : dict of str
        What to note in the results beside the versions that are always there.
    kinds : tuple of type
        The only cases that it may have.
    patience : float
        Seconds that its answers may still take, all of them together; then the process is killed.
    """

    def __init__(self, name: str, patience: float = math.inf) -> None:
        self.name = name
        self.versions: dict[str, str] = {}
        self.kinds: tuple[type[Case], ...] = (Case,)
        self.patience = patience
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_alone, args=(self.name, theirs), daemon=True)
        self._process.start()
        self._has_failed = False
        theirs.close()

    def wait(self) -> None:
        """Wait until the process has imported what it needs.

        Raises
        ------
        CandidateError
            It could not.
        """
        self.versions, self.kinds = self._answer()

    def prepare(self, case: Case) -> bool:
        """Take up a case in place of the last one. False: this candidate does not have it.

        After a failure it is a new process that does, for a GPU refuses a process all that follows a failed kernel.
        """
        if self.patience <= 0.0:
            if not isinstance(case, self.kinds):
                return False
            raise CandidateError(f"Candidate '{self.name}': {OVER}")
        if self._has_failed:
            self.close()
            self._start()
            self.wait()
        return bool(self._ask("prepare", case))

    def note(self) -> str:
        """What serves the case."""
        return str(self._ask("note", None))

    def time(self, calls: int) -> Lap:
        """Time this many calls."""
        return Lap(*self._ask("time", calls))

    def outputs(self) -> Arrays:
        """The results of the calls so far."""
        arrays: Arrays = self._ask("outputs", None)
        return arrays

    def resident(self) -> int:
        """Bytes of memory that the process holds."""
        return int(self._ask("resident", None))

    def peak(self, calls: int) -> int:
        """Bytes of memory that the process holds at most during this many calls."""
        return int(self._ask("peak", calls))

    def dismiss(self) -> None:
        """Let the process end, at its next look at the pipe."""
        self._connection.close()

    def close(self) -> None:
        """End the process."""
        self.dismiss()
        self._process.join(SECONDS_TO_LEAVE)
        self._kill()
        self._process.join()

    def _kill(self) -> None:
        """End the process and what it has started: compilers would go on and disturb the others."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()

    def _ask(self, request: str, argument: object) -> Any:
        with suppress(OSError):  # a process that is gone does not answer either
            self._connection.send((request, argument))
        return self._answer()

    def _answer(self) -> Any:
        start = time.monotonic()
        try:
            if self._connection.poll(None if math.isinf(self.patience) else max(self.patience, 0.0)):
                answer = self._connection.recv()
            else:
                self._kill()
                answer = CandidateError(OVER)
        except (EOFError, OSError):
            self._has_failed = True
            raise CandidateError(
                f"Candidate '{self.name}' ended without an answer; its own message stands above."
            ) from None
        self.patience -= time.monotonic() - start
        if isinstance(answer, CandidateError):
            self._has_failed = True
            raise CandidateError(f"Candidate '{self.name}': {answer}")
        return answer


class Server:
    """A candidate's process: answers requests, each a method of this class, about the case it has taken up last."""

    def __init__(self, name: str) -> None:
        self.versions: dict[str, str] = {}
        self.kinds: tuple[type[Case], ...] = (Case,)
        if name in peer_names():
            peer = import_module(f"{peers.__name__}.{name}")
            self.versions, self._prepare = peer.VERSIONS, peer.prepare
            self.kinds = getattr(peer, "KINDS", (Case,))
        else:
            self._prepare = own(name)
        self._current: Run | None = None

    @property
    def run(self) -> Run:
        assert self._current is not None
        return self._current

    def prepare(self, case: Case) -> bool:
        """Take up `case`."""
        self._current = None  # its memory is free before the next case takes more
        if isinstance(case, self.kinds):  # no data are drawn for what a peer has not
            self._current = self._prepare(case, case.data())
        return self._current is not None

    def time(self, calls: int) -> tuple[int, float]:
        """A `Lap`."""
        return self.run.time(calls)

    def note(self, _: None) -> str:
        """What serves the case."""
        return self.run.note

    def outputs(self, _: None) -> Arrays:
        """Results."""
        return self.run.outputs()

    def resident(self, _: None) -> int:
        """Bytes now."""
        return memory.resident()

    def peak(self, calls: int) -> int:
        """Bytes at most during some calls."""
        return memory.peak(lambda: self.run.time(calls))


def serve_alone(name: str, connection: Connection) -> None:
    """`serve` as the first of a group of processes."""
    os.setpgid(0, 0)
    serve(name, connection)


def serve(name: str, connection: Connection) -> None:
    """Answer requests until the pipe closes; one that fails is answered with the error."""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            server = Server(name)
        except Exception as error:
            connection.send(failure(error))
            return
        connection.send((server.versions, server.kinds))
        while True:
            request, argument = connection.recv()
            try:
                answer = getattr(server, request)(argument)
            except Exception as error:
                answer = failure(error)
            connection.send(answer)


def failure(error: Exception) -> CandidateError:
    """`error` as the other process can read it: its class may exist here only."""
    return CandidateError(f"{type(error).__name__}: {error}")


def own(name: str) -> Prepare:
    """How fcdense prepares a case as the candidate of this name: a device, or a variant of one."""
    if name.endswith(EAGER):
        eager = backends.device(name.removesuffix(EAGER))
        return lambda case, data: case.prepare_eager(eager, data)
    device = backends.device("numpy" if name.endswith(PLAIN) else name)
    return lambda case, data: case.prepare(device, data)


def peer_names() -> list[str]:
    """The peers that there are, those for GPUs last."""
    return sorted((module.name for module in pkgutil.iter_modules(peers.__path__)), key=is_for_gpu)


def is_for_gpu(peer: str) -> bool:
    """Whether a peer computes on a GPU."""
    return peer.startswith(ON_GPU)


def find(devices: list[str], others: list[str], patience: float = math.inf) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates for these devices and peers (`others`), and what is not here with the reason.

    The device "auto" is the CPU and, where it works, the GPU. The peer "all" is each peer that is installed and
    computes on one of the devices, and fcdense on the CPU also without capture and without Numba.

    Raises
    ------
    DeviceError
        A device asked for by its name is not there.
    CandidateError
        A peer asked for by its name is not installed.
    UnknownNameError
        A peer that nobody has written.
    """
    missing: dict[str, str] = {}
    names: dict[str, None] = {}  # in order, each once
    for name in devices:
        if name != "auto":
            names[device_name(name)] = None
            continue
        names["cpu"] = None
        probe = backends.cuda_probes()[-1]
        if probe.passed:
            names[device_name("cuda")] = None
        else:
            missing["cuda"] = f"probe '{probe.name}' failed: {probe.detail}"
    optional, places = [], list(names)
    for name in others:
        if name == "all":
            optional += all_peers(places, missing)
        elif name in peer_names():
            names[name] = None
        else:
            unknown_name("peer", name, ["all", *peer_names()])
    started = [Candidate(name, patience) for name in {**names, **dict.fromkeys(optional)}]
    found = []
    try:
        for candidate in started:
            try:
                candidate.wait()
                found.append(candidate)
            except CandidateError as error:
                if candidate.name in names:
                    raise
                cure = "" if is_for_gpu(candidate.name) else " pip install 'fcdense[peers]' brings all peers."
                missing[candidate.name] = f"{error}{cure}"
    except BaseException:
        for candidate in started:
            candidate.close()
        raise
    return found, missing


def all_peers(names: list[str], missing: dict[str, str]) -> list[str]:
    """What the peer "all" stands for beside these devices."""
    on_gpu = [name.startswith("cuda") for name in names]
    found = [] if all(on_gpu) else variants(missing)
    return found + [name for name in peer_names() if is_for_gpu(name) in on_gpu]


def variants(missing: dict[str, str]) -> list[str]:
    """fcdense on the CPU in less than its best form; those that make no difference here are noted in `missing`."""
    if type(backends.device("cpu").backend) is not CpuBackend:
        return [f"cpu{EAGER}", f"cpu{PLAIN}"]
    missing[f"cpu{PLAIN}"] = "Numba is not used here: 'cpu' itself is without it."
    return [f"cpu{EAGER}"]


def device_name(name: str) -> str:
    """The full name of a device, of which a variant may be meant: "cuda" is "cuda:0".

    Raises
    ------
    DeviceError
        It is not there.
    """
    for ending in (EAGER, PLAIN):
        if name.endswith(ending):
            return backends.device(name.removesuffix(ending)).name + ending
    return backends.device(name).name
