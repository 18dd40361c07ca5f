"""How units fire: rates, dead ones, distinct ones."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.metrics.base import SpikingMetric
from lightning_cvxsnn.patterns.hashing import mix64

_BLOCK = 2**22  # entries whose int64 products are held at once


def _steps_by_units(spikes: Tensor) -> Tensor:
    """``[T, N, *units]`` as ``[T * N, P]``, checked."""
    if spikes.dim() < 3:
        raise ValueError(
            f"spikes has shape {list(spikes.shape)}; expected [T, N, *units], time first. For one step, pass "
            "spikes[None]."
        )
    fine = spikes >= 0
    if spikes.is_floating_point():
        fine &= (spikes == spikes.round()) & spikes.isfinite()
    if not bool(fine.all()):
        raise ValueError(
            "spikes holds negative numbers, fractions, NaN or infinity; expected zeros and ones, or counts. Pass what "
            "the neurons send at each step, not its mean over time and not a membrane potential."
        )
    return spikes.detach().flatten(2).flatten(0, 1)


class FiringRate(SpikingMetric):
    """Mean number of spikes per unit and time step.

    ``update(spikes)`` takes ``[T, N, *units]``: what spiking neurons send, zeros and ones (or counts) of any dtype,
    time first. Sums are exact integers, so the value does not depend on how the rows are cut into batches or processes.
    NaN without rows.

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN.

    Example:
        >>> rate = FiringRate()
        >>> rate.update(torch.tensor([[[1, 0]], [[1, 1]]]))  # two steps, one sample, two units
        >>> rate.compute()
        tensor(0.7500)
    """

    higher_is_better = None
    plot_lower_bound = 0.0

    spikes: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("spikes", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Count the spikes ``[T, N, *units]`` of one batch."""
        rows = _steps_by_units(spikes)
        self.spikes += rows.sum(dtype=torch.int64)
        self.total += rows.numel()

    @override
    def compute(self) -> Tensor:
        """Spikes per unit and step."""
        return self.spikes / self.total


class _PerUnit(SpikingMetric):
    """Sums over the rows for each unit, in states that take their size from the first rows."""

    @staticmethod
    def _add(total: Tensor, of_batch: Tensor) -> Tensor:
        if total.dim() and total.shape != of_batch.shape:
            raise ValueError(
                f"spikes has {of_batch.shape[-1]} units and had {total.shape[-1]} before; expected the same layer in "
                "every update. Use one metric for each layer, and reset() between networks."
            )
        return total + of_batch


class DeadUnits(_PerUnit):
    """Share of units that carry no information: they never fire, or they fire at every step of every row.

    ``update(spikes)`` takes ``[T, N, *units]`` as `FiringRate` does. A unit is dead over *all* updates since the last
    reset, in all processes: one spike, or one pause, anywhere brings it to life. Each position of a feature map is a
    unit; to judge channels pass ``spikes.movedim(2, -1).flatten(1, -2)`` of ``[T, N, C, H, W]``. NaN without rows.

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN, or another number of units
            than before.

    Example:
        >>> dead = DeadUnits()
        >>> dead.update(torch.tensor([[[1, 0, 1, 0]], [[1, 0, 0, 0]]]))  # always, never, sometimes, never
        >>> dead.compute()
        tensor(0.7500)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    fired: Tensor
    steps: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("fired", "steps"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Count for each unit the steps at which it fires."""
        rows = _steps_by_units(spikes)
        self.fired = self._add(self.fired, (rows > 0).sum(0))
        self.steps += len(rows)

    @override
    def compute(self) -> Tensor:
        """Share of dead units."""
        dead = ((self.fired == 0) | (self.fired == self.steps)).float().mean()
        return dead.where(self.steps > 0, torch.nan)


class DistinctPatterns(_PerUnit):
    """Number of distinct units: two are the same if they send the same at every step of every row.

    ``update(spikes)`` takes ``[T, N, *units]`` as `FiringRate` does. A linear readout cannot tell equal units apart:
    this is the width that a layer really has. To count what a readout over time sees, pass what it receives:
    ``spikes[-1:]``, or ``spikes.sum(0, keepdim=True)`` for a sum or mean; that is ``SolveReport.distinct``. A silent
    unit is a pattern too. 0 before the first update; 1 as long as there was no row, which alone tells units apart.

    Each unit has 128 bits of state, whatever the number of rows: two sums, modulo 2^64, of what it sends times a key
    that is a hash of all that the layer sends at that step of that row. So batches, their order, processes and the
    repeated rows of a distributed sampler make no difference. Equal units always have equal sums; two unequal ones are
    taken for equal with a probability of about 2^-128, more where the same row is seen many times (2^-88 for a row
    seen a million times).

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: In ``update``, for another shape, negative numbers, fractions or NaN, or another number of units
            than before.

    Example:
        >>> distinct = DistinctPatterns()
        >>> distinct.update(torch.tensor([[[1, 0, 1]], [[0, 0, 0]]]))
        >>> distinct.compute()
        tensor(2)
        >>> distinct.update(torch.tensor([[[1, 0, 0]], [[0, 0, 0]]]))  # tells the first unit from the third
        >>> distinct.compute()
        tensor(3)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    hashes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("hashes", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, spikes: Tensor) -> None:
        """Add each unit's share of the hashes."""
        rows = _steps_by_units(spikes)
        units = rows.shape[1]
        generator = torch.Generator().manual_seed(0)
        unit_keys = torch.randint(-(2**63), 2**63 - 1, (2, units), generator=generator).to(rows.device)
        hashes = torch.zeros(2, units, dtype=torch.int64, device=rows.device)
        for block in rows.split(max(_BLOCK // max(units, 1), 1)):
            block = block.long()
            for hashed, keys in zip(hashes, unit_keys, strict=True):
                hashed += (block * mix64((block * keys).sum(1))[:, None]).sum(0)
        self.hashes = self._add(self.hashes, hashes)

    @override
    def compute(self) -> Tensor:
        """Number of distinct units."""
        if self.hashes.dim() == 0:
            return torch.tensor(0, device=self.hashes.device)
        return torch.tensor(self.hashes.unique(dim=1).shape[1], device=self.hashes.device)
