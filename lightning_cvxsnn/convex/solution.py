"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Solution"]


@dataclass(frozen=True, eq=False)
class Solution:
    """A point of the L1 programme and the proof of how good it is.

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
