r"""The hinge programmes of several outputs, each restricted to some columns: interior points and their Newton systems.

The pairs (value, slack) of the interior point method are, in this order: ``xi`` with ``c - alpha``, ``r`` with
``alpha``, and the two halves of the coefficients with theirs. Everything but the coefficients is eliminated, which
leaves one dense system of (columns)^2 for each output. Outputs with fewer columns than others are padded with columns
of zeros, which change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.interior import AbsoluteValues, NewtonSystem
from lightning_cvxsnn.convex.matrix import add_gram
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.runtime.work import count_work

__all__ = [
    "Columns",
    "Iterate",
    "RestrictedSystem",
    "add_columns",
    "gather",
    "gram",
    "initial",
    "padded_indices",
    "weighted_gram",
]

_BLOCK = 128  # columns of a Gram matrix computed at a time
_MANY = 0.6  # share of the rows in float64 beyond which all are
_ENTRY = 0.05  # smallest slack of a column that enters, relative to rho


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of each of several outputs, the first dimension of every tensor.

    Attributes:
        index: ``[C, k]`` which columns of the programme.
        real: ``[C, k]`` false for padding.
        matrix: ``[C, n, free + k]``, without signs; the intercept's column of ones comes first.
    """

    index: Tensor
    real: Tensor
    matrix: Tensor

    @cached_property
    def single(self) -> Tensor:
        """The matrix of the only output in float32, ``[free + k, n]``."""
        return self.matrix[0].T.to(torch.float32, memory_format=torch.contiguous_format)

    @property
    def free(self) -> int:
        """1 if the first column is the intercept's, or 0."""
        return self.matrix.shape[2] - self.index.shape[1]

    def subset(self, outputs: Tensor) -> Columns:
        """Those of the outputs marked in ``outputs [C]``."""
        return Columns(self.index[outputs], self.real[outputs], self.matrix[outputs])

    def pick(self, coef: Tensor) -> Tensor:
        """Their coefficients ``[C, k]`` of those of the programme ``[C, p]``."""
        return torch.where(self.real, coef.gather(1, self.index), 0.0)

    def spread(self, coef: Tensor, size: int) -> Tensor:
        """The reverse, for ``size`` columns of the programme."""
        coef = torch.where(self.real, coef, 0.0)
        return coef.new_zeros(coef.shape[0], size).scatter(1, self.index, coef)

    def chosen(self, size: int) -> Tensor:
        """Which of ``size`` columns they are, ``[C, size]``."""
        return self.real.new_zeros(self.real.shape[0], size).scatter(1, self.index, self.real)


@dataclass(frozen=True, eq=False)
class Iterate:
    """An interior point of the restricted programmes of several outputs, the first dimension of every tensor.

    Attributes:
        sign: Labels ``[C, n]``.
        cost: Weights of the rows ``[C, n]``.
        columns: The columns.
        point: Intercept, if there is one, and coefficients ``[C, free + k]``.
        value: ``[C, 2n + 2k]``.
        slack: ``[C, 2n + 2k]``.
    """

    sign: Tensor
    cost: Tensor
    columns: Columns
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
        return self.point[:, self.columns.free :]

    @property
    def alpha(self) -> Tensor:
        """Multipliers of the rows, ``[C, n]``."""
        return self.slack[:, self.rows : 2 * self.rows]

    def outputs(self, step: Tensor) -> Tensor:
        """``A x``: outputs times labels, ``[C, n]``."""
        return self.sign * (self.columns.matrix @ step[:, :, None])[:, :, 0]

    def slopes(self, alpha: Tensor) -> Tensor:
        """``A^T alpha``, ``[C, free + k]``."""
        return ((self.sign * alpha)[:, None] @ self.columns.matrix)[:, 0]

    def subset(self, outputs: Tensor) -> Iterate:
        """The outputs marked in ``outputs [C]``."""
        tensors = (t[outputs] for t in (self.point, self.value, self.slack))
        return Iterate(self.sign[outputs], self.cost[outputs], self.columns.subset(outputs), *tensors)

    def moved(self, value: Tensor, slack: Tensor, step: Tensor) -> Iterate:
        """The iterate after a step; coefficients are the difference of their halves."""
        up, down = value[:, 2 * self.rows :].chunk(2, 1)
        point = torch.cat([(self.point + step)[:, : self.columns.free], up - down], 1)
        return replace(self, point=point, value=value, slack=slack)

    def spread(self, size: int) -> Tensor:
        """Coefficients of all ``size`` columns, ``[C, size]``."""
        return self.columns.spread(self.coef, size)


def initial(
    sign: Tensor, cost: Tensor, columns: Columns, penalty: ElasticNet, start: tuple[Tensor, Tensor, Tensor] | None
) -> Iterate:
    """The first interior point of a restricted programme.

    Args:
        sign: Labels ``[C, n]``.
        cost: Weights of the rows ``[C, n]``.
        columns: The columns.
        penalty: Penalty.
        start: Point ``[C, free + k]``, multipliers relative to the weights ``[C, n]``, and gaps ``[C]`` of the point to
            start near to; ``None``: start from the middle.
    """
    free, matrix, rho = columns.free, columns.matrix, penalty.l1
    if start is None:
        slope = -((sign * cost / 2)[:, None] @ matrix)[:, 0, free:]
        value = torch.cat([torch.full_like(sign, v) for v in (1.5, 0.5)] + [torch.ones_like(slope)] * 2, 1)
        slack = torch.cat([cost / 2, cost / 2, (rho + slope).clamp_min(rho), (rho - slope).clamp_min(rho)], 1)
        return Iterate(sign, cost, columns, torch.zeros_like(matrix[:, 0]), value, slack)
    point, share, gap = start
    coef = point[:, free:]
    slope = penalty.bend(columns.index) * coef - ((sign * cost * share)[:, None] @ matrix)[:, 0, free:]
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
    return Iterate(sign, cost, columns, point, value, slack)


def add_columns(programme: ReducedProgramme, iterate: Iterate, wanted: Tensor, slope: Tensor, rho: float) -> Iterate:
    """The iterate with the columns ``wanted [C, p]``; new ones enter centred. ``slope [C, p]`` is ``-A^T alpha``."""
    before, columns = iterate.columns, gather(programme, wanted)
    rows, everywhere = iterate.rows, torch.zeros_like(slope)
    old = before.chosen(slope.shape[1]).gather(1, columns.index) & columns.real
    centre = (iterate.value * iterate.slack).mean(1, keepdim=True)
    slope = columns.pick(slope)
    entry = [(rho + side * slope).maximum((slope.abs() - rho).clamp_min(_ENTRY * rho)) for side in (1, -1)]
    fresh = centre / (entry[0] * entry[1]).sqrt()  # of both halves, so that the coefficient is zero

    def carried(pairs: Tensor, fresh: list[Tensor]) -> list[Tensor]:
        halves = [torch.where(before.real, half, 0.0) for half in pairs[:, 2 * rows :].chunk(2, 1)]
        halves = [everywhere.scatter(1, before.index, half).gather(1, columns.index) for half in halves]
        return [torch.where(old, *both) for both in zip(halves, fresh, strict=True)]

    values, slacks = carried(iterate.value, [fresh, fresh]), carried(iterate.slack, entry)
    value = torch.cat([iterate.value[:, : 2 * rows], *values], 1)
    slack = torch.cat([iterate.slack[:, : 2 * rows], *slacks], 1)
    point = torch.cat([iterate.point[:, : before.free], values[0] - values[1]], 1)
    return replace(iterate, columns=columns, point=point, value=value, slack=slack)


def gather(programme: ReducedProgramme, chosen: Tensor) -> Columns:
    """The columns ``chosen [C, p]`` of a programme."""
    index, real = padded_indices(chosen)
    matrix = programme.matrix[:, index.flatten()]
    matrix = matrix.reshape(len(matrix), *index.shape).transpose(0, 1)
    matrix = torch.where(real[:, None], matrix, 0.0)
    if programme.fit_intercept:
        matrix = torch.cat([torch.ones_like(matrix[:, :, :1]), matrix], 2)
    return Columns(index, real, matrix)


def padded_indices(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of what is chosen in each row of a mask, padded to one length of at least 1, and which are no padding."""
    size = max(1, int(chosen.sum(1).max()))
    index = chosen.to(torch.uint8).sort(stable=True, dim=1, descending=True).indices[:, :size]
    return index, chosen.gather(1, index)


def gram(root: Tensor) -> Tensor:
    """``root^T root`` of ``[C, n, k]``."""
    return _mirrored(_lower_gram(root))


def _lower_gram(root: Tensor) -> Tensor:
    """The same, on and below the diagonal."""
    size = root.shape[2]
    count_work(root.numel() * size // 2)
    system = root.new_zeros(root.shape[0], size, size)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        system[:, first:last, :last] = root[:, :, first:last].mT @ root[:, :, :last]
    return system


def _mirrored(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).mT


def weighted_gram(columns: Columns, scale: Tensor, double: float) -> Tensor:
    """``A^T diag(1 / scale) A``, ``[C, free + k, free + k]``.

    Near the end of an interior point method some rows weigh far more than the others; they decide how exact the sum is.

    Args:
        columns: The columns.
        scale: ``[C, n]``, positive.
        double: Share of the largest weight above which rows are multiplied in float64, the others in float32, which
            is faster; 0: all in float64. Above 0 there must be one output.
    """
    heavy = scale * double < scale.amin() if double else torch.ones_like(scale, dtype=torch.bool)
    if bool(heavy.double().mean() <= _MANY):
        light = torch.where(heavy, 0.0, scale.rsqrt())[0].float()
        total = light.new_zeros(columns.matrix.shape[2], columns.matrix.shape[2])
        add_gram(total, columns.single * light)
        if bool(total.isfinite().all()):  # no number is beyond what float32 holds
            exact = _lower_gram(columns.matrix[heavy][None] * scale[heavy].rsqrt()[:, None])
            return _mirrored(exact.add_(total))
    return gram(columns.matrix * scale.rsqrt()[:, :, None])


class RestrictedSystem:
    """The Newton systems at an iterate whose ``margin`` is ``A x``; ``double`` is that of `weighted_gram`."""

    def __init__(self, iterate: Iterate, margin: Tensor, penalty: ElasticNet, double: float) -> None:
        self.iterate, self.split, free = iterate, 2 * iterate.rows, iterate.columns.free
        self.value, self.slack = iterate.value[:, : self.split], iterate.slack[:, : self.split]
        self.slope, bend = -iterate.slopes(iterate.alpha), penalty.bend(iterate.columns.index)
        self.slope[:, free:] += bend * iterate.coef
        self.norm = AbsoluteValues(
            iterate.value[:, self.split :], iterate.slack[:, self.split :], self.slope[:, free:], penalty.l1
        )
        loss, surplus = self.value.chunk(2, 1)
        self.miss = 1 - margin - loss + surplus
        over, under = (self.value / self.slack).chunk(2, 1)
        self.row_scale = over + under
        curvature = weighted_gram(iterate.columns, self.row_scale, double)
        curvature.diagonal(dim1=1, dim2=2)[:, free:] += bend
        self.system = NewtonSystem(curvature, self.norm, slice(free, None))

    def direction(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions of values, slacks and coefficients for wanted changes of the products."""
        row_target, norm_target = target[:, : self.split], target[:, self.split :]
        free = self.iterate.columns.free
        loss, surplus = (row_target / self.slack).chunk(2, 1)
        known = (self.miss - loss + surplus) / self.row_scale
        right = self.iterate.slopes(known)
        right[:, free:] += self.norm.drift(norm_target) / self.norm.theta
        right[:, :free] -= self.slope[:, :free]
        step = self.system.step(right)
        d_alpha = known - self.iterate.outputs(step) / self.row_scale
        d_slack = torch.cat([-d_alpha, d_alpha], 1)
        d_value = (row_target - self.value * d_slack) / self.slack
        norm_value, norm_slack = self.norm.moves(norm_target, step[:, free:])
        return torch.cat([d_value, norm_value], 1), torch.cat([d_slack, norm_slack], 1), step
