"""Hinge programmes with all rows but a few put together in four groups: what a good start leaves to solve.

At the optimum most rows are well inside or well outside the margin, and their multipliers are ``c`` or 0 whatever the
others do. A group is such a side and a label; its row is the weighted mean of its members. By Jensen's inequality the
grouped programme bounds the full one from below, with equality where members agree on their side; a multiplier of a
group, shared out by weight, is one of the full programme. Members that disagree become rows of their own. After Park,
Klabjan, "An aggregate and iterative disaggregate algorithm with proven optimality in machine learning", Machine
Learning 105, 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.restricted import Columns, padded_indices
from lightning_cvxsnn.convex.presolve import ReducedProgramme

__all__ = ["Grouped", "group"]

_GROUPS = 4  # inside or outside the margin, label 1 or -1


@dataclass(frozen=True, eq=False)
class Grouped:
    """The grouped programmes of several outputs, the first dimension of every tensor: ``s`` single rows and 4 groups.

    Outputs with fewer single rows than others are padded with zero rows, which add a constant to the objective.

    Attributes:
        single: ``[C, n]`` which rows are on their own.
        rows: ``[C, s]`` their indices.
        member: ``[C, n]`` the group of every row.
        sign: ``[C, s + 4]`` labels.
        cost: ``[C, s + 4]`` weights.
        columns: The columns, ``[C, s + 4, free + k]``.
    """

    single: Tensor
    rows: Tensor
    member: Tensor
    sign: Tensor
    cost: Tensor
    columns: Columns

    def together(self, share: Tensor, weight: Tensor) -> Tensor:
        """Multipliers relative to their weights, ``[C, s + 4]``, from those of all rows ``[C, n]``."""
        weight = torch.where(self.single, 0.0, weight)
        total = share.new_zeros(share.shape[0], _GROUPS).scatter_add(1, self.member, weight)
        mean = share.new_zeros(share.shape[0], _GROUPS).scatter_add(1, self.member, weight * share)
        return torch.cat([share.gather(1, self.rows), mean / total.clamp_min(1e-300)], 1)

    def apart(self, share: Tensor) -> Tensor:
        """The reverse: of all rows."""
        own, groups = share[:, :-_GROUPS], share[:, -_GROUPS:]
        everywhere = groups.gather(1, self.member)
        return torch.where(self.single, everywhere.scatter(1, self.rows, own), everywhere)


def group(programme: ReducedProgramme, sign: Tensor, margin: Tensor, single: Tensor, chosen: Tensor) -> Grouped:
    """Put rows together by label and by the side of the margin they are on.

    Args:
        programme: The reduced programme.
        sign: Labels ``[C, n]``.
        margin: Outputs times labels ``[C, n]``.
        single: Rows that stay on their own, ``[C, n]``.
        chosen: Columns of the programme, ``[C, p]``.
    """
    outputs = sign.shape[0]
    index, real = padded_indices(chosen)
    rows, own = padded_indices(single)
    member = (sign < 0).long() + 2 * (margin >= 1)
    indicator = torch.nn.functional.one_hot(member, _GROUPS) * torch.where(single, 0.0, programme.weight)[:, :, None]
    total = indicator.sum(1)
    sums = programme.matrix.T @ indicator.transpose(0, 1).flatten(1)
    means = sums.reshape(-1, outputs, _GROUPS).permute(1, 2, 0)
    means = means.gather(2, index[:, None].expand(-1, _GROUPS, -1)) / total.clamp_min(1e-300)[:, :, None]
    alone = torch.stack([programme.matrix[i][:, j] for i, j in zip(rows, index, strict=True)])
    used = torch.cat([own, total > 0], 1)
    matrix = torch.where(used[:, :, None] & real[:, None], torch.cat([alone, means], 1), 0.0)
    if programme.fit_intercept:
        matrix = torch.cat([used[:, :, None].to(matrix), matrix], 2)
    labels = sign.new_tensor([1.0, -1.0]).repeat(outputs, _GROUPS // 2)
    cost = torch.where(used, torch.cat([programme.weight[rows], total], 1), programme.weight.mean())
    labels = torch.cat([sign.gather(1, rows), labels], 1)
    return Grouped(single, rows, member, labels, cost, Columns(index, real, matrix))
