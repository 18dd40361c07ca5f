"""The independent reference: the programme as CVXPY reads it, solved by Clarabel."""

from __future__ import annotations

import contextlib
import importlib
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point

__all__ = ["CvxpyReference"]


class CvxpyReference:
    """CVXPY with Clarabel.

    The outputs ``Z`` are variables tied to the coefficients by an equality; its multiplier is the dual point.
    """

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Any that have an expression."""
        return True

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme; ``start`` is not used. Zeros if the solver stops without a point.

        Raises:
            ImportError: CVXPY is not installed.
        """
        cp: Any = importlib.import_module("cvxpy")
        tensors = programme.matrix.to_dense(), programme.encoded, programme.weight
        matrix, target, weight = (tensor.cpu().numpy() for tensor in tensors)
        rows, columns = matrix.shape
        outputs = target.shape[1]
        z = cp.Variable((rows, outputs))
        w = cp.Variable((columns, outputs)) if columns else None
        b = cp.Variable((1, outputs)) if programme.fit_intercept else None
        fitted = cp.Constant(target * 0)
        if w is not None:
            fitted = fitted + matrix @ w
        if b is not None:
            fitted = fitted + cp.Constant(target[:, :1] * 0 + 1) @ b

        tie = z == fitted
        objective = programme.loss.expression(cp, z, target, weight)
        if w is not None:
            objective = objective + penalty.expression(cp, w)
        problem = cp.Problem(cp.Minimize(objective), [tie])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the certificate decides
            with contextlib.suppress(cp.SolverError):
                problem.solve(solver=cp.CLARABEL, **_options(stop))

        def read(value: Any, shape: tuple[int, ...]) -> Tensor:
            if value is None:
                return programme.encoded.new_zeros(shape)
            tensor = torch.as_tensor(value, dtype=torch.float64, device=programme.matrix.device).reshape(shape)
            return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)

        stats = problem.solver_stats
        return Minimum(
            coef=read(None if w is None else w.value, (columns, outputs)),
            intercept=read(None if b is None else b.value, (outputs,)),
            dual_point=read(tie.dual_value, (rows, outputs)),
            iterations=int((stats and stats.num_iters) or 0),
            algorithm="cvxpy-clarabel",
        )


def _options(stop: StoppingRule) -> dict[str, Any]:
    accuracy = max(min(stop.tolerance * 0.2, 1e-8), 1e-12)
    options: dict[str, Any] = {"tol_gap_abs": accuracy, "tol_gap_rel": accuracy, "tol_feas": accuracy}
    if stop.max_iterations is not None:
        options["max_iter"] = stop.max_iterations
    if math.isfinite(stop.deadline):
        options["time_limit"] = max(stop.deadline - time.perf_counter(), 0.0)
    return options
