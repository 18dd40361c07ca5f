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

from lightning_cvxsnn.convex.algorithms.interior import (
    AbsoluteValues,
    Direction,
    NewtonSystem,
    factor,
    predictor_corrector,
)
from lightning_cvxsnn.convex.penalties import soft_threshold

__all__ = ["minimise_quadratic"]

_ACTIVE_SET_LIMIT = 8
_INTERIOR_LIMIT = 50
_SIGN_ROUNDS = 4
_LENGTHS = 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125  # of steps tried
_ENTERING = 32  # most entries that become non-zero at once, or as many as are non-zero already


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


def _active_set(
    hessian: Tensor, gradient: Tensor, origin: Tensor, penalty: Tensor, start: Tensor, limit: int
) -> tuple[Tensor, float, int, bool]:
    """Newton steps on the current support and signs; stops unsolved as soon as one does not descend."""

    def evaluate(y: Tensor) -> tuple[Tensor, Tensor]:  # of one point or of several, one in a row
        moved = y - origin
        slope = gradient + moved @ hessian
        return slope, (moved * (gradient + slope)).sum(-1) / 2 + (y.abs() - origin.abs()) @ penalty

    point = start
    slope, value = evaluate(point)
    tolerance = 1e-12 * float(torch.maximum(penalty, gradient.abs()).max())
    systems = 0
    for _ in range(limit):
        nonzero = point != 0
        descent = torch.where(nonzero, slope + penalty * point.sign(), soft_threshold(slope, penalty))
        if float(descent.abs().max()) <= tolerance:
            return point, float(value), systems, True
        room = min(max(_ENTERING, int(nonzero.sum())), descent.numel())
        last = torch.where(nonzero, 0.0, descent.abs()).topk(room).values[-1]
        index = (nonzero | ((descent.abs() >= last) & (descent != 0)) | (penalty == 0)).nonzero()[:, 0]
        lower = factor(hessian.index_select(0, index).index_select(1, index))
        systems += 1
        old, bound, entering = point[index], penalty[index] > 0, ~nonzero[index]
        signs = torch.where(entering, -descent[index], old).sign()
        minimiser = old - torch.cholesky_solve(descent[index, None], lower)[:, 0]
        candidate = _with_signs(minimiser, lower, signs, bound)
        as_guessed = torch.equal(candidate, minimiser)
        trial = point.index_copy(0, index, candidate)
        trial_slope, trial_value = evaluate(trial)
        if not trial_value < value and not as_guessed:  # part of the way; as far as the first zero must descend
            way = _with_signs(minimiser, lower, signs, bound & entering) - old
            zero = torch.where(bound & ((old + way) * signs < 0), -old / way, torch.inf)
            lengths = torch.cat([zero.min().clamp(max=1)[None], way.new_tensor(_LENGTHS)])[:, None]
            steps = torch.where(zero <= lengths, 0.0, old + lengths * way)
            trials = point.expand(len(lengths), -1).index_copy(1, index, steps)
            slopes, values = evaluate(trials)
            best = values.argmin()
            trial, trial_slope, trial_value = trials[best], slopes[best], values[best]
        if not trial_value < value:
            return point, float(value), systems, as_guessed  # if no sign changed, only rounding error is left
        point, slope, value = trial, trial_slope, trial_value
    return point, float(value), systems, False


def _with_signs(minimiser: Tensor, lower: Tensor, signs: Tensor, may: Tensor) -> Tensor:
    """The minimiser with those entries of ``may`` at zero that come out with the wrong sign, the others adjusted.

    Holding a few entries at zero takes no new system: their columns of the inverse tell what the others do.
    """
    point, held = minimiser, torch.zeros_like(may)
    index, inverse = held.nonzero()[:, 0], minimiser.new_zeros(minimiser.numel(), 0)
    for _ in range(_SIGN_ROUNDS):
        wrong = (may & ~held & (point * signs < 0)).nonzero()[:, 0]
        if wrong.numel() == 0:
            break
        unit = minimiser.new_zeros(minimiser.numel(), wrong.numel())
        unit[wrong, torch.arange(wrong.numel(), device=wrong.device)] = 1.0
        index, inverse = torch.cat([index, wrong]), torch.cat([inverse, torch.cholesky_solve(unit, lower)], 1)
        held[wrong] = True
        point = minimiser - inverse @ torch.linalg.solve_ex(inverse[index], minimiser[index])[0]
    return torch.where(held | (may & (point * signs < 0)), 0.0, point)


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
        direction = _direction(hessian, bound, slope, AbsoluteValues(value, slack, slope[bound], rho))
        value, slack, step = predictor_corrector(value, slack, direction, together=True)
        point = point + step
        systems += 1
    return best[1], systems


def _direction(hessian: Tensor, bound: Tensor, slope: Tensor, norm: AbsoluteValues) -> Direction:
    """Newton's direction at one point, from the Hessian plus a diagonal for the penalised entries."""
    system = NewtonSystem(hessian.clone(), norm, bound)

    def direction(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right = -slope
        right[bound] = norm.drift(target) / norm.theta
        step = system.step(right)
        return *norm.moves(target, step[bound]), step

    return direction


def _without_small(point: Tensor, bound: Tensor, value: Tensor, slack: Tensor) -> Tensor:
    """Keep the entries whose value outweighs its slack, both relative to their largest."""
    up, down = (value / value.max() > 1e-3 * slack / slack.max()).chunk(2)
    sparse = point.clone()
    sparse[bound] = torch.where(up | down, point[bound], 0.0)
    return sparse
