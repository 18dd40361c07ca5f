"""The matrix of spike patterns that the convex programme is solved over."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.patterns.bits import gather_bits, pack_bits, unpack_bits
from lightning_cvxsnn.patterns.hashing import random_keys

_BLOCK = 2**18  # entries processed at a time: their temporaries stay in the processor's cache
_DEVICE_BLOCK = 2**26  # the same on any other device
_FORMAT = "lightning_cvxsnn.SpikeDictionary 1"


@dataclass(frozen=True, repr=False, eq=False)
class SpikeDictionary:
    """What a linear readout receives: one row per training row, one column per unit; entries are ``counts * scale``.

    The solver works on it as it is stored, a block of rows at a time.

    Attributes:
        counts: ``[n, P]``; uint8 or uint16 spike counts, or float32 where the readout's input is not a count (pooled
            spikes). With ``packed_columns``, ``[n, ceil(P / 8)]`` bytes.
        scale: The factor of every entry, such as 1/T for a mean over T steps.
        packed_columns: P if the counts are zeros and ones stored as bits, eight columns to a byte; else ``None``.

    Raises:
        ValueError: If the counts have another dtype or shape.
    """

    counts: Tensor
    scale: float = 1.0
    packed_columns: int | None = None

    def __post_init__(self) -> None:
        counts, packed = self.counts, self.packed_columns
        if counts.dtype not in (torch.uint8, torch.uint16, torch.float32):
            raise ValueError(
                f"Found counts of {counts.dtype}. Expected uint8, uint16 or float32; "
                "SpikeDictionary.from_values takes any."
            )
        if counts.dim() != 2:
            raise ValueError(f"Found counts of shape {list(counts.shape)}. Expected [rows, columns].")
        if packed is not None and (counts.dtype != torch.uint8 or packed < 0 or counts.shape[1] != -(-packed // 8)):
            raise ValueError(
                f"Found counts {list(counts.shape)} of {counts.dtype} for {packed} columns stored as bits. Expected "
                f"[rows, {-(-packed // 8)}] of uint8, as SpikeDictionary.packed() makes them."
            )

    @classmethod
    def from_values(cls, values: Tensor, scale: float = 1.0) -> "SpikeDictionary":
        """Store ``values * scale``: counts below 65,536 exactly in the smallest type, all else rounded to float32.

        Args:
            values: ``[n, P]``, any real dtype.
            scale: The factor of every entry.

        Raises:
            ValueError: If ``values`` is not a matrix, is complex or holds NaN, infinity or what float32 does not hold.

        Example:
            >>> SpikeDictionary.from_values(torch.tensor([[0.0, 3.0], [1.0, 3.0]]), scale=0.25)
            SpikeDictionary(2 rows x 2 columns, uint8 x 0.25: 2 distinct, 0 silent, 1 saturated, rate 0.438)
        """
        if values.dim() != 2:
            raise ValueError(f"Expected values of shape [rows, columns], found {list(values.shape)}.")
        if values.is_complex():
            raise ValueError(f"Expected spikes or real numbers, found {values.dtype}.")
        values = values.detach()
        if values.dtype in (torch.bool, torch.uint8):
            return cls(values.to(torch.uint8), scale)
        if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations on these
            values = values.to(torch.float64)
        if not values.to(torch.float32).isfinite().all():
            raise ValueError(
                "The readout's input holds NaN, infinity or numbers beyond 3e38; expected spikes or finite numbers."
            )
        if values.numel() and float(values.min()) >= 0 and bool((values == values.round()).all()):
            largest = float(values.max())
            if largest < 2**16:
                return cls(values.to(torch.uint8 if largest < 2**8 else torch.uint16), scale)
        return cls(values.to(torch.float32), scale)

    @classmethod
    def side_by_side(cls, dictionaries: "Sequence[SpikeDictionary]") -> "SpikeDictionary":
        """Join the columns of several dictionaries of the same rows, unpacked, on the CPU.

        Args:
            dictionaries: At least one.

        Raises:
            ValueError: If their rows or scales differ, or there is none.

        Example:
            >>> one = SpikeDictionary(torch.tensor([[0, 3], [1, 3]], dtype=torch.uint8))
            >>> SpikeDictionary.side_by_side([one, one]).shape
            torch.Size([2, 4])
        """
        rows, scale, dtype = _in_common(dictionaries, 0)
        widths = [d.shape[1] for d in dictionaries]
        joined = torch.empty(rows, sum(widths), dtype=dtype, device="cpu")
        for part, one in zip(torch.split(joined, widths, dim=1), dictionaries, strict=True):
            part.copy_(one.counts if one.packed_columns is None else one.block(slice(None)))
        return cls(joined, scale)

    @classmethod
    def stacked(cls, dictionaries: "Sequence[SpikeDictionary]") -> "SpikeDictionary":
        """Join the rows of several dictionaries of the same columns, unpacked.

        Args:
            dictionaries: At least one.

        Raises:
            ValueError: If their columns or scales differ, or there is none.

        Example:
            >>> one = SpikeDictionary(torch.tensor([[0, 3], [1, 3]], dtype=torch.uint8))
            >>> SpikeDictionary.stacked([one, one]).shape
            torch.Size([4, 2])
        """
        _, scale, dtype = _in_common(dictionaries, 1)
        counts = (d.counts if d.packed_columns is None else d.block(slice(None)) for d in dictionaries)
        return cls(torch.cat([each.to(dtype) for each in counts]), scale)

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
        return len(torch.unique(self._keys(), dim=0))

    @property
    def rate(self) -> float:
        """The mean of all entries."""
        total = sum(float(self.block(part).to(torch.float64).sum()) for part in self._parts())
        return self.scale * total / max(self.shape.numel(), 1)

    @property
    def rates(self) -> Tensor:
        """``[P]`` float64: the mean entry of each column; its firing rate where entries are spikes or their means."""
        return self.column_sums().to(torch.float64) * (self.scale / max(self.shape[0], 1))

    def column_sums(self) -> Tensor:
        """Sums of the counts of each column, ``[P]`` int64 (float64 for fractions); the scale is left out."""
        dtype = torch.float64 if self.counts.is_floating_point() else torch.int64
        total = torch.zeros(self.shape[1], dtype=dtype, device=self.counts.device)
        for part in self._parts():
            total += self.block(part).sum(0, dtype=dtype)
        return total

    def column_hashes(self, seed: int = 0) -> Tensor:
        """64-bit hashes ``[P]`` int64 of the columns, the same on every device.

        Each is the column's product with one random 64-bit number per row, modulo 2^64: equal columns have equal
        hashes, and two unequal ones share a hash with a probability of about 2^-64 over seeds.

        Args:
            seed: Seed of the random numbers.
        """
        keys = random_keys(self.shape[0], seed).to(self.counts.device)
        total = torch.zeros(self.shape[1], dtype=torch.int64, device=self.counts.device)
        for part in self._parts():
            block = self.block(part)
            if block.is_floating_point():
                block = (block + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
            total += (block * keys[part, None]).sum(0)
        return total

    def column_scores(self, dual: Tensor) -> Tensor:
        """``D^T U``, by which columns are priced at the dual point U: ``[P, C]`` in the dtype of U.

        Args:
            dual: U, ``[n, C]`` float32 or float64 on the dictionary's device.

        Raises:
            ValueError: If ``dual`` has another shape, dtype or device.

        Example:
            >>> counts = torch.tensor([[0, 3], [1, 3]], dtype=torch.uint8)
            >>> SpikeDictionary(counts, 0.5).column_scores(torch.tensor([[1.0], [2.0]]))
            tensor([[1.0000],
                    [4.5000]])
        """
        rows, device = self.shape[0], self.counts.device
        real = dual.dtype in (torch.float32, torch.float64)
        if dual.dim() != 2 or len(dual) != rows or not real or dual.device != device:
            raise ValueError(
                f"Found a dual point of shape {list(dual.shape)}, {dual.dtype} on '{dual.device}'. Expected [{rows}, "
                f"C], float32 or float64, on '{device}'."
            )
        product = dual.new_zeros(dual.shape[1], self.shape[1])
        wide = dual.T.contiguous()
        for part in self._parts():
            product += wide[:, part] @ self.block(part).to(dual.dtype)
        return product.T.contiguous() * self.scale

    def distinct_columns(self) -> "DistinctColumns":
        """The columns without repetitions, each represented by its first occurrence, in that order.

        Columns are compared by 128 bits of hashes: two unequal ones are taken for equal with a probability of about
        2^-128.

        Example:
            >>> found = SpikeDictionary(torch.tensor([[0, 1, 0], [1, 1, 1]], dtype=torch.uint8)).distinct_columns()
            >>> found.witness.tolist(), found.owner.tolist(), found.multiplicity.tolist()
            ([0, 1], [0, 1, 0], [2, 1])
        """
        _, group, multiplicity = torch.unique(self._keys(), dim=0, return_inverse=True, return_counts=True)
        starts = multiplicity.cumsum(0) - multiplicity
        first = group.argsort(stable=True)[starts]
        witness, order = first.sort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return DistinctColumns(self.columns(witness), witness, rank[group], multiplicity[order])

    def _keys(self) -> Tensor:
        return torch.stack([self.column_hashes(seed) for seed in (0, 1)], dim=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dictionary to a file, as it is stored.

        Args:
            path: The file; one that is there is replaced.
        """
        counts = self.counts.clone(memory_format=torch.contiguous_format)  # of a part of a larger matrix, that part
        saved = {"counts": counts, "scale": self.scale, "packed_columns": self.packed_columns}
        torch.save({"format": _FORMAT, **saved}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SpikeDictionary":
        """Read what `save` wrote, onto the CPU. No code in the file is run.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is not a whole dictionary written by `save`.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # damaged and foreign files raise about anything
            raise ValueError(f"{os.fspath(path)!r} is not a file that SpikeDictionary.save wrote: {error}") from error
        parts = {"format", "counts", "scale", "packed_columns"}
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT or saved.keys() != parts:
            raise ValueError(
                f"{os.fspath(path)!r} holds something else than a SpikeDictionary of this version. Expected a file "
                f"written by SpikeDictionary.save, of format {_FORMAT!r}."
            )
        try:
            return cls(saved["counts"], saved["scale"], saved["packed_columns"])
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)!r} holds no whole SpikeDictionary: {error}") from error

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dictionary as a matrix ``[n, P]`` of ``dtype``."""
        return self.block(slice(0, self.shape[0])).to(dtype) * self.scale

    def __matmul__(self, coef: Tensor) -> Tensor:
        """Outputs ``[n, C]`` of a readout ``coef [P, C]`` without a bias, in the dtype of ``coef``."""
        if coef.dim() != 2 or len(coef) != self.shape[1]:
            raise ValueError(f"Found coef of shape {list(coef.shape)}. Expected [{self.shape[1]}, outputs].")
        product = coef.new_empty(self.shape[0], coef.shape[1])
        for part in self._parts():
            product[part] = self.block(part).to(coef.dtype) @ coef
        return product * self.scale

    def block(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """The counts of consecutive rows; of the ``columns`` at these int64 positions, if given."""
        stored = self.counts[rows]
        if self.packed_columns is not None:
            return unpack_bits(stored, self.packed_columns) if columns is None else gather_bits(stored, columns)
        wide = stored.dtype == torch.uint16
        if wide:  # torch has few operations on uint16, and fewer on a GPU
            stored = stored.view(torch.int16)
        block = stored if columns is None else _gathered(stored, columns)
        return block.to(torch.int32) & 0xFFFF if wide else block

    def rows(self, index: Tensor) -> "SpikeDictionary":
        """The dictionary restricted to rows: ``index`` is a bool mask ``[n]`` or int64 positions."""
        return SpikeDictionary(self.counts[index], self.scale, self.packed_columns)

    def columns(self, index: Tensor) -> "SpikeDictionary":
        """The dictionary restricted to columns: ``index`` holds int64 positions."""
        if self.packed_columns is None:
            wide = self.counts.dtype == torch.uint16
            counts = _gathered(self.counts.view(torch.int16) if wide else self.counts, index)
            return SpikeDictionary(counts.view(self.counts.dtype), self.scale)
        stored = self.counts.new_empty(self.shape[0], -(-index.numel() // 8))
        for part in self._parts():
            stored[part] = pack_bits(self.block(part, index))
        return SpikeDictionary(stored, self.scale, index.numel())

    def _parts(self) -> Iterator[slice]:
        """Slices of rows that are small enough to be processed as they are."""
        rows, columns = self.shape
        step = max((_BLOCK if self.counts.device.type == "cpu" else _DEVICE_BLOCK) // max(columns, 1), 1)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def __repr__(self) -> str:
        """Size, storage and the statistics of the columns."""
        rows, columns = self.shape
        kind = "bits" if self.packed_columns is not None else str(self.counts.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({rows} rows x {columns} columns, {kind} x {self.scale:g}: "
            f"{self.distinct} distinct, {self.silent} silent, {self.saturated} saturated, rate {self.rate:.3f})"
        )


@dataclass(frozen=True, eq=False)
class DistinctColumns:
    """The distinct columns of a dictionary of P columns.

    Attributes:
        dictionary: ``[n, Q]``, every pattern once.
        witness: ``[Q]`` int64, the first column of each pattern: the unit whose hidden weights stand for it.
        owner: ``[P]`` int64, each column's pattern: column j equals column ``owner[j]`` of ``dictionary``.
        multiplicity: ``[Q]`` int64, how many columns have the pattern.
    """

    dictionary: SpikeDictionary
    witness: Tensor
    owner: Tensor
    multiplicity: Tensor


def _in_common(dictionaries: Sequence[SpikeDictionary], axis: int) -> tuple[int, float, torch.dtype]:
    """Rows (or columns) and scale of dictionaries to be joined, and the dtype that holds the counts of all."""
    found = {(d.shape[axis], d.scale) for d in dictionaries}
    if len(found) != 1:
        what = ("rows", "columns")[axis]
        raise ValueError(
            f"Found dictionaries of ({what}, scale) {sorted(found)}. Expected at least one, all of the same {what} and "
            "the same scale."
        )
    return *found.pop(), widest_dtype(d.counts.dtype for d in dictionaries)


def _gathered(counts: Tensor, columns: Tensor) -> Tensor:
    """Some columns; index_select takes five times as long for small integers."""
    return counts.gather(1, columns.expand(len(counts), -1))


def widest_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype of counts, or of fractions, that holds the values of all ``dtypes``."""
    return max(dtypes, key=lambda d: (d.is_floating_point, d.itemsize))
