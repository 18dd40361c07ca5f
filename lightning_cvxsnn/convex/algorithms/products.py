"""Products with a programme's columns that Newton's method needs often and not exactly: centred, scaled, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_cvxsnn.convex.gemm import few, multiply
from lightning_cvxsnn.convex.matrix import Matrix, add_gram, slices
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["Products"]

_EXACT = 2**17  # entries up to which float64 costs next to nothing
_WHOLE = 2**25  # entries up to which a copy of the matrix is kept
_BLOCK = 2**19  # entries at a time: products of a step and of its outputs find them in the cache


class Products:
    """Of a matrix ``A [n, p]`` whose columns are ``(D_j - mean_j) * root_j``, and of a column of ones for an intercept.

    Args:
        matrix: ``D``.
        mean: ``[p]``, what is taken off; zeros without an intercept.
        root: ``[p]``, the columns' factors.
        fit_intercept: Whether a column of ones follows.
        dtype: Precision; ``None``: float64 for small matrices, else float32.
    """

    def __init__(
        self, matrix: Matrix, mean: Tensor, root: Tensor, fit_intercept: bool, dtype: torch.dtype | None = None
    ) -> None:
        rows, self.columns = matrix.shape
        small = rows * self.columns <= _EXACT
        self.dtype = dtype or (torch.float64 if small else torch.float32)
        self.matrix, self.fit_intercept = matrix, fit_intercept
        self.factor, self.shift = (root * matrix.source.scale).to(self.dtype), (mean * root).to(self.dtype)
        self.rows = rows
        whole = rows * self.columns <= _WHOLE
        self.copy = matrix.source.block(slice(0, rows)).to(self.dtype) if whole else None

    def of_columns(self, index: Tensor) -> Products:
        """The same of some columns, copied: one lies after the other."""
        part = copy.copy(self)
        part.columns, part.factor, part.shift = index.numel(), self.factor[index], self.shift[index]
        part.copy = self.matrix.source.block(slice(0, self.rows), index).T.to(self.dtype).contiguous().T
        return part

    def of_rows(self, index: Tensor) -> Products:
        """The same of some rows; of a copy whose columns lie one after the other."""
        assert self.copy is not None
        part = copy.copy(self)
        part.rows, part.copy = index.numel(), self.copy.T.index_select(1, index).T
        return part

    def joined(self, other: Products) -> Products:
        """With the columns of another after its own; both are copies."""
        assert self.copy is not None
        assert other.copy is not None
        both = copy.copy(self)
        both.columns = self.columns + other.columns
        both.factor, both.shift = torch.cat([self.factor, other.factor]), torch.cat([self.shift, other.shift])
        both.copy = torch.cat([self.copy.T, other.copy.T]).T
        return both

    def gram_with(self, other: Products, root: Tensor) -> Tensor:
        """``A^T diag(root^2) B`` with the columns ``B`` of another; both are copies."""
        assert self.copy is not None
        assert other.copy is not None
        count_work(self.rows * self.columns * other.columns)
        weighted = other.copy * root.square()
        product = multiply(self.copy.T, weighted) * self.factor[:, None] * other.factor
        total = float(root.square().sum())
        return product - total * torch.outer(self.shift, other.shift)

    def blocks(self, wide: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows and their entries, without mean and factor, for products with ``wide [C, ...]``."""
        if wide is not None and self.copy is not None and not few(wide):  # slices of columns would have gaps
            yield slice(0, self.rows), self.copy
            return
        size = _BLOCK if self.matrix.device.type == "cpu" else _WHOLE
        step = max(size // max(self.columns, 1), 1)
        for start in range(0, self.rows, step):
            part = slice(start, min(start + step, self.rows))
            yield part, self.matrix.source.block(part).to(self.dtype) if self.copy is None else self.copy[part]

    def entries(self, rows: Tensor) -> Tensor:
        """``A`` at some rows, ``[k, p]``."""
        if self.copy is not None:
            block = self.copy[rows]
        else:
            block = self.matrix.source.rows(rows).block(slice(0, len(rows))).to(self.dtype)
        return block * self.factor - self.shift

    def entries_of(self, columns: Tensor, rows: slice = slice(None)) -> Tensor:
        """``A`` in some columns, the intercept's after the others, ``[n, k]``, or of some rows; of a copy."""
        assert self.copy is not None
        own = columns.clamp(max=self.columns - 1)
        block = self.copy.T[:, rows].index_select(0, own)
        block.mul_(self.factor[own, None]).sub_(self.shift[own, None])
        block[columns == self.columns] = 1.0
        return block.T

    def gathered(self, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and fresh copies of ``A[rows, index]``; of a copy."""
        for part in slices(self.rows, 2 * _BLOCK // max(index.numel(), 1)):
            yield part, self.entries_of(index, part)

    def gram(self, weight: Tensor) -> Tensor:
        """``A^T diag(weight) A``, ``[p (+ 1), p (+ 1)]``, on and below the diagonal, of weights ``[n]``."""
        total = weight.new_zeros([self.columns + self.fit_intercept] * 2, dtype=self.dtype)
        root = weight.sqrt().to(self.dtype)[:, None]
        for part, block in self.blocks():
            entries = root[part] * (block * self.factor - self.shift)
            add_gram(total, torch.cat([entries, root[part]], 1).T if self.fit_intercept else entries.T)
        return total

    def outputs(self, step: Tensor) -> Tensor:
        """``A step``, ``[n, C]``, of ``step [C, p (+ 1)]``."""
        wide, constant = self._inner(step)
        if not bool(wide.any()):
            return constant.expand(-1, self.rows).T
        count_work(self.rows * step.numel())
        return torch.cat([multiply(wide, block.T) for _, block in self.blocks(wide)], 1).add_(constant).T

    def slopes(self, rows: Tensor) -> Tensor:
        """``A^T rows``, ``[C, p (+ 1)]``, of ``rows [n, C]``."""
        count_work(rows.numel() * self.columns)
        wide = rows.to(self.dtype).T.contiguous()
        total = sum(multiply(wide[:, part].contiguous(), block) for part, block in self.blocks(wide))
        return self._outer(torch.as_tensor(total), wide.sum(1))

    def curved(self, step: Tensor, bend: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """``A^T bend(A step)``, ``[C, p (+ 1)]``, in one pass; ``bend`` takes a slice of rows and ``[m, C]``."""
        count_work(2 * self.rows * step.numel())
        wide, constant = self._inner(step)
        total, mass = torch.zeros_like(wide), torch.zeros_like(wide[:, 0])
        for part, block in self.blocks(wide):
            change = bend(part, multiply(wide, block.T).add_(constant).T).T.contiguous()
            total += multiply(change, block)
            mass += change.sum(1)
        return self._outer(total, mass)

    def _inner(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[C, p]`` of the entries as they are, and the constants ``[C, 1]`` beside them."""
        coef = step[:, : self.columns]
        constant = -(coef @ self.shift)
        return coef * self.factor, (constant + step[:, -1] if self.fit_intercept else constant)[:, None]

    def _outer(self, total: Tensor, mass: Tensor) -> Tensor:
        slopes = total * self.factor - torch.outer(mass, self.shift)
        return torch.cat([slopes, mass[:, None]], 1) if self.fit_intercept else slopes
