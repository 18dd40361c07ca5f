"""The matrix of a programme: all that the solvers may do with it, in the memory of the dictionary it came from.

A packed dictionary is never written out: products, gathers and Grams convert a block of its rows at a time. A float64
tensor is one such block, used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from lightning_cvxsnn.convex.gemm import few, multiply
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["Blocks", "DictionaryLike", "Entries", "Gathered", "Matrix", "PackedDictionary", "add_gram", "slices"]

_STRIPE, _CACHED = 128, 2**20  # rows of a Gram that are computed together, entries that they are computed of


@dataclass(frozen=True)
class Blocks:
    """How many entries of a dictionary are converted to float64 at a time.

    Attributes:
        whole: Dictionaries up to this size (64 MiB in float64) are converted once and for all.
        product: In products: they stay in the processor's cache.
        device: The same on any other device.
        gathered: Of gathered columns; entries of a float64 matrix that are read at a time.
        keys: Where columns are compared: they stay in the processor's cache.
    """

    whole: int = 2**23
    product: int = 2**18
    device: int = 2**26
    gathered: int = 2**23
    keys: int = 2**19


_BLOCKS = Blocks()


@runtime_checkable
class DictionaryLike(Protocol):
    """Anything that can write itself out as a dense matrix, such as packed spike counts."""

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as a dense ``[n, P]`` tensor of ``dtype``."""
        ...


@runtime_checkable
class PackedDictionary(DictionaryLike, Protocol):
    """A dictionary that need not be written out: its entries are ``scale`` times those of its blocks."""

    @property
    def shape(self) -> torch.Size:
        """``[n, P]``."""
        ...

    @property
    def scale(self) -> float:
        """The factor of every entry."""
        ...

    def block(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """Some consecutive rows, without ``scale``, of an integer or float dtype; only ``columns [k]``, if given."""
        ...

    def rows(self, index: Tensor) -> PackedDictionary:
        """The dictionary restricted to rows, a bool mask ``[n]`` or int64 positions."""
        ...

    def columns(self, index: Tensor) -> PackedDictionary:
        """The dictionary restricted to columns, int64 positions."""
        ...


class Gathered(Protocol):
    """Whatever columns can be gathered of."""

    def gathered(self, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and fresh copies of ``matrix[rows, index]``, bounded in size."""
        ...


@dataclass(frozen=True, eq=False)
class Entries:
    """A plain tensor ``[n, P]`` as a packed dictionary."""

    values: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> torch.Size:
        """``[n, P]``."""
        return self.values.shape

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """The tensor itself, as ``dtype``."""
        return self.values.to(dtype) * self.scale

    def block(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """Some rows, and of them ``columns`` only, if given; chosen float64 columns lie one after the other."""
        values = self.values[rows]
        if columns is None:
            return values
        if values.dtype == torch.float64:  # not converted block by block: columns are gathered once and used often
            return values.T.index_select(0, columns).T
        return values.gather(1, columns.expand(len(values), -1))

    def rows(self, index: Tensor) -> Entries:
        """Some rows, copied."""
        return Entries(self.values[index], self.scale)

    def columns(self, index: Tensor) -> Entries:
        """Some columns, copied."""
        return Entries(self.block(slice(None), index), self.scale)


class Matrix:
    """What the solvers touch a dictionary through: all results are float64 tensors on its device.

    ``matrix @ W``, ``matrix.T @ U``, ``matrix[:, index]`` (a dense gather), :meth:`gathered`, :meth:`model` and
    :meth:`squared_norms`. ``matrix[rows]``, :meth:`columns` and :meth:`with_ones` are matrices again. Blocks have a
    fixed size, so results do not depend on how much memory is free.

    Args:
        source: The dictionary.
        ones: Whether a column of ones follows those of the dictionary.
        blocks: Sizes of its blocks.
    """

    def __init__(self, source: PackedDictionary, ones: bool = False, blocks: Blocks = _BLOCKS) -> None:
        self.source, self.ones, self.block_sizes = source, ones, blocks
        self.shape = torch.Size([source.shape[0], source.shape[1] + ones])
        sample = source.block(slice(0, 0))
        self.device, self.dtype = sample.device, sample.dtype

    @property
    def packed(self) -> bool:
        """Whether entries have to be converted before they are used."""
        return self.dtype != torch.float64

    @property
    def T(self) -> _Transposed:
        """The transpose, for products only."""
        return _Transposed(self)

    def with_ones(self) -> Matrix:
        """The matrix with a column of ones after its own: the intercept's."""
        return Matrix(self.source, ones=True, blocks=self.block_sizes)

    def columns(self, index: Tensor) -> Matrix:
        """The matrix restricted to columns, in the memory of the packed ones."""
        return Matrix(self.source.columns(index), blocks=self.block_sizes)

    def to_dense(self) -> Tensor:
        """The whole matrix as a float64 tensor, for solvers that need it."""
        return self[:, torch.arange(self.shape[1], device=self.device)]

    def blocks(self, index: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and their dictionary entries (in columns ``index``), float64 but without the scale."""
        rows, columns = self.source.shape
        width = columns if index is None else index.numel()
        sizes = self.block_sizes
        size = (sizes.product if self.device.type == "cpu" else sizes.device) if self.packed else sizes.gathered
        for part in slices(rows, size // max(width, 1)):
            yield part, self.source.block(part, index).to(torch.float64)

    def gathered(self, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and fresh float64 copies of ``matrix[rows, index]``, bounded in size."""
        for part in slices(self.shape[0], self.block_sizes.gathered // max(index.numel(), 1)):
            yield part, self._gather(part, index)

    def model(self, index: Tensor, curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """``G^T diag(curvature) G`` and ``G^T slope`` for ``G = matrix[:, index]``; non-negative curvatures ``[n]``."""
        root = curvature.sqrt()[:, None]
        gram, product = root.new_zeros(index.numel(), index.numel()), root.new_zeros(index.numel())
        count_work(self.shape[0] * index.numel() ** 2)
        for part, block in self.gathered(index):
            product += slope[part] @ block
            block *= root[part]
            gram.addmm_(block.T, block)
        return gram, product

    def gram(self, index: Tensor, first: int, weight: Tensor) -> Tensor:
        """``G^T diag(weight) G[:, first:]`` for ``G = matrix[:, index]``."""
        gram = weight.new_zeros(index.numel(), index.numel() - first)
        for part, block in self.gathered(index):
            gram.addmm_(block.T, weight[part, None] * block[:, first:])
        return gram

    def squared_norms(self, weight: Tensor) -> Tensor:
        """``sum_i weight_i matrix_ij^2``, one for each column."""
        total = weight.new_zeros(self.source.shape[1])
        count_work(self.source.shape.numel())
        for part, block in self.blocks():
            total += weight[part] @ block.square()
        total *= self.source.scale**2
        return torch.cat([total, weight.sum()[None]]) if self.ones else total

    def __matmul__(self, right: Tensor) -> Tensor:
        rows, columns = self.source.shape
        factor, index = right[:columns], None
        used = (factor if factor.ndim == 2 else factor[:, None]).any(1).nonzero()[:, 0]
        if used.numel() <= columns // 8:  # sparse coefficients: the other columns need not be looked at
            factor, index = factor[used], used
        product = right.new_empty(rows, *right.shape[1:])
        count_work(rows * factor.numel())
        wide = factor.T.contiguous() if factor.ndim == 2 else factor
        for part, block in self.blocks(index):
            product[part] = (wide @ block.T).T if factor.ndim == 2 else block @ factor
        if self.source.scale != 1:
            product *= self.source.scale
        return product.add_(right[columns]) if self.ones else product

    @overload
    def __getitem__(self, key: Tensor) -> Matrix: ...
    @overload
    def __getitem__(self, key: tuple[slice, Tensor]) -> Tensor: ...
    def __getitem__(self, key: Tensor | tuple[slice, Tensor]) -> Matrix | Tensor:
        if isinstance(key, Tensor):
            return Matrix(self.source.rows(key), self.ones, self.block_sizes)
        return self._gather(*key)

    def _gather(self, part: slice, index: Tensor) -> Tensor:
        columns = self.source.shape[1]
        own = index.clamp(max=columns - 1) if self.ones else index
        dense = self.source.block(part, own).to(torch.float64)
        if self.source.scale != 1:
            dense = dense * self.source.scale
        if self.ones:
            dense[:, index == columns] = 1.0
        return dense


class _Transposed:
    """The transpose of a matrix, for products only."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def __matmul__(self, right: Tensor) -> Tensor:
        product = right.new_zeros(*right.shape[1:], self.matrix.source.shape[1])
        count_work(right.numel() * self.matrix.source.shape[1])
        wide = right.T.contiguous() if right.ndim == 2 else right  # faster than a tall product
        for part, block in self.matrix.blocks():
            product += wide[..., part] @ block
        if self.matrix.source.scale != 1:
            product *= self.matrix.source.scale
        product = product.T.contiguous() if right.ndim == 2 else product
        return torch.cat([product, right.sum(0)[None]]) if self.matrix.ones else product


def add_gram(total: Tensor, wide: Tensor, factor: float = 1.0) -> None:
    """Add ``factor * wide @ wide^T``, ``[k, k]`` of ``[k, m]``, on and below the diagonal."""
    count_work(wide.numel() * len(wide) // 2)
    copied = not few(wide)
    for cached in slices(wide.shape[1], _CACHED // max(len(wide), 1)):
        rows = wide[:, cached].contiguous() if copied else wide[:, cached]
        for part in slices(len(wide), _STRIPE):
            if copied:
                total[part.start :, part].add_(multiply(rows[part.start :], rows[part].T), alpha=factor)
            else:
                total[part.start :, part].addmm_(rows[part.start :], rows[part].T, alpha=factor)


def slices(rows: int, step: int) -> Iterator[slice]:
    """Of so many rows each, the last of what is left."""
    step = max(step, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
