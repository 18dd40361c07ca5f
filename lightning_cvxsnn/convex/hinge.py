r"""Hinge loss: one linear programme per output, by column generation and an interior point method.

With signs folded in, ``A = t [D, 1]``, each output solves

.. math:: \min_{x, \xi \ge 0} \; c^T \xi + \rho \sum_j |x_j| \quad\text{subject to}\quad A x + \xi - r = 1, \; r \ge 0

whose multipliers ``alpha`` of the rows satisfy ``0 <= alpha <= c`` and ``|A^T alpha| <= rho``. The restricted
programme over a few columns is solved by Mehrotra's predictor-corrector method (SIAM J. Optim. 2(4), 1992) with one dense
Cholesky factor of (columns)^2 per iteration; all columns are then priced with the multipliers (Dedieu, Mazumder, Wang,
"Solving L1-regularized SVMs and related linear programs", JMLR 23, 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cvxsnn.convex.quadratic import factor, longest_step
from lightning_cvxsnn.convex.reduction import Problem

__all__ = ["minimise_hinge"]

_ITERATION_LIMIT = 2000
_FIRST_COLUMNS = 100
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
            problem, sign, rho, start[0][:, c] != 0, tolerance / outputs, left
        )
        dual_point[:, c] = sign * alpha
        left, total = left - used, total + used
    return coef, intercept, dual_point, total, "column-generation-interior-point"


def _one_output(
    problem: Problem, sign: Tensor, rho: float, seed: Tensor, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Coefficients ``[p]``, intercept, multipliers ``[n]`` and iterations for the labels ``sign [n]``."""
    matrix, weight = problem.matrix, problem.weight
    alpha = weight
    chosen = seed.clone()
    coef, intercept, used = torch.zeros_like(matrix[0]), sign.new_zeros(()), 0
    best = (float("inf"), coef, intercept)
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
            sign[:, None] * matrix[:, index], sign if problem.fit_intercept else None, weight, rho, precision, limit - used
        )
        used += max(iterations, 1)
        coef = torch.zeros_like(coef)
        coef[index] = inside
        margin = sign * (matrix @ coef)
        if problem.fit_intercept:
            intercept = _best_intercept(margin, sign, weight)
        value = float(weight @ (1 - margin - sign * intercept).clamp_min(0) + rho * coef.abs().sum())
        if value < best[0]:
            best = (value, coef, intercept)


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
    """Solve the restricted programme; ``matrix [n, k]`` and the intercept's column ``free [n]`` carry the signs."""
    rows, size = matrix.shape
    if free is not None:
        matrix = torch.cat([matrix, free[:, None]], 1)
    up, down = cost.new_ones(size), cost.new_ones(size)
    point = cost.new_zeros(matrix.shape[1])
    alpha = cost / 2
    slope = -(matrix.T @ alpha)
    up_slack, down_slack = (rho + slope[:size]).clamp_min(rho), (rho - slope[:size]).clamp_min(rho)
    loss, surplus = cost.new_full((rows,), 1.5), cost.new_full((rows,), 0.5)
    count = 2 * (rows + size)
    iteration = stale = 0
    best = (float("inf"), point[:size], alpha)
    while True:
        point[:size] = up - down  # without the ridge's rounding
        room = cost - alpha
        slope = -(matrix.T @ alpha)
        row_miss = 1 - matrix @ point - loss + surplus
        up_miss, down_miss = rho + slope[:size] - up_slack, rho - slope[:size] - down_slack
        gap = float(loss @ room + surplus @ alpha + up @ up_slack + down @ down_slack)
        value = float(cost @ (1 - matrix @ point).clamp_min(0) + rho * point[:size].abs().sum())
        steepest = float(slope[:size].abs().max()) if size else 0.0
        imbalance = 10 * float(slope[size:].abs().sum())
        suboptimality = value - float(alpha.sum()) * min(1.0, rho / max(steepest, 1e-300)) + imbalance
        if suboptimality < best[0]:
            keep = (up * rho > 1e-6 * up_slack) | (down * rho > 1e-6 * down_slack)
            best, stale = (suboptimality, torch.where(keep, up - down, 0.0), alpha), 0
        else:
            stale += 1  # rounding error takes over in degenerate programmes
        if best[0] <= tolerance or iteration >= limit or not gap > 0 or stale >= _PATIENCE:
            return best[1], best[2], iteration
        iteration += 1
        row_scale = loss / room + surplus / alpha
        up_ratio, down_ratio = up / up_slack, down / down_slack
        theta = up_ratio + down_ratio
        root = matrix * row_scale.rsqrt()[:, None]
        system = root.T @ root
        system.diagonal()[:size] += 1 / theta
        lower = factor(system, 1e-14)

        def direction(
            loss_target: Tensor, surplus_target: Tensor, up_target: Tensor, down_target: Tensor
        ) -> tuple[Tensor, ...]:
            known = (row_miss - loss_target / room + surplus_target / alpha) / row_scale
            right = matrix.T @ known
            drift = up_target / up_slack - down_target / down_slack - up_ratio * up_miss + down_ratio * down_miss
            right[:size] += drift / theta
            right[size:] -= slope[size:]
            step = torch.cholesky_solve(right[:, None], lower)[:, 0]
            d_alpha = known - (matrix @ step) / row_scale
            bend = (drift - step[:size]) / theta  # -(A^T d_alpha), without its cancellation where theta is large
            d_up_slack, d_down_slack = up_miss + bend, down_miss - bend
            return (
                step,
                (loss_target + loss * d_alpha) / room,
                (surplus_target - surplus * d_alpha) / alpha,
                (up_target - up * d_up_slack) / up_slack,
                (down_target - down * d_down_slack) / down_slack,
                d_alpha,
                d_up_slack,
                d_down_slack,
            )

        def lengths(moves: tuple[Tensor, ...]) -> tuple[float, float]:
            primal = longest_step((loss, moves[1]), (surplus, moves[2]), (up, moves[3]), (down, moves[4]))
            dual = longest_step(
                (alpha, moves[5]), (room, -moves[5]), (up_slack, moves[6]), (down_slack, moves[7])
            )
            return primal, dual

        moves = direction(-loss * room, -surplus * alpha, -up * up_slack, -down * down_slack)
        p, d = lengths(moves)
        ahead = float(
            (loss + p * moves[1]) @ (room - d * moves[5])
            + (surplus + p * moves[2]) @ (alpha + d * moves[5])
            + (up + p * moves[3]) @ (up_slack + d * moves[6])
            + (down + p * moves[4]) @ (down_slack + d * moves[7])
        )
        centre = (ahead / gap) ** 3 * gap / count
        moves = direction(
            centre - loss * room + moves[1] * moves[5],
            centre - surplus * alpha - moves[2] * moves[5],
            centre - up * up_slack - moves[3] * moves[6],
            centre - down * down_slack - moves[4] * moves[7],
        )
        p, d = (min(1.0, 0.995 * length) for length in lengths(moves))
        point = point + p * moves[0]
        loss, surplus, up, down = (z + p * m for z, m in zip((loss, surplus, up, down), moves[1:5], strict=True))
        alpha, up_slack, down_slack = (
            z + d * m for z, m in zip((alpha, up_slack, down_slack), moves[5:], strict=True)
        )
