r"""Squared loss and cross-entropy: proximal Newton on working sets.

Each iteration prices every entry by its gradient, takes those that are non-zero or violate ``|gradient| <= rho`` (a
bounded number of new ones, the worst first), minimises the second-order model with the L1 penalty over them
(:mod:`~lightning_cvxsnn.convex.quadratic`) and searches along the line to that minimiser. Lee, Sun, Saunders, "Proximal
Newton-type methods for minimizing composite functions", SIAM J. Optim. 24(3), 2014. For the squared loss the model is
the objective and outputs separate. Every iterate is judged by the certificate.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_cvxsnn.convex.certificate import certify
from lightning_cvxsnn.convex.losses import output_gradient, row_losses
from lightning_cvxsnn.convex.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.reduction import Problem

__all__ = ["minimise_smooth"]

_ITERATION_LIMIT = 200
_FIRST_WORKING_SET = 400
_PROXIMAL = 1e-10  # relative; pins directions without curvature, such as a shift of all softmax outputs


def minimise_smooth(
    problem: Problem, rho: float, start: tuple[Tensor, Tensor], tolerance: float, max_iterations: int | None
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with squared loss or cross-entropy.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        start: Coefficients ``[p, C]`` and intercept ``[C]`` to start from.
        tolerance: Absolute duality gap to reach.
        max_iterations: Limit of Newton iterations; 200 for ``None``.

    Returns:
        Coefficients, intercept, feasible dual point ``[n, C]``, Newton iterations, name of the algorithm.
    """
    rows, columns = problem.matrix.shape
    weight = problem.weight
    matrix = problem.matrix
    penalty = torch.full((columns, start[0].shape[1]), rho, dtype=matrix.dtype, device=matrix.device)
    coef = start[0]
    if problem.fit_intercept:
        matrix = torch.cat([matrix, matrix.new_ones(rows, 1)], 1)
        penalty = torch.cat([penalty, penalty.new_zeros(1, penalty.shape[1])])
        coef = torch.cat([coef, start[1][None]])

    def objective(at: Tensor, outputs: Tensor) -> float:
        return float(weight @ row_losses(outputs, problem.encoded, problem.loss)) + float((penalty * at.abs()).sum())

    dual_point: Tensor | None = None
    best: tuple[float, Tensor] = (float("inf"), coef)
    outputs = matrix @ coef
    value = objective(coef, outputs)
    limit = _ITERATION_LIMIT if max_iterations is None else max_iterations
    iteration = 0
    while True:
        shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
        proof, dual_point = certify(
            problem.matrix, problem.encoded, weight * rows, coef[:columns], shift, problem.loss, rho,
            problem.fit_intercept, dual_point,
        )  # fmt: skip
        if proof.primal < best[0]:
            best = (proof.primal, coef)
        if proof.gap <= tolerance or iteration >= limit:
            break
        iteration += 1
        gradient = matrix.T @ (weight[:, None] * output_gradient(outputs, problem.encoded, problem.loss))
        move, predicted = _direction(problem, matrix, outputs, coef, gradient, penalty)
        accepted = False
        step = 1.0
        while step > 1e-9:
            trial = coef + step * move
            if step == 1.0:
                trial = torch.where(move == -coef, 0.0, trial)  # exact zeros stay exact
            trial_outputs = matrix @ trial
            trial_value = objective(trial, trial_outputs)
            if trial_value <= value + 1e-3 * step * predicted + 1e-15 * abs(value):
                accepted = True
                break
            step /= 2
        if not accepted or (predicted > -1e-15 * abs(value) and bool((trial == coef).all())):
            break
        coef, outputs, value = trial, trial_outputs, trial_value
    coef = best[1]
    shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
    return coef[:columns], shift, dual_point, iteration, "working-set-newton"


def _direction(
    problem: Problem, matrix: Tensor, outputs: Tensor, coef: Tensor, gradient: Tensor, penalty: Tensor
) -> tuple[Tensor, float]:
    """The step to the minimiser of the model over a working set, and the change it predicts."""
    working = (coef != 0) | (penalty == 0)
    violation = torch.where(working, 0.0, gradient.abs() - penalty)
    room = max(_FIRST_WORKING_SET, int(working.sum()))
    candidates = int((violation > 0).sum())
    if candidates > room:
        threshold = violation.flatten().kthvalue(violation.numel() - room + 1).values
        working = working | (violation >= threshold)
    else:
        working = working | (violation > 0)
    move, predicted = torch.zeros_like(coef), 0.0
    for rows, columns, hessian in _hessian_blocks(problem, matrix, outputs, working):
        hessian.diagonal().mul_(1 + _PROXIMAL)
        old = coef[rows, columns]
        new, change, _ = minimise_quadratic(hessian, gradient[rows, columns], old, penalty[rows, columns])
        move[rows, columns] = new - old
        predicted += change
    return move, predicted


def _hessian_blocks(
    problem: Problem, matrix: Tensor, outputs: Tensor, working: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield index pairs into the coefficients and the Hessian over them, one block for each group coupled outputs."""
    weight = problem.weight
    if problem.loss == "squared" or outputs.shape[1] == 1:
        for c in range(outputs.shape[1]):
            rows = working[:, c].nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            curvature = weight
            if problem.loss == "cross_entropy":
                probability = torch.sigmoid(outputs[:, c])
                curvature = weight * probability * (1 - probability)
            root = matrix[:, rows] * curvature.sqrt()[:, None]
            yield rows, torch.full_like(rows, c), root.T @ root
        return
    columns, rows = working.T.nonzero(as_tuple=True)  # sorted by output
    probability = torch.softmax(outputs, 1)
    scaled = matrix[:, rows]
    scaled *= (probability * weight.sqrt()[:, None])[:, columns]
    hessian = -(scaled.T @ scaled)
    stop = torch.bincount(columns, minlength=outputs.shape[1]).cumsum(0).tolist()
    for c, (first, last) in enumerate(zip([0, *stop[:-1]], stop, strict=True)):
        root = matrix[:, rows[first:last]] * (weight * probability[:, c]).sqrt()[:, None]
        hessian[first:last, first:last] += root.T @ root
    yield rows, columns, hessian
