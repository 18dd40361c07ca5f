"""The matrix of spike patterns that the convex programme is solved over."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.patterns.bits import gather_bits, pack_bits, unpack_bits

_BLOCK = 2**22  # entries looked at at a time


@dataclass(frozen=True, repr=False, eq=False)
class SpikeDictionary:
    """What a linear readout receives: one row per training row, one column per unit; entries are ``counts * scale``.

    The solver works on it as it is stored, a block of rows at a time.

    Attributes:
        counts: ``[n, P]``; uint8 or uint16 spike counts, or float32 where the readout's input is not a count (pooled
            spikes). With ``packed_columns``, ``[n, ceil(P / 8)]`` bytes.
        scale: The factor of every entry, such as 1/T for a mean over T steps.
        packed_columns: P if the counts are zeros and ones stored as bits, eight columns to a byte; else ``None``.
    """

    counts: Tensor
    scale: float = 1.0
    packed_columns: int | None = None

    @classmethod
    def from_values(cls, values: Tensor, scale: float = 1.0) -> "SpikeDictionary":
        """Store ``values * scale`` in the smallest type that holds ``values`` exactly.

        Args:
            values: ``[n, P]``, any real dtype.
            scale: The factor of every entry.

        Raises:
            ValueError: If ``values`` is not a matrix or holds NaN or infinity.

        Example:
            >>> SpikeDictionary.from_values(torch.tensor([[0.0, 3.0], [1.0, 3.0]]), scale=0.25)
            SpikeDictionary(2 rows x 2 columns, uint8 x 0.25: 2 distinct, 0 silent, 1 saturated, rate 0.438)
        """
        if values.dim() != 2:
            raise ValueError(f"Expected values of shape [rows, columns], found {list(values.shape)}.")
        if values.dtype in (torch.bool, torch.uint8):
            return cls(values.to(torch.uint8), scale)
        if not values.isfinite().all():
            raise ValueError("The readout's input holds NaN or infinity; expected spikes or finite numbers.")
        if values.numel() and bool((values == values.round()).all()) and values.min() >= 0 and values.max() < 2**16:
            return cls(values.to(torch.uint8 if values.max() < 2**8 else torch.uint16), scale)
        return cls(values.to(torch.float32), scale)

    def packed(self) -> "SpikeDictionary":
        """The same dictionary with zeros and ones stored as bits: an eighth of the memory, products a little slower.

        Raises:
            ValueError: If a count is neither 0 nor 1.

        Example:
            >>> SpikeDictionary(torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=torch.uint8)).packed()
            SpikeDictionary(2 rows x 3 columns, bits x 1: 3 distinct, 0 silent, 1 saturated, rate 0.667)
        """
        if self.packed_columns is not None:
            return self
        rows, columns = self.shape
        stored = self.counts.new_empty(rows, -(-columns // 8), dtype=torch.uint8)
        for part in self._parts():
            block = self.block(part)
            if not bool(((block == 0) | (block == 1)).all()):
                raise ValueError("Only zeros and ones pack into bits; this dictionary holds other counts.")
            stored[part] = pack_bits(block)
        return SpikeDictionary(stored, self.scale, columns)

    @property
    def shape(self) -> torch.Size:
        """``[n, P]``."""
        rows, columns = self.counts.shape
        return torch.Size([rows, columns if self.packed_columns is None else self.packed_columns])

    @property
    def constant(self) -> Tensor:
        """``[P]`` bool: columns that are the same in every row, hence useless to a readout with a bias."""
        constant = torch.ones(self.shape[1], dtype=torch.bool, device=self.counts.device)
        first = self.block(slice(0, 1))
        for part in self._parts():
            constant &= (self.block(part) == first).all(0)
        return constant

    @property
    def silent(self) -> int:
        """Number of columns that are zero in every row."""
        return int((self.constant & (self.block(slice(0, 1)) == 0).all(0)).sum())

    @property
    def saturated(self) -> int:
        """Number of columns that have one non-zero value in every row."""
        return int(self.constant.sum()) - self.silent

    @property
    def distinct(self) -> int:
        """Number of distinct columns."""
        rows, columns = self.shape
        seen = set()
        for index in torch.arange(columns, device=self.counts.device).split(max(_BLOCK // max(rows, 1), 1)):
            chunk = self.block(slice(0, rows), index)
            if chunk.is_floating_point():
                chunk = chunk + 0.0  # turns -0.0 into 0.0
            for column in chunk.T.contiguous().cpu().numpy():
                seen.add(hashlib.blake2b(column.data, digest_size=16).digest())
        return len(seen)

    @property
    def rate(self) -> float:
        """The mean of all entries."""
        total = sum(float(self.block(part).to(torch.float64).sum()) for part in self._parts())
        return self.scale * total / max(self.shape.numel(), 1)

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dictionary as a matrix ``[n, P]`` of ``dtype``."""
        return self.block(slice(0, self.shape[0])).to(dtype) * self.scale

    def __matmul__(self, coef: Tensor) -> Tensor:
        """What a readout ``coef [P, C]`` without a bias makes of each row, ``[n, C]``, in the dtype of ``coef``."""
        product = coef.new_empty(self.shape[0], coef.shape[1])
        for part in self._parts():
            product[part] = self.block(part).to(coef.dtype) @ coef
        return product * self.scale

    def block(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """The counts of some consecutive rows, ``columns`` (int64 positions) only, if given."""
        stored = self.counts[rows]
        if self.packed_columns is not None:
            return unpack_bits(stored, self.packed_columns) if columns is None else gather_bits(stored, columns)
        wide = stored.dtype == torch.uint16
        if wide:  # few operations know this type, and fewer on a GPU
            stored = stored.view(torch.int16)
        block = stored if columns is None else stored.index_select(1, columns)
        return block.to(torch.int32) & 0xFFFF if wide else block

    def rows(self, index: Tensor) -> "SpikeDictionary":
        """The dictionary restricted to rows: ``index`` is a bool mask ``[n]`` or int64 positions."""
        return SpikeDictionary(self.counts[index], self.scale, self.packed_columns)

    def columns(self, index: Tensor) -> "SpikeDictionary":
        """The dictionary restricted to columns: ``index`` holds int64 positions."""
        if self.packed_columns is None:
            wide = self.counts.dtype == torch.uint16
            counts = (self.counts.view(torch.int16) if wide else self.counts).index_select(1, index)
            return SpikeDictionary(counts.view(self.counts.dtype), self.scale)
        stored = self.counts.new_empty(self.shape[0], -(-index.numel() // 8))
        for part in self._parts():
            stored[part] = pack_bits(self.block(part, index))
        return SpikeDictionary(stored, self.scale, index.numel())

    def _parts(self) -> Iterator[slice]:
        """Slices of rows that are small enough to be looked at in full."""
        rows, columns = self.shape
        step = max(_BLOCK // max(columns, 1), 1)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def __repr__(self) -> str:
        """What a person wants to know of it."""
        rows, columns = self.shape
        kind = "bits" if self.packed_columns is not None else str(self.counts.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({rows} rows x {columns} columns, {kind} x {self.scale:g}: "
            f"{self.distinct} distinct, {self.silent} silent, {self.saturated} saturated, rate {self.rate:.3f})"
        )
