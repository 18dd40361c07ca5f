r"""The inner problem of the Newton method: a small dense quadratic with an L1 penalty.

.. math:: \min_y \; g^T (y - x) + \tfrac12 (y - x)^T H (y - x) + \sum_j \rho_j |y_j|

Two methods with opposite strengths. *Active set*: guess support and signs from the current point, solve one linear
system, repeat; exact, and one or two systems suffice near the solution, but it may cycle far from it. *Interior point*
(Mehrotra, SIAM J. Optim. 2(4), 1992): ten to twenty systems from anywhere, however ill conditioned, but never exactly
sparse. So: active set, if it gets lost interior point, and active set again from the support that was found.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factor", "longest_step", "minimise_quadratic"]

_ACTIVE_SET_LIMIT = 8
_INTERIOR_LIMIT = 50


def minimise_quadratic(hessian: Tensor, gradient: Tensor, start: Tensor, penalty: Tensor) -> tuple[Tensor, float, int]:
    """Minimise the quadratic model with an L1 penalty.

    Args:
        hessian: ``H [k, k]`` float64, positive semidefinite.
        gradient: ``g [k]`` at ``start``.
        start: ``x [k]``.
        penalty: ``rho_j [k]``; 0 where free, such as an intercept.

    Returns:
        A minimiser ``[k]`` with exact zeros, the change of the objective (not positive), linear systems solved.
    """
    point, change, systems, solved = _active_set(hessian, gradient, start, penalty, start, _ACTIVE_SET_LIMIT)
    if solved:
        return point, change, systems
    inner, more = _interior_point(hessian, gradient - hessian @ start, start, penalty, change)
    other, other_change, last, _ = _active_set(hessian, gradient, start, penalty, inner, 4 * _ACTIVE_SET_LIMIT)
    systems += more + last
    return (other, other_change, systems) if other_change < change else (point, change, systems)


def factor(matrix: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of a positive semidefinite matrix whose diagonal is raised by ``ridge``, or by more if it must."""
    floor = 1e-14 * float(matrix.diagonal().max()) + 1e-300
    while True:
        raised = matrix.clone()
        raised.diagonal().mul_(1 + ridge).clamp_(min=floor)
        lower, failed = torch.linalg.cholesky_ex(raised)
        if not bool(failed) or ridge > 1:
            return lower
        ridge *= 100


def longest_step(*pairs: tuple[Tensor, Tensor]) -> float:
    """Largest step in (0, 1] that keeps every ``value + step * direction`` non-negative."""
    step = 1.0
    for value, direction in pairs:
        ratio = torch.where(direction < 0, -value / direction, torch.inf)
        step = min(step, float(ratio.min()) if ratio.numel() else 1.0)
    return step


def _active_set(
    hessian: Tensor, gradient: Tensor, origin: Tensor, penalty: Tensor, start: Tensor, limit: int
) -> tuple[Tensor, float, int, bool]:
    """Newton steps on the current support and signs; stops unsolved as soon as one does not descend."""

    def evaluate(y: Tensor) -> tuple[Tensor, float]:
        slope = gradient + hessian @ (y - origin)
        return slope, float((y - origin) @ (gradient + slope) / 2 + penalty @ (y.abs() - origin.abs()))

    point = start
    slope, value = evaluate(point)
    tolerance = 1e-12 * float(torch.maximum(penalty, gradient.abs()).max())
    systems = 0
    for _ in range(limit):
        nonzero = point != 0
        shrunk = slope.sign() * (slope.abs() - penalty).clamp_min(0)
        descent = torch.where(nonzero, slope + penalty * point.sign(), shrunk)
        if float(descent.abs().max()) <= tolerance:
            return point, value, systems, True
        signs = torch.where(nonzero, point.sign(), -descent.sign())
        active = nonzero | (descent != 0) | (penalty == 0)
        for _ in range(4):  # entries that would enter with the wrong sign are better left at zero
            index = active.nonzero()[:, 0]
            lower = factor(hessian[index[:, None], index], 1e-11)
            systems += 1
            candidate = point[index] - torch.cholesky_solve(descent[index, None], lower)[:, 0]
            flipped = (candidate * signs[index] < 0) & (penalty[index] > 0)
            entering = flipped & ~nonzero[index]
            if not bool(entering.any()):
                break
            active[index[entering]] = False
        trial = point.clone()
        trial[index] = torch.where(flipped, 0.0, candidate)
        trial_slope, trial_value = evaluate(trial)
        if trial_value >= value and bool(flipped.any()):  # only as far as the first sign change: that must descend
            ratio = torch.where(flipped, point[index] / (point[index] - candidate), torch.inf)
            first = int(ratio.argmin())
            trial[index] = point[index] + ratio[first].clamp(0, 1) * (candidate - point[index])
            trial[index[first]] = 0.0
            trial_slope, trial_value = evaluate(trial)
        if trial_value >= value:
            return point, value, systems, not bool(flipped.any())  # rounding error, if no sign changed
        point, slope, value = trial, trial_slope, trial_value
    return point, value, systems, False


def _interior_point(
    hessian: Tensor, linear: Tensor, start: Tensor, penalty: Tensor, change: float
) -> tuple[Tensor, int]:
    """Primal-dual interior point for ``min x'Hx/2 + linear'x + sum penalty |x|``; small entries are set to zero.

    With ``x = u - v`` on the penalised entries, the slacks are ``penalty + gradient`` for ``u`` and ``penalty -
    gradient`` for ``v``; eliminating them leaves one system in ``H`` plus a diagonal.
    """
    bound = penalty > 0
    rho = penalty[bound]
    point = start.clone()
    slope = linear + hessian @ point
    curvature = hessian.diagonal()[bound].clamp_min(1e-300)
    spread = max(float(point[bound].abs().mean()), float(((slope[bound].abs() - rho).clamp_min(0) / curvature).median()))
    spread = max(spread, float((rho / curvature).median()) * 0.1)
    up, down = point[bound].clamp_min(0) + spread, (-point[bound]).clamp_min(0) + spread
    up_slack, down_slack = (rho + slope[bound]).clamp_min(0).maximum(rho), (rho - slope[bound]).clamp_min(0).maximum(rho)
    count = 2 * rho.numel()
    initial = float(start @ (linear + slope) / 2 + penalty @ start.abs())
    systems, best = 0, (float("inf"), start)
    for _ in range(_INTERIOR_LIMIT):
        point[bound] = up - down
        slope = linear + hessian @ point
        value = float(point @ (linear + slope) / 2 + penalty @ point.abs())
        complementarity = float(up @ up_slack + down @ down_slack)
        if value < best[0]:
            best = (value, _without_small(point, bound, up, down, up_slack, down_slack))
        elif complementarity < 1e-6 * abs(initial - best[0]):
            break  # rounding error has taken over
        if complementarity <= 1e-9 * max(abs(initial - value), abs(change)):
            break
        up_ratio, down_ratio = up / up_slack, down / down_slack
        up_miss, down_miss = rho + slope[bound] - up_slack, rho - slope[bound] - down_slack
        theta = up_ratio + down_ratio
        system = hessian.clone()
        system.diagonal()[bound] += 1 / theta
        lower = factor(system, 1e-13)
        systems += 1

        def direction(up_target: Tensor, down_target: Tensor) -> tuple[Tensor, ...]:
            right = -slope
            drift = up_target / up_slack - down_target / down_slack - up_ratio * up_miss + down_ratio * down_miss
            right[bound] = drift / theta
            step = torch.cholesky_solve(right[:, None], lower)[:, 0]
            bend = (drift - step[bound]) / theta  # (H step), without its cancellation where theta is large
            d_up_slack, d_down_slack = up_miss + bend, down_miss - bend
            d_up = (up_target - up * d_up_slack) / up_slack
            d_down = (down_target - down * d_down_slack) / down_slack
            return step, d_up, d_down, d_up_slack, d_down_slack

        def longest(moves: tuple[Tensor, ...]) -> float:
            return longest_step(*zip((up, down, up_slack, down_slack), moves[1:], strict=True))

        moves = direction(-up * up_slack, -down * down_slack)
        length = longest(moves)
        ahead = float((up + length * moves[1]) @ (up_slack + length * moves[3]))
        ahead += float((down + length * moves[2]) @ (down_slack + length * moves[4]))
        centre = (ahead / complementarity) ** 3 * complementarity / count
        moves = direction(
            centre - up * up_slack - moves[1] * moves[3], centre - down * down_slack - moves[2] * moves[4]
        )
        length = min(1.0, 0.995 * longest(moves))
        point = point + length * moves[0]
        up, down = up + length * moves[1], down + length * moves[2]
        up_slack, down_slack = up_slack + length * moves[3], down_slack + length * moves[4]
    return best[1], systems


def _without_small(
    point: Tensor, bound: Tensor, up: Tensor, down: Tensor, up_slack: Tensor, down_slack: Tensor
) -> Tensor:
    """Keep the entries whose value outweighs its slack, both relative to their largest."""
    scale = float(torch.maximum(up, down).max()) / float(torch.maximum(up_slack, down_slack).max())
    keep = (up > 1e-3 * scale * up_slack) | (down > 1e-3 * scale * down_slack)
    sparse = point.clone()
    sparse[bound] = torch.where(keep, point[bound], 0.0)
    return sparse
