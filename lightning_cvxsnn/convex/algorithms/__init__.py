"""How reduced programmes are minimised, and which algorithm takes which losses and penalties."""

from __future__ import annotations

from lightning_cvxsnn.convex.algorithms.base import Algorithm, Minimum, StoppingRule
from lightning_cvxsnn.convex.algorithms.face import FaceNewton
from lightning_cvxsnn.convex.algorithms.hinge import ColumnGeneration
from lightning_cvxsnn.convex.algorithms.multipliers import RidgeMultipliers
from lightning_cvxsnn.convex.algorithms.newton import WorkingSetNewton
from lightning_cvxsnn.convex.algorithms.normal import NormalEquations
from lightning_cvxsnn.convex.algorithms.reference import CvxpyReference
from lightning_cvxsnn.convex.algorithms.ridge import RidgeNewton
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme

__all__ = [
    "Algorithm", "ColumnGeneration", "CvxpyReference", "FaceNewton", "Minimum", "NormalEquations", "RidgeMultipliers",
    "RidgeNewton", "StoppingRule", "WorkingSetNewton", "algorithm_for",
]  # fmt: skip


_OWN: tuple[Algorithm, ...] = (
    FaceNewton(),
    WorkingSetNewton(),
    NormalEquations(),
    RidgeNewton(),
    ColumnGeneration(),
    RidgeMultipliers(),
)


def algorithm_for(programme: ReducedProgramme, penalty: ElasticNet) -> Algorithm:
    """The first of the package's own algorithms that takes this programme with this penalty.

    Raises:
        ValueError: None takes them.
    """
    for algorithm in _OWN:
        if algorithm.takes(programme, penalty):
            return algorithm
    raise ValueError(
        f"No algorithm takes loss {programme.loss.name!r} with the penalty {type(penalty).__name__}. Choose "
        "another loss, or solver='cvxpy'."
    )
