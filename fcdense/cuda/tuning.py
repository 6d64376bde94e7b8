"""Measuring which kernel serves a product best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np

from fcdense import activations
from fcdense.arena import Array
from fcdense.backends.cuda import CudaBackend
from fcdense.backends.programs import epilogue
from fcdense.cuda.driver import Driver
from fcdense.cuda.graph import Recorded
from fcdense.cuda.plan import Choice, Plan, Problem
from fcdense.cuda.product import SUM
from fcdense.log import logger
from fcdense.precision import DEFAULT, TF32, use_precision

ROUNDS = 7
"""How often each candidate has its turn; the median counts."""
SECONDS = 2e-3
"""Of one turn."""
IN_TURN = 256 << 20
"""Bytes of operands that are used in turn, so that none of them waits in the L2 cache, of up to 126 MB."""
MOST_IN_TURN = 256
"""Sets of operands: with fewer of them a layer of 784 x 512 and 256 rows, of 2 MB, would stay in the cache."""


def in_turn(nbytes: int) -> int:
    """How many sets of operands, of so many bytes each."""
    return max(1, min(MOST_IN_TURN, IN_TURN // max(nbytes, 1)))


class Measured(NamedTuple):
    """A candidate for a product, and its seconds."""

    choice: Choice
    seconds: float


class Noting(Plan):
    """Chooses as another plan does, and keeps the problems."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.problems: dict[str, Problem] = {}

    def choose(self, problem: Problem) -> Choice:
        """As the other plan."""
        self.problems[problem.bucket] = problem
        return self._plan.choose(problem)

    def choose_own(self, problem: Problem) -> Choice:
        """As the other plan."""
        return self._plan.choose_own(problem)

    def why(self, problem: Problem, choice: Choice) -> str:
        """As the other plan."""
        return self._plan.why(problem, choice)


class Only(Plan):
    """Chooses one thing, and where the library refuses, what the other plan has."""

    def __init__(self, choice: Choice, plan: Plan) -> None:
        self._choice, self._plan = choice, plan

    def choose(self, problem: Problem) -> Choice:
        """The one thing."""
        return self._choice

    def choose_own(self, problem: Problem) -> Choice:
        """As the other plan."""
        return self._plan.choose_own(problem)

    def why(self, problem: Problem, choice: Choice) -> str:
        """Somebody else's choice."""
        return "as asked for"


def measure(backend: CudaBackend, problem: Problem) -> list[Measured]:
    """All candidates for a problem, the fastest first, on random numbers; without those that cannot run here."""
    driver, recorded = backend.driver, Recorded(backend)
    products, plan = recorded.products, backend.products.plan
    operands = list(_operands(driver, problem))
    program = epilogue(activations.get("gelu"), True, True) if problem.has_program else SUM

    def all_operands() -> None:
        for a, b, inputs, outs in operands:
            products.run(a, b, program, inputs, outs)
            recorded.temporaries.take_back()

    turns: list[tuple[Choice, Callable[[], None], int, list[float]]] = []
    for choice in plan.candidates(problem):
        products.plan = Only(choice, plan)
        try:
            with use_precision(TF32 if problem.dtype == TF32 else DEFAULT.name):
                all_operands()  # numba compiles and loads its kernel at the first call, which a recording may refuse
                replay = driver.record(all_operands)  # from Python a launch takes longer than a small product
            if products.served == str(choice):
                replay()
                turns.append((choice, replay, max(1, math.ceil(SECONDS / max(driver.timed(replay), 1e-7))), []))
        except Exception as error:  # a library, and numba's compiler, have their own for what they cannot do after all
            logger.warning("%s is left out: %s", choice, error)
    for _ in range(ROUNDS):
        for _, replay, count, seconds in turns:
            seconds.append(driver.timed(partial(_repeat, replay, count)) / (count * len(operands)))
    return sorted((Measured(choice, median(seconds)) for choice, _, _, seconds in turns), key=lambda m: m.seconds)


def _repeat(run: Callable[[], None], count: int) -> None:
    for _ in range(count):
        run()


def _operands(driver: Driver, problem: Problem) -> Iterator[tuple[Array, Array, tuple[Array, ...], tuple[Array, ...]]]:
    """Sets of operands that lie as those of the problem."""
    dtype, stored = np.dtype(np.float32 if problem.dtype == TF32 else problem.dtype), np.dtype(problem.out)
    rows, columns, depth = problem[1:4]
    outs = 2 if problem.has_program else 1
    nbytes = (rows * depth + depth * columns) * dtype.itemsize + outs * rows * columns * stored.itemsize
    rng = np.random.default_rng(0)

    def random(height: int, width: int, along_width: bool) -> Array:
        lines, length = (height, width) if along_width else (width, height)
        pitch = length  # from line to line, so that as much may be read at once as in the problem
        while math.gcd(16, pitch * dtype.itemsize) != (problem.copy or 16):
            pitch += 1
        made = driver.upload(rng.standard_normal((lines, pitch), np.float32).astype(dtype))[:, :length]
        return made if along_width else made.T

    for _ in range(in_turn(nbytes)):
        a, b = random(rows, depth, problem.a_along_depth), random(depth, columns, not problem.b_along_depth)
        bias = (driver.upload(rng.standard_normal(columns, np.float32).astype(dtype)),) if problem.has_program else ()
        yield a, b, bias, tuple(driver.empty((rows, columns), stored) for _ in range(outs))
