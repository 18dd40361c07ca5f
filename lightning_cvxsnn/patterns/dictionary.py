"""The matrix of spike patterns that the convex programme is solved over."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False, eq=False)
class SpikeDictionary:
    """What a linear readout receives: one row per training row, one column per unit; entries are ``counts * scale``.

    Attributes:
        counts: ``[n, P]``; uint8 or uint16 spike counts, or float32 where the readout's input is not a count (pooled
            spikes).
        scale: The factor of every entry, such as 1/T for a mean over T steps.
    """

    counts: Tensor
    scale: float = 1.0

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
        if not values.isfinite().all():
            raise ValueError("The readout's input holds NaN or infinity; expected spikes or finite numbers.")
        if values.numel() and bool((values == values.round()).all()) and values.min() >= 0 and values.max() < 2**16:
            return cls(values.to(torch.uint8 if values.max() < 2**8 else torch.uint16), scale)
        return cls(values.to(torch.float32), scale)

    @property
    def shape(self) -> torch.Size:
        """``[n, P]``."""
        return self.counts.shape

    @property
    def constant(self) -> Tensor:
        """``[P]`` bool: columns that are the same in every row, hence useless to a readout with a bias."""
        values = self.to_dense(torch.float32)
        return values.amin(0) == values.amax(0)

    @property
    def silent(self) -> int:
        """Number of columns that are zero in every row."""
        return int((self.to_dense(torch.float32) == 0).all(0).sum())

    @property
    def saturated(self) -> int:
        """Number of columns that have one non-zero value in every row."""
        return int(self.constant.sum()) - self.silent

    @property
    def distinct(self) -> int:
        """Number of distinct columns."""
        return int(torch.unique(self.to_dense(torch.float32), dim=1).shape[1])

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dictionary as a matrix ``[n, P]`` of ``dtype``."""
        return self.counts.to(dtype) * self.scale

    def rows(self, index: Tensor) -> "SpikeDictionary":
        """The dictionary restricted to rows: ``index`` is a bool mask ``[n]`` or int64 positions."""
        return SpikeDictionary(self.counts[index], self.scale)

    def __repr__(self) -> str:
        """What a person wants to know of it."""
        rows, columns = self.shape
        kind = str(self.counts.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({rows} rows x {columns} columns, {kind} x {self.scale:g}: "
            f"{self.distinct} distinct, {self.silent} silent, {self.saturated} saturated, "
            f"rate {self.to_dense().mean():.3f})"
        )
