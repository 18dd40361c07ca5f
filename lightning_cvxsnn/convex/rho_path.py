"""The regularisation path: which values of rho are solved, when it ends, and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lightning_cvxsnn.convex.arguments import real_number, whole_number
from lightning_cvxsnn.convex.inputs import check_rho
from lightning_cvxsnn.convex.solution import Solution

__all__ = ["Path", "Walk", "check_rhos", "geometric"]

_RISES = 3  # of the held-out loss since its smallest value, after which the path ends
_RISE = 0.02  # share of the first loss by which it may exceed the smallest
_GAINED = 0.1  # share of the first loss that must be gained before a small gain ends the path


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions for decreasing rho, fitted on some rows and scored on the others.

    Attributes:
        rhos: Values of rho, from the largest down; only those that were solved.
        held_out_losses: ``mean_loss`` on the held-out rows, one for each rho.
        solutions: Solutions on the fitted rows (``dual_point`` has one row for each fitted row).
        best: Index of the smallest held-out loss (the first of equals: the largest rho).
        settled: Whether the path ended by ``least_gain`` or ``max_work``: not much, or not cheaply, is to be gained
            beyond.
    """

    rhos: list[float]
    held_out_losses: list[float]
    solutions: list[Solution]
    best: int
    settled: bool = False

    @property
    def rho(self) -> float:
        """The rho with the smallest held-out loss."""
        return self.rhos[self.best]

    @property
    def edge(self) -> Literal["largest", "smallest"] | None:
        """Whether :attr:`rho` is the first or the last value that was solved, and a better one may lie beyond."""
        if self.best == 0:
            return "largest"
        return "smallest" if self.best == len(self.rhos) - 1 and not self.settled else None

    @property
    def solution(self) -> Solution:
        """The solution at :attr:`rho`."""
        return self.solutions[self.best]

    @property
    def work(self) -> int:
        """Multiply-adds of all solves."""
        return sum(solution.work for solution in self.solutions)


class Walk:
    """A path that is being followed.

    Args:
        least_gain: Share of what has been gained that a value must add for the path to go on.
        max_work: Multiply-adds of all solves, after which it ends.
    """

    def __init__(self, least_gain: float = 0.0, max_work: float = math.inf) -> None:
        if not 0 <= real_number(least_gain, "least_gain") < 1:
            raise ValueError(f"least_gain is {least_gain}; expected a share in [0, 1), such as 0.1.")
        if not real_number(max_work, "max_work") >= 0:
            raise ValueError(f"max_work is {max_work}; expected a number of multiply-adds >= 0.")
        self.least_gain, self.max_work = least_gain, max_work
        self.rhos: list[float] = []
        self.losses: list[float] = []
        self.solutions: list[Solution] = []
        self.best = self.rises = 0
        self.settled = False

    def add(self, rho: float, held_out_loss: float, solution: Solution) -> None:
        """Append a value."""
        losses = self.losses
        if self.least_gain and losses and losses[0] - losses[-1] > _GAINED * losses[0]:
            self.settled = losses[-1] - held_out_loss < self.least_gain * (losses[0] - held_out_loss)
        self.rises += bool(losses) and held_out_loss > losses[-1]
        self.rhos.append(rho)
        losses.append(held_out_loss)
        self.solutions.append(solution)
        self.settled |= self.path().work > self.max_work
        if held_out_loss < losses[self.best]:
            self.best, self.rises = len(losses) - 1, 0

    @property
    def ended(self) -> bool:
        """Whether too little was gained or too much done, or the loss has risen often or far enough since the best."""
        risen = self.losses[-1] - self.losses[self.best] > _RISE * self.losses[0]
        return self.rises >= _RISES or risen or self.settled

    def path(self) -> Path:
        """The values so far."""
        return Path(self.rhos, self.losses, self.solutions, self.best, self.settled)


def check_rhos(rhos: Sequence[float] | None, num_values: int, ratio: float) -> list[float]:
    """The given sequence, empty for ``None``; refuses one that does not decrease, and a bad geometric one."""
    if whole_number(num_values, "num_values") < 1:
        raise ValueError(f"num_values is {num_values}; expected an integer >= 1.")
    if not 0 < real_number(ratio, "ratio") < 1:
        raise ValueError(f"ratio is {ratio}; expected a number strictly between 0 and 1, such as 1e-3.")
    if rhos is None:
        return []
    if isinstance(rhos, str) or not isinstance(rhos, Iterable):
        raise TypeError(f"rhos is a {type(rhos).__name__}; expected a sequence of numbers, such as [0.1, 0.01].")
    values = [check_rho(rho) for rho in rhos]
    if not values or any(later >= earlier for earlier, later in pairwise(values)):
        raise ValueError(f"rhos is {values}; expected at least one value, each smaller than the one before.")
    return values


def geometric(largest: float, ratio: float, count: int) -> list[float]:
    """Values from the largest down to ``ratio`` times it."""
    if largest <= 0:
        return [1.0]  # W = 0 is optimal whatever rho is
    if count == 1:
        return [largest]
    return [largest * math.exp(math.log(ratio) * k / (count - 1)) for k in range(count)]
