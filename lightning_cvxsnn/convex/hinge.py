r"""Hinge loss: one linear programme per output, by column generation and an interior point method.

With signs folded in, ``A = t [D, 1]``, each output solves

.. math:: \min_{x, \xi \ge 0} \; c^T \xi + \rho \sum_j |x_j| \quad\text{subject to}\quad A x + \xi - r = 1, \; r \ge 0

whose multipliers ``alpha`` of the rows satisfy ``0 <= alpha <= c`` and ``|A^T alpha| <= rho``. The restricted
programme over a few columns is solved by an interior point method with one dense Cholesky factor of (columns)^2 per
iteration; all columns are then priced with the multipliers (Dedieu, Mazumder, Wang, "Solving L1-regularized SVMs and
related linear programs", JMLR 23, 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cvxsnn.convex.interior import AbsoluteValues, factor, predictor_corrector, solve_factored
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.reduction import Problem

__all__ = ["minimise_hinge"]

_ITERATION_LIMIT = 2000
_FIRST_COLUMNS = 100
_INNER_LIMIT = 100
_PATIENCE = 6


def minimise_hinge(
    problem: Problem, rho: float, start: tuple[Tensor, Tensor], tolerance: float, max_iterations: int | None
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with hinge loss, output by output.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        start: Coefficients ``[p, C]``, whose support seeds the columns, and intercept ``[C]``.
        tolerance: Absolute duality gap to reach over all outputs.
        max_iterations: Limit of interior point iterations, over all outputs; 2000 for ``None``.

    Returns:
        Coefficients, intercept, dual point ``[n, C]`` (in its box; scaling is left to the certificate), interior point
        iterations, name of the algorithm.
    """
    left = _ITERATION_LIMIT if max_iterations is None else max_iterations
    total = 0
    outputs = problem.encoded.shape[1]
    coef, intercept = torch.zeros_like(start[0]), torch.zeros_like(start[1])
    dual_point = torch.zeros_like(problem.encoded)
    for c in range(outputs):
        sign = problem.encoded[:, c]
        coef[:, c], intercept[c], alpha, used = _one_output(
            problem, sign, rho, start[0][:, c], tolerance / outputs, left
        )
        dual_point[:, c] = sign * alpha
        left, total = left - used, total + used
    return coef, intercept, dual_point, total, "column-generation-interior-point"


def _one_output(
    problem: Problem, sign: Tensor, rho: float, start: Tensor, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Coefficients ``[p]``, intercept, multipliers ``[n]`` and iterations for the labels ``sign [n]``."""
    matrix, weight = problem.matrix, problem.weight
    alpha = weight
    free = sign if problem.fit_intercept else None
    chosen, used = start != 0, 0
    value, intercept = _value(problem, matrix, sign, rho, start)
    best = (value, start, intercept)
    dual, dual_alpha = 0.0, torch.zeros_like(alpha)
    finest = 0.02 * tolerance
    precision = 0.03 * float(weight.sum())
    while True:
        if problem.fit_intercept:
            alpha = _balanced(alpha, sign)
        correlation = (matrix.T @ (sign * alpha)).abs()
        bound = float(alpha.sum()) * min(1.0, rho / max(float(correlation.max()), 1e-300))
        if bound > dual:
            dual, dual_alpha = bound, alpha
        price = torch.where(chosen, -1.0, correlation - rho)
        fresh = price.topk(min(max(_FIRST_COLUMNS, int(chosen.sum())), price.numel())).indices
        fresh = fresh[price[fresh] > (1e-9 * rho if used else -rho)]
        settled = used and fresh.numel() == 0 and precision <= finest
        if best[0] - dual <= tolerance or used >= limit or settled:
            return best[1], best[2], dual_alpha, used
        chosen[fresh] = True
        index = chosen.nonzero()[:, 0]
        complete = fresh.numel() == 0 or bool(chosen.all())
        precision = finest if complete else max(finest, min(0.1 * precision, 0.03 * (best[0] - dual)))
        inside, alpha, iterations = _interior_point(
            sign[:, None] * matrix[:, index], free, weight, rho, precision, limit - used
        )
        used += max(iterations, 1)
        value, sparse, intercept = _sparsest(
            problem, matrix[:, index], sign, rho, inside, max(0.1 * precision, 0.3 * tolerance)
        )
        if value < best[0]:
            coef = torch.zeros_like(start)
            coef[index] = sparse
            best = (value, coef, intercept)


def _value(problem: Problem, matrix: Tensor | Matrix, sign: Tensor, rho: float, coef: Tensor) -> tuple[float, Tensor]:
    """Objective of one output at ``coef`` and its best intercept."""
    margin = sign * (matrix @ coef)
    intercept = _best_intercept(margin, sign, problem.weight) if problem.fit_intercept else sign.new_zeros(())
    loss = (1 - margin - sign * intercept).clamp_min(0)
    return float(problem.weight @ loss + rho * coef.abs().sum()), intercept


def _sparsest(
    problem: Problem, matrix: Tensor, sign: Tensor, rho: float, coef: Tensor, slack: float
) -> tuple[float, Tensor, Tensor]:
    """Objective, coefficients and best intercept with as many small coefficients at zero as ``slack`` allows."""
    value, intercept = _value(problem, matrix, sign, rho, coef)
    best = value, coef, intercept
    for exponent in range(-10, -1):
        sparse = torch.where(coef.abs() > 10.0**exponent * coef.abs().max(), coef, 0.0)
        trial, intercept = _value(problem, matrix, sign, rho, sparse)
        if trial > value + slack:
            break
        best = trial, sparse, intercept
    return best


def _balanced(alpha: Tensor, sign: Tensor) -> Tensor:
    """Multipliers with the heavier sign shrunk to the total of the lighter, as the intercept demands."""
    positive, negative = alpha[sign > 0].sum(), alpha[sign < 0].sum()
    lighter = torch.minimum(positive, negative)
    return alpha * torch.where(sign > 0, lighter / positive, lighter / negative)


def _best_intercept(margin: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
    """Exact minimiser in ``b`` of ``sum weight max(0, 1 - margin - sign b)``: where the slope changes sign."""
    kink, order = (sign * (1 - margin)).sort()
    # left of every kink all positive rows pay; each kink passed raises the slope by its weight
    slope = weight[order].cumsum(0) - weight[sign > 0].sum()
    return kink[int((slope < 0).sum().clamp(max=kink.numel() - 1))]


def _interior_point(
    matrix: Tensor, free: Tensor | None, cost: Tensor, rho: float, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, int]:
    """Coefficients ``[k]``, multipliers ``[n]`` and iterations of the restricted programme.

    ``matrix [n, k]`` and the intercept's column ``free [n]`` carry the signs. The pairs are, in this order: ``xi`` with
    ``c - alpha``, ``r`` with ``alpha``, and the two halves of the coefficients with theirs.
    """
    rows, size = matrix.shape
    if free is not None:
        matrix = torch.cat([matrix, free[:, None]], 1)
    point = cost.new_zeros(matrix.shape[1])
    slope = -(matrix.T @ cost)[:size] / 2
    value = torch.cat([cost.new_full((rows,), 1.5), cost.new_full((rows,), 0.5), cost.new_ones(2 * size)])
    slack = torch.cat([cost / 2, cost / 2, (rho + slope).clamp_min(rho), (rho - slope).clamp_min(rho)])
    best = (float("inf"), point[:size], cost / 2)
    iteration = stale = 0
    total, limit = float(cost.sum()), min(limit, _INNER_LIMIT)
    while True:
        up, down = value[2 * rows :].chunk(2)
        alpha = slack[rows : 2 * rows]
        point[:size] = up - down
        slope = -(matrix.T @ alpha)
        gap = float(value @ slack)
        primal = float(cost @ (1 - matrix @ point).clamp_min(0) + rho * point[:size].abs().sum())
        feasible = alpha if free is None else _balanced(alpha, free)
        steepest = float((matrix[:, :size].T @ feasible).abs().max())
        suboptimality = primal - float(feasible.sum()) * min(1.0, rho / max(steepest, 1e-300))
        if suboptimality < best[0]:
            best, stale = (suboptimality, up - down, alpha), 0
        else:
            stale += gap < 1e-6 * total  # rounding error takes over in degenerate programmes
        if best[0] <= tolerance or iteration >= limit or stale >= _PATIENCE or not gap > 0:
            return best[1], best[2], iteration
        model = _Linearised(matrix, point, slope, value, slack, rho)
        value, slack, step = predictor_corrector(value, slack, model.direction, together=False)
        point = point + step
        iteration += 1


class _Linearised:
    """The Newton system of the restricted programme, with everything but the coefficients eliminated."""

    def __init__(self, matrix: Tensor, point: Tensor, slope: Tensor, value: Tensor, slack: Tensor, rho: float) -> None:
        rows = matrix.shape[0]
        self.matrix, self.slope, self.split = matrix, slope, 2 * rows
        self.value, self.slack = value[: 2 * rows], slack[: 2 * rows]
        self.size = (value.numel() - 2 * rows) // 2
        self.norm = AbsoluteValues(value[2 * rows :], slack[2 * rows :], slope[: self.size], rho)
        loss, surplus = self.value.chunk(2)
        self.miss = 1 - matrix @ point - loss + surplus
        over, under = (self.value / self.slack).chunk(2)
        self.row_scale = over + under
        root = matrix * self.row_scale.rsqrt()[:, None]
        self.system = root.T @ root
        self.system.diagonal()[: self.size] += 1 / self.norm.theta
        self.lower = factor(self.system)

    def direction(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row_target, norm_target = target[: self.split], target[self.split :]
        loss, surplus = (row_target / self.slack).chunk(2)
        known = (self.miss - loss + surplus) / self.row_scale
        right = self.matrix.T @ known
        right[: self.size] += self.norm.drift(norm_target) / self.norm.theta
        right[self.size :] -= self.slope[self.size :]
        step = solve_factored(self.system, self.lower, right)
        d_alpha = known - (self.matrix @ step) / self.row_scale
        d_slack = torch.cat([-d_alpha, d_alpha])
        d_value = (row_target - self.value * d_slack) / self.slack
        norm_value, norm_slack = self.norm.moves(norm_target, step[: self.size])
        return torch.cat([d_value, norm_value]), torch.cat([d_slack, norm_slack]), step
