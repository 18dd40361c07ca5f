r"""Squared loss and cross-entropy: proximal Newton on working sets.

Each iteration prices every entry by its gradient, takes those that are non-zero or violate ``|gradient| <= rho`` (a
bounded number of new ones, the worst first), minimises the second-order model with the L1 penalty over them
(:mod:`~lightning_cvxsnn.convex.quadratic`) and searches along the line to that minimiser. Lee, Sun, Saunders, "Proximal
Newton-type methods for minimizing composite functions", SIAM J. Optim. 24(3), 2014. For the squared loss the model is
the objective and outputs separate. From a cold start the penalty falls to rho by halves, one iteration each, which
keeps working sets small. A model that promises too much (saturated rows have no curvature) is damped. Every iterate is
judged by the certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_cvxsnn.convex.certificate import certify
from lightning_cvxsnn.convex.losses import output_gradient, row_losses
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.reduction import Problem

__all__ = ["minimise_smooth"]

_ITERATION_LIMIT = 200
_FIRST_WORKING_SET = 100
_CONTINUATION = 0.5  # share of the penalty that remains from one iteration to the next, down to rho
_PROXIMAL = 1e-10  # relative; pins directions without curvature, such as a shift of all softmax outputs


def minimise_smooth(
    problem: Problem,
    rho: float,
    start: tuple[Tensor, Tensor],
    tolerance: float,
    max_iterations: int | None,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with squared loss or cross-entropy.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        start: Coefficients ``[p, C]`` and intercept ``[C]`` to start from.
        tolerance: Absolute duality gap to reach.
        max_iterations: Limit of Newton iterations; 200 for ``None``.
        deadline: ``time.perf_counter()`` after which no iteration starts.

    Returns:
        Coefficients, intercept, feasible dual point ``[n, C]``, Newton iterations, name of the algorithm.
    """
    rows, columns = problem.matrix.shape
    weight, matrix, coef = problem.weight, problem.matrix, start[0]
    penalised = torch.ones_like(coef)
    if problem.fit_intercept:
        matrix = matrix.with_ones()
        penalised = torch.cat([penalised, torch.zeros_like(penalised[:1])])
        coef = torch.cat([coef, start[1][None]])
    dual_point = torch.zeros_like(problem.encoded)
    best = (float("inf"), coef)
    limit = _ITERATION_LIMIT if max_iterations is None else max_iterations
    current, damping = float("inf"), 0.0
    for iteration in range(limit + 1):
        outputs = matrix @ coef
        shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
        proof, dual_point = certify(
            problem.matrix, problem.encoded, weight * rows, coef[:columns], shift, problem.loss, rho,
            problem.fit_intercept, dual_point,
        )  # fmt: skip
        if proof.primal < best[0]:
            best = (proof.primal, coef)
        if proof.gap <= tolerance or iteration == limit or time.perf_counter() > deadline:
            break
        gradient = matrix.T @ (weight[:, None] * output_gradient(outputs, problem.encoded, problem.loss))
        current = max(rho, _CONTINUATION * min(current, float((gradient.abs() * penalised).max())))
        move, predicted = _direction(problem, matrix, outputs, coef, gradient, current * penalised, damping)
        length, coef = _search(problem, matrix, outputs, coef, move, predicted, current * penalised)
        if length == 0 and current == rho:
            if damping >= 1:
                break  # rounding error: nothing descends any more
            damping = max(10 * damping, 1e-4)
        elif length < 0.25:
            damping = max(10 * damping, 1e-4)
        elif length == 1:
            damping = damping / 10 if damping > 1e-8 else 0.0
    coef = best[1]
    shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
    return coef[:columns], shift, dual_point, iteration, "working-set-newton"


def _search(
    problem: Problem,
    matrix: Matrix,
    outputs: Tensor,
    coef: Tensor,
    move: Tensor,
    predicted: float,
    penalty: Tensor,
) -> tuple[float, Tensor]:
    """Backtrack until the objective falls by a share of what was predicted: step (0 if it never does) and point."""

    def objective(at: Tensor, z: Tensor) -> float:
        return float(problem.weight @ row_losses(z, problem.encoded, problem.loss) + (penalty * at.abs()).sum())

    value, change = objective(coef, outputs), matrix @ move
    step = 1.0
    while step > 1e-6:
        trial = coef + step * move
        if objective(trial, outputs + step * change) <= value + 1e-3 * step * predicted + 1e-15 * abs(value):
            return (0.0 if torch.equal(trial, coef) else step), trial
        step /= 2
    return 0.0, coef


def _direction(
    problem: Problem, matrix: Matrix, outputs: Tensor, coef: Tensor, gradient: Tensor, penalty: Tensor, damping: float
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
    raised = damping * matrix.squared_norms(problem.weight) / 4 if damping else None  # no probability curves more
    for rows, columns, hessian in _hessian_blocks(problem, matrix, outputs, working):
        hessian.diagonal().mul_(1 + _PROXIMAL)
        if raised is not None:
            hessian.diagonal().add_(raised[rows])
        old = coef[rows, columns]
        new, change, _ = minimise_quadratic(hessian, gradient[rows, columns], old, penalty[rows, columns])
        move[rows, columns] = new - old
        predicted += change
    return move, predicted


def _hessian_blocks(
    problem: Problem, matrix: Matrix, outputs: Tensor, working: Tensor
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
                curvature = weight * torch.sigmoid(outputs[:, c]) * torch.sigmoid(-outputs[:, c])
            yield rows, torch.full_like(rows, c), matrix.gram(rows, curvature)
        return
    columns, rows = working.T.nonzero(as_tuple=True)  # sorted by output
    probability = torch.softmax(outputs, 1)
    top = probability.argmax(1, keepdim=True)
    complement = (1 - probability).scatter(1, top, probability.scatter(1, top, 0.0).sum(1, keepdim=True))
    stop = torch.bincount(columns, minlength=outputs.shape[1]).cumsum(0).tolist()
    spans = [slice(first, last) for first, last in zip([0, *stop[:-1]], stop, strict=True)]
    # p (1 - p) without the cancellation of p - p^2, which would leave saturated rows with negative curvature
    curvature = (weight[:, None] * probability * complement).sqrt()
    scale = probability * weight.sqrt()[:, None]
    hessian = weight.new_zeros(rows.numel(), rows.numel())
    own = [weight.new_zeros(span.stop - span.start, span.stop - span.start) for span in spans]
    for part, block in matrix.gathered(rows):
        for c, span in enumerate(spans):
            root = block[:, span] * curvature[part, c, None]
            own[c].addmm_(root.T, root)
        block *= scale[part].index_select(1, columns)
        hessian.addmm_(block.T, block, alpha=-1)
    for c, span in enumerate(spans):
        hessian[span, span] = own[c]
    yield rows, columns, hessian
