r"""The hinge programmes of several outputs, each restricted to some columns: interior points and their Newton systems.

The pairs (value, slack) of the interior point method are, in this order: ``xi`` with ``c - alpha``, ``r`` with
``alpha``, and the two halves of the coefficients with theirs. Everything but the coefficients is eliminated, which
leaves one dense system of (columns)^2 for each output. Outputs with fewer columns than others are filled up with
columns of zeros, which change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.interior import AbsoluteValues, factor, solve_factored
from lightning_cvxsnn.convex.presolve import Problem
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["Iterate", "Linearised", "admit", "begin", "gather", "listed"]

_BLOCK = 128  # columns of a Gram matrix computed at a time
_ENTRY = 0.05  # smallest slack of a column that enters, relative to rho


@dataclass(frozen=True, eq=False)
class Iterate:
    """An interior point of the restricted programmes of several outputs, the first dimension of every tensor.

    Attributes:
        sign: Labels ``[C, n]``.
        cost: Weights of the rows ``[C, n]``.
        free: 1 if the first column is the intercept's, or 0.
        columns: ``[C, k]`` which columns.
        real: ``[C, k]`` false for the columns that fill up.
        matrix: ``[C, n, free + k]``, without signs.
        point: Intercept, if there is one, and coefficients ``[C, free + k]``.
        value: ``[C, 2n + 2k]``.
        slack: ``[C, 2n + 2k]``.
    """

    sign: Tensor
    cost: Tensor
    free: int
    columns: Tensor
    real: Tensor
    matrix: Tensor
    point: Tensor
    value: Tensor
    slack: Tensor

    @property
    def rows(self) -> int:
        """``n``."""
        return self.sign.shape[1]

    @property
    def coef(self) -> Tensor:
        """Coefficients of the columns, ``[C, k]``."""
        return self.point[:, self.free :]

    @property
    def alpha(self) -> Tensor:
        """Multipliers of the rows, ``[C, n]``."""
        return self.slack[:, self.rows : 2 * self.rows]

    def outputs(self, step: Tensor) -> Tensor:
        """``A x``: outputs times labels, ``[C, n]``."""
        return self.sign * (self.matrix @ step[:, :, None])[:, :, 0]

    def slopes(self, alpha: Tensor) -> Tensor:
        """``A^T alpha``, ``[C, free + k]``."""
        return ((self.sign * alpha)[:, None] @ self.matrix)[:, 0]

    def keep(self, which: Tensor) -> Iterate:
        """The outputs marked in ``which [C]``."""
        names = ("sign", "cost", "columns", "real", "matrix", "point", "value", "slack")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def moved(self, value: Tensor, slack: Tensor, step: Tensor) -> Iterate:
        """The iterate after a step; coefficients are the difference of their halves."""
        up, down = value[:, 2 * self.rows :].chunk(2, 1)
        point = torch.cat([(self.point + step)[:, : self.free], up - down], 1)
        return replace(self, point=point, value=value, slack=slack)

    def spread(self, size: int) -> Tensor:
        """Coefficients of all ``size`` columns, ``[C, size]``."""
        coef = torch.where(self.real, self.coef, 0.0)
        return coef.new_zeros(coef.shape[0], size).scatter(1, self.columns, coef)

    def chosen(self, size: int) -> Tensor:
        """Which of all ``size`` columns are in, ``[C, size]``."""
        return self.real.new_zeros(self.real.shape[0], size).scatter(1, self.columns, self.real)


def begin(
    sign: Tensor,
    cost: Tensor,
    columns: Tensor,
    real: Tensor,
    matrix: Tensor,
    rho: float,
    start: tuple[Tensor, Tensor, Tensor] | None,
) -> Iterate:
    """The first interior point of a restricted programme, whose tensors are those of :class:`Iterate`.

    Args:
        sign: Labels ``[C, n]``.
        cost: Weights of the rows ``[C, n]``.
        columns: ``[C, k]`` which columns.
        real: ``[C, k]`` false for the columns that fill up.
        matrix: ``[C, n, free + k]``.
        rho: Penalty.
        start: Point ``[C, free + k]``, multipliers relative to the weights ``[C, n]``, and gaps ``[C]`` of the point to
            start near to; ``None``: start from the middle.
    """
    free = matrix.shape[2] - columns.shape[1]
    if start is None:
        slope = -((sign * cost / 2)[:, None] @ matrix)[:, 0, free:]
        value = torch.cat([torch.full_like(sign, v) for v in (1.5, 0.5)] + [torch.ones_like(slope)] * 2, 1)
        slack = torch.cat([cost / 2, cost / 2, (rho + slope).clamp_min(rho), (rho - slope).clamp_min(rho)], 1)
        return Iterate(sign, cost, free, columns, real, matrix, torch.zeros_like(matrix[:, 0]), value, slack)
    point, share, gap = start
    slope = -((sign * cost * share)[:, None] @ matrix)[:, 0, free:]
    coef = point[:, free:]
    theta = (gap / cost.sum(1) / 2).clamp(1e-8, 0.25)[:, None]  # products to aim at, relative to c and 1
    margin = sign * (matrix @ point[:, :, None])[:, :, 0]
    loss, surplus = (1 - margin).clamp_min(0), (margin - 1).clamp_min(0)
    lowest, highest = (theta / v.maximum(theta.sqrt()) for v in (surplus, loss))
    share = share.maximum(lowest.clamp(max=0.5)).minimum(1 - highest.clamp(max=0.5))
    loss, surplus = loss.maximum(theta / (1 - share)), surplus.maximum(theta / share)
    unit = coef.abs().amax(1, keepdim=True).clamp_min(1e-3)  # size of a coefficient, as rho is of its slack
    push = theta.sqrt()
    up, down = coef.clamp_min(0) / unit, (-coef).clamp_min(0) / unit
    tight = [(1 + s * slope / rho).maximum(theta / v.maximum(push)) for s, v in ((1, up), (-1, down))]
    up, down = up.maximum(theta / tight[0]), down.maximum(theta / tight[1])
    value = torch.cat([loss, surplus, unit * up, unit * down], 1)
    slack = torch.cat([cost * (1 - share), cost * share, rho * tight[0], rho * tight[1]], 1)
    point = torch.cat([point[:, :free], unit * (up - down)], 1)
    return Iterate(sign, cost, free, columns, real, matrix, point, value, slack)


def admit(problem: Problem, iterate: Iterate, wanted: Tensor, slope: Tensor, rho: float) -> Iterate:
    """The iterate with the columns ``wanted [C, p]``; new ones enter centred. ``slope [C, p]`` is ``-A^T alpha``."""
    columns, real, matrix = gather(problem, wanted)
    rows, everywhere = iterate.rows, torch.zeros_like(slope)
    old = iterate.chosen(slope.shape[1]).gather(1, columns) & real
    centre = (iterate.value * iterate.slack).mean(1, keepdim=True)
    slope = torch.where(real, slope.gather(1, columns), 0.0)
    entry = [(rho + side * slope).maximum((slope.abs() - rho).clamp_min(_ENTRY * rho)) for side in (1, -1)]
    fresh = centre / (entry[0] * entry[1]).sqrt()  # of both halves, so that the coefficient is zero

    def carried(pairs: Tensor, fresh: list[Tensor]) -> list[Tensor]:
        halves = [torch.where(iterate.real, half, 0.0) for half in pairs[:, 2 * rows :].chunk(2, 1)]
        halves = [everywhere.scatter(1, iterate.columns, half).gather(1, columns) for half in halves]
        return [torch.where(old, *both) for both in zip(halves, fresh, strict=True)]

    values, slacks = carried(iterate.value, [fresh, fresh]), carried(iterate.slack, entry)
    value = torch.cat([iterate.value[:, : 2 * rows], *values], 1)
    slack = torch.cat([iterate.slack[:, : 2 * rows], *slacks], 1)
    point = torch.cat([iterate.point[:, : iterate.free], values[0] - values[1]], 1)
    return replace(iterate, columns=columns, real=real, matrix=matrix, point=point, value=value, slack=slack)


def gather(problem: Problem, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, which of them are real, and the matrix of the columns ``chosen [C, p]``, the intercept's first."""
    columns, real = listed(chosen)
    matrix = problem.matrix[:, columns.flatten()].unflatten(1, columns.shape).transpose(0, 1)
    matrix = torch.where(real[:, None], matrix, 0.0)
    if problem.fit_intercept:
        matrix = torch.cat([torch.ones_like(matrix[:, :, :1]), matrix], 2)
    return columns, real, matrix


def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of what is chosen in each row of a mask, at least one, and which of them are real, not fill."""
    size = max(1, int(chosen.sum(1).max()))
    index = chosen.to(torch.uint8).sort(stable=True, dim=1, descending=True).indices[:, :size]
    return index, chosen.gather(1, index)


def _gram(root: Tensor) -> Tensor:
    """``root^T root``, computed on and below the diagonal and mirrored."""
    size = root.shape[2]
    count_work(root.numel() * size // 2)
    system = root.new_zeros(root.shape[0], size, size)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        system[:, first:last, :last] = root[:, :, first:last].mT @ root[:, :, :last]
    return system.tril() + system.tril(-1).mT


class Linearised:
    """The Newton systems at an iterate whose ``margin`` is ``A x``, with everything but the coefficients eliminated."""

    def __init__(self, iterate: Iterate, margin: Tensor, rho: float) -> None:
        self.iterate, self.split = iterate, 2 * iterate.rows
        self.value, self.slack = iterate.value[:, : self.split], iterate.slack[:, : self.split]
        self.slope = -iterate.slopes(iterate.alpha)
        free = iterate.free
        self.norm = AbsoluteValues(
            iterate.value[:, self.split :], iterate.slack[:, self.split :], self.slope[:, free:], rho
        )
        loss, surplus = self.value.chunk(2, 1)
        self.miss = 1 - margin - loss + surplus
        over, under = (self.value / self.slack).chunk(2, 1)
        self.row_scale = over + under
        self.system = _gram(iterate.matrix * self.row_scale.rsqrt()[:, :, None])
        self.system.diagonal(dim1=1, dim2=2)[:, free:] += 1 / self.norm.theta
        self.lower = factor(self.system)

    def direction(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions of values, slacks and coefficients for wanted changes of the products."""
        row_target, norm_target = target[:, : self.split], target[:, self.split :]
        free = self.iterate.free
        loss, surplus = (row_target / self.slack).chunk(2, 1)
        known = (self.miss - loss + surplus) / self.row_scale
        right = self.iterate.slopes(known)
        right[:, free:] += self.norm.drift(norm_target) / self.norm.theta
        right[:, :free] -= self.slope[:, :free]
        step = solve_factored(self.system, self.lower, right)
        d_alpha = known - self.iterate.outputs(step) / self.row_scale
        d_slack = torch.cat([-d_alpha, d_alpha], 1)
        d_value = (row_target - self.value * d_slack) / self.slack
        norm_value, norm_slack = self.norm.moves(norm_target, step[:, free:])
        return torch.cat([d_value, norm_value], 1), torch.cat([d_slack, norm_slack], 1), step
