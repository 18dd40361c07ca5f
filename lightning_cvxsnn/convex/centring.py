"""Columns and targets far from zero, moved near it: the intercept takes up the difference, sums keep their digits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_cvxsnn.convex.inputs import Data
from lightning_cvxsnn.convex.losses import LossFunction
from lightning_cvxsnn.convex.matrix import Entries, Matrix, PackedDictionary
from lightning_cvxsnn.convex.presolve import largest_count

__all__ = ["Centred", "centre"]

_FAR = 16  # ranges from zero; taking off the middle is exact from there on
_LARGE_COUNT = 1024
_SMALL_COUNTS = torch.bool, torch.uint8, torch.int8


@dataclass(frozen=True, eq=False)
class Centred:
    """A programme whose intercept is another one.

    Attributes:
        data: The centred rows.
        columns: ``[P]`` what was taken off the columns; ``None``: nothing.
        targets: ``[C]`` what was taken off the targets; ``None``: nothing.
    """

    data: Data
    columns: Tensor | None = None
    targets: Tensor | None = None

    def intercept(self, coef: Tensor, intercept: Tensor, sign: float = 1) -> Tensor:
        """The centred programme's intercept ``[C]`` at ``coef [P', C]``; with ``sign`` -1, the way back."""
        if self.targets is not None:
            intercept = intercept - sign * self.targets
        if self.columns is not None:
            intercept = intercept + sign * (self.columns[: len(coef)] @ coef.to(self.columns))
        return intercept


def centre(data: Data, loss: LossFunction, fit_intercept: bool) -> Centred:
    """The rows, centred where that keeps digits; without an intercept and for counts, as they are."""
    if not fit_intercept:
        return Centred(data)
    counted = data.weight > 0  # rows of no weight may hold anything
    encoded = data.encoded[counted]
    if not len(encoded):
        return Centred(data)
    targets = _middle(*encoded.aminmax(dim=0)) if loss.follows_targets else None
    columns = None
    if data.matrix.dtype not in _SMALL_COUNTS:
        columns = _far_columns(data.matrix if bool(counted.all()) else data.matrix[counted])
    if targets is not None:
        data = replace(data, encoded=data.encoded - targets)
    if columns is not None:
        data = replace(data, matrix=_shifted(data.matrix, columns))
    return Centred(data, columns, targets)


def _middle(low: Tensor, high: Tensor) -> Tensor | None:
    """The middle of what is far from zero for its range, 0 for the rest; ``None`` if nothing but constants is far.

    Constants go with what is far, or with what varies by far less than they are.
    """
    middle, size = low / 2 + high / 2, torch.maximum(low.abs(), high.abs())
    far = torch.minimum(low.abs(), high.abs()) > _FAR * (high - low)
    varying = torch.where(low < high, size, torch.inf)
    needed = far & ((low < high) | (size > _FAR * varying.min()))
    return torch.where(far, middle, 0.0) if bool(needed.any()) else None


def _far_columns(matrix: Matrix) -> Tensor | None:
    count = largest_count(matrix)
    if count is not None and count <= _LARGE_COUNT:
        return None  # sums of such counts are exact enough
    low = torch.full((matrix.shape[1],), torch.inf, dtype=torch.float64, device=matrix.device)
    high = -low
    for _, block in matrix.blocks():
        below, above = block.aminmax(dim=0)
        low, high = torch.minimum(low, below), torch.maximum(high, above)
    middle = _middle(low * matrix.source.scale, high * matrix.source.scale)
    if middle is None or count is None:
        return middle
    middle = torch.where(middle.abs() > _LARGE_COUNT, middle.round(), 0.0)
    return middle if bool(middle.any()) else None


def _shifted(matrix: Matrix, columns: Tensor) -> Matrix:
    source: PackedDictionary = _Shifted(matrix.source, columns)
    if matrix.shape.numel() <= matrix.block_sizes.whole:
        source = Entries(source.block(slice(0, matrix.shape[0])))
    return Matrix(source, blocks=matrix.block_sizes)


@dataclass(frozen=True, eq=False)
class _Shifted:
    """A dictionary less a constant for each column, a block at a time."""

    source: PackedDictionary
    shift: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> torch.Size:
        """``[n, P]``."""
        return self.source.shape

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """All of it."""
        return self.block(slice(0, self.shape[0])).to(dtype)

    def block(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """Some rows, float64."""
        shift = self.shift if columns is None else self.shift[columns]
        return self.source.block(rows, columns).to(torch.float64) * self.source.scale - shift

    def rows(self, index: Tensor) -> _Shifted:
        """Some rows."""
        return _Shifted(self.source.rows(index), self.shift)

    def columns(self, index: Tensor) -> _Shifted:
        """Some columns."""
        return _Shifted(self.source.columns(index), self.shift[index])
