r"""The inner problem of the Newton method: a small dense quadratic with an L1 penalty.

.. math:: \min_y \; g^T (y - x) + \tfrac12 (y - x)^T H (y - x) + \sum_j \rho_j |y_j|

Two methods with opposite strengths. *Active set*: guess support and signs from the current point, solve one linear
system, repeat; exact, and one or two systems suffice near the solution, but it may cycle far from it. *Interior point*
(Mehrotra, SIAM J. Optim. 2(4), 1992): ten to twenty systems from anywhere, however ill conditioned, but never exactly
sparse. So: active set, if it gets lost interior point, and active set again from the support that was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cvxsnn.convex.interior import AbsoluteValues, factor, predictor_corrector, solve_factored

__all__ = ["minimise_quadratic"]

_ACTIVE_SET_LIMIT = 8
_INTERIOR_LIMIT = 50
_ROUNDS = 30  # of block descent


def minimise_quadratic(
    hessian: Tensor, gradient: Tensor, start: Tensor, penalty: Tensor, blocks: Sequence[slice] = ()
) -> tuple[Tensor, float, int]:
    """Minimise the quadratic model with an L1 penalty.

    Args:
        hessian: ``H [k, k]`` float64, positive semidefinite.
        gradient: ``g [k]`` at ``start``.
        start: ``x [k]``.
        penalty: ``rho_j [k]``; 0 where free, such as an intercept.
        blocks: Slices of entries that are minimised over in turn first.

    Returns:
        A minimiser ``[k]`` with exact zeros, the change of the objective (not positive), linear systems solved.
    """
    first = _block_descent(hessian, gradient, start, penalty, blocks) if len(blocks) > 1 else start
    point, change, systems, solved = _active_set(hessian, gradient, start, penalty, first, _ACTIVE_SET_LIMIT)
    if solved:
        return point, change, systems
    inner, more = _interior_point(hessian, gradient - hessian @ start, start, penalty, change)
    other, other_change, last, _ = _active_set(hessian, gradient, start, penalty, inner, 4 * _ACTIVE_SET_LIMIT)
    systems += more + last
    return (other, other_change, systems) if other_change < change else (point, change, systems)


def _block_descent(
    hessian: Tensor, gradient: Tensor, start: Tensor, penalty: Tensor, blocks: Sequence[slice]
) -> Tensor:
    """Minimise over the blocks in turn until a round leaves the support alone."""
    point, slope = start.clone(), gradient.clone()
    for _ in range(_ROUNDS):
        support = point != 0
        for span in blocks:
            new, _, _ = minimise_quadratic(hessian[span, span], slope[span], point[span], penalty[span])
            slope += hessian[:, span] @ (new - point[span])
            point[span] = new
        if torch.equal(support, point != 0):
            break
    return point


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
            lower = factor(hessian[index[:, None], index])
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
    """Interior point method for ``min x'Hx/2 + linear'x + sum penalty |x|``; small entries are set to zero."""
    bound = penalty > 0
    rho = penalty[bound]
    point, slope = start.clone(), linear + hessian @ start
    curvature = hessian.diagonal()[bound].clamp_min(1e-300)
    away = ((slope[bound].abs() - rho).clamp_min(0) / curvature).median()
    spread = torch.stack([point[bound].abs().mean(), away, 0.1 * (rho / curvature).median()]).max()
    value = torch.cat([point[bound].clamp_min(0), (-point[bound]).clamp_min(0)]) + spread
    slack = torch.cat([rho + slope[bound], rho - slope[bound]]).maximum(torch.cat([rho, rho]))
    initial = float(start @ (linear + slope) / 2 + penalty @ start.abs())
    best, systems = (float("inf"), start), 0
    while systems < _INTERIOR_LIMIT:
        up, down = value.chunk(2)
        point[bound] = up - down
        slope = linear + hessian @ point
        objective = float(point @ (linear + slope) / 2 + penalty @ point.abs())
        gap = float(value @ slack)
        if objective < best[0]:
            best = (objective, _without_small(point, bound, value, slack))
        elif gap < 1e-6 * abs(initial - best[0]):
            break  # rounding error has taken over
        if gap <= 1e-9 * max(abs(initial - objective), abs(change)):
            break
        model = _Linearised(hessian, bound, slope, AbsoluteValues(value, slack, slope[bound], rho))
        value, slack, step = predictor_corrector(value, slack, model.direction, together=True)
        point = point + step
        systems += 1
    return best[1], systems


class _Linearised:
    """The Newton system at one point: the Hessian plus a diagonal for the penalised entries."""

    def __init__(self, hessian: Tensor, bound: Tensor, slope: Tensor, norm: AbsoluteValues) -> None:
        self.bound, self.slope, self.norm = bound, slope, norm
        self.system = hessian.clone()
        self.system.diagonal()[bound] += 1 / norm.theta
        self.lower = factor(self.system)

    def direction(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right = -self.slope
        right[self.bound] = self.norm.drift(target) / self.norm.theta
        step = solve_factored(self.system, self.lower, right)
        return *self.norm.moves(target, step[self.bound]), step


def _without_small(point: Tensor, bound: Tensor, value: Tensor, slack: Tensor) -> Tensor:
    """Keep the entries whose value outweighs its slack, both relative to their largest."""
    up, down = (value / value.max() > 1e-3 * slack / slack.max()).chunk(2)
    sparse = point.clone()
    sparse[bound] = torch.where(up | down, point[bound], 0.0)
    return sparse
