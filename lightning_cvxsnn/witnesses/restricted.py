"""The restricted master programme of column generation, and the path of penalties it is solved at."""

import math
from dataclasses import replace

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.patterns import SpikeDictionary

_TOLERANCE = 0.1  # relative gap of a solve


class RestrictedMaster:
    """The programme over the columns in use, solved again whenever these change.

    Args:
        problem: The programme. Its dictionary is not used; its held-out rows are not fitted.
    """

    def __init__(self, problem: CapturedProgramme) -> None:
        self.problem = problem
        self.fitted = ~problem.held_out

    def solve(self, columns: SpikeDictionary, rho: float, start: Solution | None) -> Solution:
        """The solution over ``columns``, from a point whose columns are the first of these."""
        penalty = Penalty(rho * columns.shape[1] ** 0.5, 1.0)
        return replace(self.problem, dictionary=columns).solve(
            penalty, _TOLERANCE, None if start is None else start.point, self.fitted
        )

    def largest_rho(self, columns: SpikeDictionary) -> float:
        """The penalty above which none of ``columns`` is used; zero if no fitted row differs from another."""
        return replace(self.problem, dictionary=columns).largest_rho(self.fitted)

    def held_out_loss(self, columns: SpikeDictionary, solution: Solution) -> float:
        """The loss of a solution on the rows that are not fitted."""
        return self.problem.held_out_loss(columns.rows(self.problem.held_out) @ solution.coef + solution.intercept)


class RhoPath:
    """Penalties that fall geometrically, and wait where the loss on the held-out rows does not fall with them.

    Args:
        first: The largest.
        last: The smallest.
        rounds: Penalties from one to the other, both included.

    Attributes:
        rho: The present penalty.
    """

    def __init__(self, first: float, last: float, rounds: int) -> None:
        self.rho, self._last = first, last
        self._factor = (last / first) ** (1 / max(rounds - 1, 1))
        self._best_loss, self._falling = math.inf, True

    @property
    def ended(self) -> bool:
        """Whether this is the last penalty."""
        return self.rho <= self._last

    @property
    def moving(self) -> bool:
        """Whether the next penalty is another one."""
        return self._falling and not self.ended

    def judge(self, loss: float) -> None:
        """Let the penalty fall if ``loss``, of the held-out rows, is smaller than any before."""
        self._falling = loss < self._best_loss
        self._best_loss = min(loss, self._best_loss)

    def advance(self) -> None:
        """To the next penalty."""
        if self._falling:
            self.rho *= self._factor
