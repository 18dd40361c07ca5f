"""Every spiking layer's spikes, averaged over time, and its voltages' spread, in one pass over some rows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from spikingjelly.activation_based import rnn
from torch import Tensor, nn

from lightning_cvxsnn.network.activity import watching_neurons
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.rows import Batch, count_rows
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.patterns.dictionary import widest_dtype
from lightning_cvxsnn.patterns.neuron import Neuron

_MEMBRANE_ROWS = 128  # rows whose voltages are computed beside the network's own


@dataclass
class LayerFiring:
    """What one spiking layer sends.

    Attributes:
        name: Dotted name of the neuron module.
        spikes: ``[n, units]``, each unit's firing rate on each row. Behind a convolution every place of a channel is a
            unit.
        deviation: Standard deviation over rows, steps and units of the voltage before each spike, of at most 128 rows;
            None where the neuron's dynamics are not known (see `neuron_of`).
    """

    name: str
    spikes: SpikeDictionary
    deviation: float | None


@torch.no_grad()
def measure_firing(module: nn.Module, batches: Iterable[Batch]) -> list[LayerFiring]:
    """The spikes of every spiking layer, in the order reached. Call it inside ``undisturbed``.

    What is kept of a layer is one count for each row and unit.

    Args:
        module: The network; its neurons are reset before every batch.
        batches: The rows, on the network's device.

    Raises:
        MisconfigurationException: If neurons are used by several layers of different sizes.
    """
    recorders: dict[str, _Recorder] = {}
    forward = forward_of(module)

    def see(name: str, neuron: nn.Module, args: tuple[Any, ...], spikes: Tensor) -> None:
        recorders.setdefault(name, _Recorder(name, neuron)).see(args[0] if args else None, spikes)

    with watching_neurons(module, see):
        for batch in batches:
            reset_neurons(module)
            forward(batch.x)
            for recorder in recorders.values():
                recorder.end_batch(count_rows(batch))
    return [recorder.firing() for recorder in recorders.values()]


class _Recorder:
    """Adds up what one neuron module sends, call by call."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name = name
        self._in_steps = isinstance(module, rnn.SpikingRNNBase) or getattr(module, "step_mode", "s") == "m"
        try:
            self._voltages: _Voltages | None = _Voltages(neuron_of(module))
        except ValueError:  # of a class of somebody's own
            self._voltages = None
        self._parts: list[SpikeDictionary] = []
        self._sum: Tensor | float = 0.0
        self._steps = self._all_steps = 0

    def see(self, currents: Any, spikes: Tensor) -> None:
        """One call: a step ``[N, *units]``, or all ``[T, N, *units]`` in multi-step mode."""
        steps = spikes if self._in_steps else spikes[None]
        if isinstance(self._sum, Tensor) and self._sum.shape != steps.shape[1:]:
            raise MisconfigurationException(
                f"The neurons '{self._name}' send spikes of shape {list(self._sum.shape)} and then of shape "
                f"{list(steps.shape[1:])} for one batch. Expected one; give each layer neurons of its own."
            )
        self._sum = self._sum + steps.float().sum(0)
        self._steps += len(steps)
        if self._voltages is not None and isinstance(currents, Tensor):
            self._voltages.charge(currents.detach() if self._in_steps else currents.detach()[None])

    def end_batch(self, rows: int) -> None:
        """The call before was the last one on these rows."""
        if not isinstance(self._sum, Tensor):
            return
        self._all_steps = self._all_steps or self._steps
        # Rows of several places, such as tokens, that were flattened into one axis, sample by sample.
        counts = self._sum.reshape(rows if len(self._sum) % rows == 0 else len(self._sum), -1)
        if self._steps != self._all_steps:  # sequences of another length: rates, in steps of the first ones
            counts = counts * (self._all_steps / self._steps)
        self._parts.append(SpikeDictionary.from_values(counts.cpu()))
        self._sum, self._steps = 0.0, 0
        if self._voltages is not None:
            self._voltages.end_batch()

    def firing(self) -> LayerFiring:
        dtype = widest_dtype(part.counts.dtype for part in self._parts)
        counts = torch.cat([part.counts.to(dtype) for part in self._parts])
        deviation = None if self._voltages is None else self._voltages.deviation()
        return LayerFiring(self._name, SpikeDictionary(counts, 1 / self._all_steps), deviation)


@dataclass
class _Voltages:
    """The first rows' voltages before each spike: computed as the neuron does, kept as sums."""

    neuron: Neuron
    _v: Tensor | None = None
    _rows: int = 0  # of batches that have ended
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of ones, of voltages and of their squares

    def charge(self, currents: Tensor) -> None:
        """The steps ``[T, N, *units]`` that come next."""
        neuron = self.neuron
        for x in currents[:, : max(_MEMBRANE_ROWS - self._rows, 0)].float():
            v = torch.full_like(x, neuron.initial_voltage) if self._v is None else self._v
            h = neuron.charge(v, x)
            above = (h - neuron.v_threshold).double()  # about the threshold, lest large voltages cancel
            for power in range(3):
                self._sums[power] += float(above.pow(power).sum())
            self._v = neuron.reset(h, neuron.fire(h).to(h))

    def end_batch(self) -> None:
        self._rows += 0 if self._v is None else len(self._v)
        self._v = None

    def deviation(self) -> float | None:
        count, total, squares = self._sums
        return math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else None
