"""Hessians of outputs alone that precondition conjugate gradients: kept while columns are added and curvature moves."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.convex.algorithms.spectrum import gram

__all__ = ["KeptHessian"]

_NEARLY_ALL = 0.99  # of the curvature of an output, which few rows may hold: enough to precondition
_FEW = 0.6  # share of the rows up to which a copy of them pays
_WORTH = 1 / 24  # of its columns: the steps of conjugate gradients that cost as much as forming it
_LEAST = 100  # such steps, where it is small


class KeptHessian:
    """Of one output, at the curvature that it had once; new columns border it at that same curvature.

    Args:
        curvature: ``[n]``.
        block: The columns there are.
        share: Of the curvature; rows that add less than is left are dropped.
    """

    def __init__(self, curvature: Tensor, block: Products, share: float = _NEARLY_ALL) -> None:
        rows = _nearly_all(curvature, share)
        self.rows = rows if len(rows) <= _FEW * len(curvature) else None
        self.weight = (curvature if self.rows is None else curvature[rows]).to(block.dtype)[:, None]
        self.place = rows[:0]  # in the block; -1: the intercept
        self.matrix = self.weight.new_zeros(0, 0)
        self.steps = 0  # that it has served for

    def serves(self, place: Tensor, block: Products) -> bool:
        """Whether to go on with it at these places: to add what it lacks and to bear with its age is cheaper."""
        if self.steps > max(_WORTH * len(place), _LEAST):
            return False
        new = int((self._positions(block)[place.where(place < block.columns, -1)] < 0).sum())
        return 2 * new * block.columns <= len(place) ** 2

    def at(self, place: Tensor, block: Products) -> Tensor:
        """Its entries at some places, the intercept's after all columns; what it lacks is added."""
        place = torch.where(place == block.columns, -1, place)
        position = self._positions(block)
        new = place[position[place] < 0]
        if new.numel():
            self._border(new, block)
            position = self._positions(block)
        inside = position[place]
        return self.matrix.index_select(0, inside).index_select(1, inside)

    def _positions(self, block: Products) -> Tensor:
        """Where each column and, last, the intercept is in the matrix; -1: nowhere."""
        position = self.place.new_full((block.columns + 1,), -1)
        position[self.place] = torch.arange(len(self.place), device=position.device)
        return position

    def _border(self, new: Tensor, block: Products) -> None:
        if self.rows is not None:
            block = block.of_rows(self.rows)
        fresh = block.entries_of(torch.where(new < 0, block.columns, new))
        known, self.place = self.place, torch.cat([self.place, new])
        if not len(known):
            self.matrix = gram(fresh * self.weight.sqrt())
            return
        border = block.slopes(fresh * self.weight)[:, self.place]
        side, corner = border[:, : len(known)], border[:, len(known) :]
        self.matrix = torch.cat([torch.cat([self.matrix, side.T], 1), torch.cat([side, (corner + corner.T) / 2], 1)])


def _nearly_all(curvature: Tensor, share: float) -> Tensor:
    """The fewest rows, in their order, that make up a share of the curvature ``[n]``."""
    sizes, order = curvature.sort(descending=True)
    return order[: int((sizes.cumsum(0) < share * sizes.sum()).sum()) + 1].sort().values
