"""What every algorithm is given, and what it gives back."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_cvxsnn.convex.losses import SmoothLoss
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point

__all__ = ["Algorithm", "Minimum", "StoppingRule", "smooth"]


@dataclass(frozen=True)
class StoppingRule:
    """What ends an algorithm.

    Attributes:
        tolerance: Absolute duality gap to reach.
        max_iterations: ``None``: the algorithm's own limit.
        deadline: Value of ``time.perf_counter()`` after which no iteration starts.
    """

    tolerance: float
    max_iterations: int | None = None
    deadline: float = math.inf

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.perf_counter() > self.deadline


@dataclass(frozen=True, eq=False)
class Minimum:
    """What an algorithm found.

    Attributes:
        coef: ``[p, C]``.
        intercept: ``[C]``.
        dual_point: ``[n, C]``; the certificate makes it feasible. ``None``: none is better than the residuals.
        iterations: As the algorithm counts them.
        algorithm: Name of the algorithm.
    """

    coef: Tensor
    intercept: Tensor
    dual_point: Tensor | None
    iterations: int
    algorithm: str


class Algorithm(Protocol):
    """A way to solve reduced programmes."""

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Whether the loss and the penalty offer what the algorithm requires, and the size suits it."""
        ...

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme.

        Args:
            programme: The reduced programme.
            penalty: Its penalty.
            start: Where to start: coefficients ``[p, C]``, intercept ``[C]``, dual point ``[n, C]`` if one is known.
            stop: When to stop.
        """
        ...


def smooth(programme: ReducedProgramme) -> SmoothLoss:
    """The programme's loss, for algorithms that ask for its curvature.

    Raises:
        ValueError: It has none.
    """
    if not isinstance(programme.loss, SmoothLoss):
        raise ValueError(f"loss is {programme.loss.name!r}; expected one with a curvature, such as 'cross_entropy'.")
    return programme.loss
