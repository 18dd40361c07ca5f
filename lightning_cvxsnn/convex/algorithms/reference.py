"""The independent reference: the programme as CVXPY reads it, solved by Clarabel."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from lightning_cvxsnn.convex.presolve import Problem

__all__ = ["minimise_with_cvxpy"]


def minimise_with_cvxpy(
    problem: Problem, rho: float, tolerance: float, max_iterations: int | None, deadline: float = math.inf
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with CVXPY and Clarabel.

    The outputs ``Z`` are variables tied to the coefficients by an equality; its multiplier is the dual point.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        tolerance: Absolute duality gap wanted.
        max_iterations: Limit of Clarabel's iterations; its own default for ``None``.
        deadline: ``time.perf_counter()`` after which Clarabel stops.

    Returns:
        Coefficients ``[p, C]``, intercept ``[C]``, dual point ``[n, C]``, iterations, name of the algorithm. Zeros if
        the solver stops without a point.

    Raises:
        ImportError: CVXPY is not installed.
    """
    import cvxpy as cp

    matrix, target, weight = (t.cpu().numpy() for t in (problem.matrix.to_dense(), problem.encoded, problem.weight))
    rows, columns = matrix.shape
    outputs = target.shape[1]
    z = cp.Variable((rows, outputs))
    w = cp.Variable((columns, outputs)) if columns else None
    b = cp.Variable((1, outputs)) if problem.fit_intercept else None
    fitted = cp.Constant(target * 0)
    if w is not None:
        fitted = fitted + matrix @ w
    if b is not None:
        fitted = fitted + cp.Constant(target[:, :1] * 0 + 1) @ b

    if problem.loss == "squared":
        data = cp.sum(cp.multiply(weight[:, None], cp.square(z - target))) / 2
    elif problem.loss == "hinge":
        data = cp.sum(cp.multiply(weight[:, None], cp.pos(1 - cp.multiply(target, z))))
    elif outputs == 1:
        data = cp.sum(cp.multiply(weight[:, None], cp.logistic(z) - cp.multiply(target, z)))
    else:
        data = weight @ (cp.log_sum_exp(z, axis=1) - cp.sum(cp.multiply(target, z), axis=1))
    tie = z == fitted
    objective = data if w is None else data + rho * cp.sum(cp.abs(w))
    programme = cp.Problem(cp.Minimize(objective), [tie])

    accuracy = max(min(tolerance * 0.1, 1e-8), 1e-12)
    options: dict[str, Any] = {"tol_gap_abs": accuracy, "tol_gap_rel": accuracy, "tol_feas": accuracy}
    if max_iterations is not None:
        options["max_iter"] = max_iterations
    if math.isfinite(deadline):
        options["time_limit"] = max(deadline - time.perf_counter(), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate decides
        with contextlib.suppress(cp.SolverError):
            programme.solve(solver=cp.CLARABEL, **options)

    def read(value: Any, shape: tuple[int, ...]) -> Tensor:
        if value is None:
            return problem.encoded.new_zeros(shape)
        tensor = torch.as_tensor(value, dtype=torch.float64, device=problem.matrix.device).reshape(shape)
        return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)

    coef = read(None if w is None else w.value, (columns, outputs))
    intercept = read(None if b is None else b.value, (outputs,))
    stats = programme.solver_stats
    dual_point = read(tie.dual_value, (rows, outputs))
    return coef, intercept, dual_point, int((stats and stats.num_iters) or 0), "cvxpy-clarabel"
