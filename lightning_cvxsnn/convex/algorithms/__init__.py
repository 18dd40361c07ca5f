"""How reduced programmes are minimised, and which algorithm takes which losses and penalties."""

from __future__ import annotations

from lightning_cvxsnn.convex.algorithms.base import Algorithm, Minimum, StoppingRule
from lightning_cvxsnn.convex.algorithms.hinge import ColumnGeneration
from lightning_cvxsnn.convex.algorithms.multipliers import RidgeMultipliers
from lightning_cvxsnn.convex.algorithms.newton import WorkingSetNewton
from lightning_cvxsnn.convex.algorithms.reference import CvxpyReference
from lightning_cvxsnn.convex.losses import LossFunction
from lightning_cvxsnn.convex.penalties import ElasticNet

__all__ = [
    "Algorithm", "ColumnGeneration", "CvxpyReference", "Minimum", "RidgeMultipliers", "StoppingRule",
    "WorkingSetNewton", "algorithm_for",
]  # fmt: skip


_OWN: tuple[Algorithm, ...] = (WorkingSetNewton(), ColumnGeneration(), RidgeMultipliers())


def algorithm_for(loss: LossFunction, penalty: ElasticNet) -> Algorithm:
    """The first of the package's own algorithms that takes this loss and this penalty.

    Raises:
        ValueError: None takes them.
    """
    for algorithm in _OWN:
        if algorithm.takes(loss, penalty):
            return algorithm
    raise ValueError(
        f"No algorithm takes loss {loss.name!r} with the penalty {type(penalty).__name__}. Choose another loss, or "
        "solver='cvxpy'."
    )
