"""What a solve starts from, what ends it, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_cvxsnn.convex.arguments import real_number, whole_number

__all__ = ["Limits", "Point", "Solution"]


@dataclass(frozen=True, eq=False)
class Point:
    """A point to start a solve from.

    Attributes:
        coef: ``[P', C]``; the dictionary may have grown to P columns since.
        intercept: ``[C]``.
        dual_point: ``[n, C]``. ``None``, or one of other rows: none is known.
    """

    coef: Tensor
    intercept: Tensor
    dual_point: Tensor | None = None


@dataclass(frozen=True)
class Limits:
    """What ends a solve.

    Attributes:
        gap_tolerance: Gap to reach, relative to the objective of the best constant predictor.
        max_iterations: Of whichever algorithm runs; ``None``: its own default.
        max_seconds: Wall-clock time; ``None``: no limit.

    Raises:
        ValueError: On construction, for a value that is negative or NaN.
        TypeError: On construction, for a value that is no number.
    """

    gap_tolerance: float = 1e-6
    max_iterations: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gap_tolerance", real_number(self.gap_tolerance, "gap_tolerance"))
        if self.max_iterations is not None:
            object.__setattr__(self, "max_iterations", whole_number(self.max_iterations, "max_iterations"))
        if self.max_seconds is not None:
            object.__setattr__(self, "max_seconds", real_number(self.max_seconds, "max_seconds"))
        if not math.isfinite(self.gap_tolerance) or self.gap_tolerance < 0:
            raise ValueError(f"gap_tolerance is {self.gap_tolerance}; expected a finite number >= 0, such as 1e-6.")
        if self.max_iterations is not None and self.max_iterations < 0:
            raise ValueError(
                f"max_iterations is {self.max_iterations}; expected an integer >= 0, or None for the default."
            )
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; expected a number >= 0, or None for no limit.")


@dataclass(frozen=True, eq=False)
class Solution:
    """A point of the programme and the proof of how good it is.

    Attributes:
        coef: ``[P, C]`` float64, the transpose of ``nn.Linear.weight``; rows of unused columns are exactly zero.
        intercept: ``[C]`` float64; zeros if it was not fitted.
        dual_point: ``[n, C]`` float64, dual feasible; ``certificate`` reproduces ``dual`` from it.
        primal: Objective at ``coef`` and ``intercept``, float64.
        dual: Lower bound on the optimum.
        gap: ``primal - dual``.
        converged: Whether ``gap`` is within the tolerance asked for.
        iterations: Iterations of ``algorithm``, whose cost differs: Newton iterations, interior point iterations of all
            outputs together, iterations of CVXPY's solver.
        seconds: Wall-clock time of the solve, checks and certificate included.
        algorithm: Name of the algorithm that ran.
        device: Device it ran on, such as ``"cpu"``.
        work: Multiply-adds: products with the dictionary, Hessians and Cholesky factors. The same on every machine, and
            comparable between algorithms; those inside CVXPY's solver are not seen.
    """

    coef: Tensor
    intercept: Tensor
    dual_point: Tensor
    primal: float
    dual: float
    gap: float
    converged: bool
    iterations: int
    seconds: float
    algorithm: str
    device: str
    work: int = 0

    @property
    def point(self) -> Point:
        """What another solve may start from."""
        return Point(self.coef, self.intercept, self.dual_point)
