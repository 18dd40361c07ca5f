"""Capture a network's spike dictionary: one pass over the training rows, no gradients, no trace."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cvxsnn.network.isolation import reset_neurons
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.reduction import TimeReduction
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary, widest_dtype

#: Draws averaged per row where the network's encoder is random.
ENCODER_DRAWS = 8

_ROWS = 1024  # rows examined at a time


@dataclass(frozen=True)
class Observed:
    """What one pass over some rows gave: ``values * scale / draws`` is the readout's average input, ``[n, P]``."""

    values: Tensor
    outputs: Tensor
    scale: float
    draws: int


@dataclass(frozen=True)
class Capture:
    """One pass over the rows.

    Attributes:
        dictionary: ``[n, P]``, what the readout received, reduced over time (and averaged over draws).
        outputs: ``[n, C]`` float32 on the CPU, what the network itself answered.
        draws: 1, or ``ENCODER_DRAWS`` where two passes over one batch differed (a random encoder).
    """

    dictionary: SpikeDictionary
    outputs: Tensor
    draws: int


def capture(module: nn.Module, readout: Readout, inputs: Iterable[Any]) -> Capture:
    """Run the network over ``inputs`` and collect what its readout receives. Call it inside ``undisturbed``.

    The first batch is run twice: where the two differ the encoder is random, and every row becomes the average of
    ``ENCODER_DRAWS`` draws, which is the readout's average input.

    Args:
        module: The network; its neurons are reset before every batch.
        readout: Its readout: the layer whose input is the dictionary, and how that becomes rows.
        inputs: Batches of inputs, on the network's device.

    Returns:
        The dictionary, on the CPU, and the network's outputs.

    Raises:
        ValueError: If there is no row, the number of time steps changes, or the readout receives NaN or infinity.
    """
    return join([observe(module, readout, inputs)], readout.reduction)


@torch.no_grad()
def observe(
    module: nn.Module, readout: Readout, inputs: Iterable[Any], rows_to_hold: Callable[[Tensor], int] = len
) -> Observed | None:
    """The pass of `capture` over some of the rows, to be joined with those over the others; ``None`` without rows.

    Args:
        module: The network; its neurons are reset before every batch.
        readout: Its readout.
        inputs: Batches of inputs, on the network's device.
        rows_to_hold: Called once, with the rows ``[n, P]`` of the first batch; returns for how many rows to allocate
            memory, or raises where these do not fit.
    """
    received: list[Tensor] = []
    reduction, forward = readout.reduction, readout.forward_of(module)
    handle = readout.module.register_forward_pre_hook(lambda _module, args: received.append(args[0].detach()))

    def draw(x: Any) -> tuple[Tensor, float, Tensor]:
        received.clear()
        reset_neurons(module)
        output = forward(x)
        values, scale = reduction.sum_steps(reduction.to_steps(received).float())
        rows = reduction.flatten_rows(output) if reduction.kind == "all" else output
        outputs = rows.numel() // readout.module.out_features
        if outputs != len(values):
            raise ValueError(
                f"The readout '{readout.name}' received {len(values)} rows of {reduction.steps} time steps and the "
                f"network answered {outputs}. Expected the same number of time steps in every batch; pad the sequences "
                "to one length."
            )
        return values, scale, rows.reshape(len(values), -1).float()

    draws = 1
    scale = 1.0
    all_values, all_outputs = _Rows(), _Rows()
    try:
        for index, x in enumerate(inputs):
            values, scale, outputs = draw(x)
            if index == 0 and not torch.equal(values, draw(x)[0]):
                draws = ENCODER_DRAWS
            for _ in range(draws - 1):
                more_values, _, more_outputs = draw(x)
                values, outputs = values + more_values, outputs + more_outputs
            counts = SpikeDictionary.from_values(values).counts.cpu()
            if index == 0:
                all_values.allocate = all_outputs.allocate = rows_to_hold(counts)
            all_values.append(counts)
            all_outputs.append((outputs / draws).cpu())
    finally:
        handle.remove()
        received.clear()
    return Observed(all_values.filled(), all_outputs.filled(), scale, draws) if len(all_values) else None


def join(parts: Sequence[Observed | None], reduction: TimeReduction) -> Capture:
    """One capture of what was observed over consecutive parts of the rows.

    Raises:
        ValueError: If there is no row, or the parts disagree on time steps or on whether the encoder is random.
    """
    found = [part for part in parts if part is not None]
    if not found:
        raise ValueError("The dataloader gave no rows; expected at least one batch to take spike patterns from.")
    kinds = {(part.scale, part.draws) for part in found}
    if len(kinds) > 1:
        raise ValueError(
            f"Passes over different rows gave (scale, draws) {sorted(kinds)}; expected the same time steps everywhere, "
            "and an encoder that is random, or is not, on the first batch of every process."
        )
    ((scale, draws),) = kinds
    counts, scale = _as_counts(_join([part.values for part in found]), scale / draws, reduction)
    return Capture(SpikeDictionary(counts, scale), torch.cat([part.outputs for part in found]), draws)


class _Rows:
    """Rows one below the other in one piece of memory, in the widest of their types.

    Batches kept one by one would lie scattered between the forward passes' temporaries, and cost several times their
    size.

    Attributes:
        allocate: Rows to allocate memory for with the first ones.
    """

    def __init__(self) -> None:
        self.allocate = 0
        self._buffer, self._count = torch.empty(0, 0), 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Copy ``rows`` below those that are there."""
        end = self._count + len(rows)
        if self._count == 0:
            self._buffer = rows.new_empty(max(self.allocate, end), rows.shape[1])
        dtype = widest_dtype([self._buffer.dtype, rows.dtype])
        if end > len(self._buffer):  # more rows than was said
            more = self._buffer.new_empty(max(end, len(self._buffer) * 3 // 2) - len(self._buffer), rows.shape[1])
            self._buffer = torch.cat([self._buffer, more])
        self._buffer = self._buffer.to(dtype)
        self._buffer[self._count : end] = rows.to(dtype)
        self._count = end

    def filled(self) -> Tensor:
        """All rows."""
        return self._buffer[: self._count]


def _join(parts: list[Tensor]) -> Tensor:
    """Counts one below the other, in the widest of their types."""
    dtype = widest_dtype(part.dtype for part in parts)
    return parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])


def _as_counts(values: Tensor, scale: float, reduction: TimeReduction) -> tuple[Tensor, float]:
    """Recognise a firing rate that the network computed itself: multiples of 1/T with a T that it does not tell."""
    if reduction.layout != "static" or not values.is_floating_point():
        return values, scale
    blocks = values.split(_ROWS)
    for steps in range(2, 129):
        if _are_counts(values[:1] * steps) and all(_are_counts(block * steps) for block in blocks):
            counts = [SpikeDictionary.from_values((block * steps).round()).counts for block in blocks]
            return _join(counts), scale / steps
    return values, scale


def _are_counts(values: Tensor) -> bool:
    near = torch.allclose(values, values.round(), rtol=0, atol=1e-3)
    return near and bool(values.min() >= 0 and values.max() < 2**16)
