"""What the spiking layers of a network do on some rows: which layer feeds which neurons, and how they fire."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cvxsnn.network.dataflow import Feed, data_flow, followed, has_rows, is_spiking
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons

_IDLE = 1 / 200  # share of the steps: hardly a spike for a readout to use, or hardly a pause
_MARKS = 2**24  # sums of as many of these as there are steps are exact, so that equal trains have equal ones


@contextmanager
def watching_neurons(
    module: nn.Module, see: Callable[[str, nn.Module, tuple[Any, ...], Tensor], None]
) -> Iterator[None]:
    """Call ``see(name, neuron, arguments, spikes)`` whenever a spiking layer of ``module`` sends spikes."""

    def hook(name: str, neuron: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output  # a recurrent layer's last states come second
        if isinstance(spikes, Tensor):
            see(name, neuron, args, spikes.detach())

    handles = [part.register_forward_hook(partial(hook, name)) for name, part in followed(module) if is_spiking(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class LayerActivity:
    """What one spiking layer does on some rows.

    Attributes:
        name: Dotted name of the neuron module.
        affine_name: Dotted name of the layer whose weights are this one's to change: of those that feed it, by data
            flow and at every step, the last one reached that feeds no spiking layer before it. A Linear, Conv or norm
            where there is one, else any layer with parameters; "" if there is none.
        units: Number of units, or of channels behind a convolution.
        silent: Units that never fire.
        saturated: Units that fire at every step of every row.
        rate: Mean firing rate, spikes per unit and step.
        distinct: Different spike trains among the units that neither fire nor rest in all but one step in 200.
        source: Dotted name of the neurons whose spikes the affine layer receives as they are; "" if there are none.
        normalised: Dotted name of the one layer that feeds the affine layer, where that is a batch norm; else "".
        feeders: Dotted names of all layers and spiking neurons that feed it, in the order reached.
        alone: Whether the affine layer alone feeds it, so that its current scales with that layer's weights.
        axis: The axis, negative, of its current along which the units of the affine layer lie; None where there is
            none, since they were mixed or flattened with their places. Its own units then lie along the last axis.
    """

    name: str
    affine_name: str
    units: int
    silent: int
    saturated: int
    rate: float
    distinct: int
    source: str = ""
    normalised: str = ""
    feeders: tuple[str, ...] = ()
    alone: bool = True
    axis: int | None = -1

    @property
    def alive(self) -> bool:
        """Whether more than one unit in twenty carries information: neither silent nor saturated."""
        return (self.units - self.silent - self.saturated) * 20 > self.units

    @property
    def healthy(self) -> bool:
        """Whether there are at least half as many distinct spike trains as units; one spike somewhere makes none."""
        return self.distinct * 2 >= self.units


class _Wiring:
    """Which layer's weights are which neurons' to change, from what reached them in one forward pass."""

    def __init__(self, module: nn.Module, feeds: dict[str, list[Feed]]) -> None:
        self._module, self._feeds = module, feeds
        self._owners: dict[str, str] = {}  # the first neurons that a layer feeds
        self._affine: dict[str, str] = {}

    def affine(self, name: str) -> str:
        """The layer that is the neurons' ``name`` to change, as their first call tells; ask in the order reached."""
        if name not in self._affine:
            found = ""
            for layer in self._layers(name):
                if self._owners.setdefault(layer, name) == name and (self._rows(layer) or not self._rows(found)):
                    found = layer
            self._affine[name] = found
        return self._affine[name]

    def axis(self, name: str) -> int | None:
        """The axis of what the neurons ``name`` receive along which that layer's units lie."""
        affine = self.affine(name)
        return self._feeds[name][0].axes.get(affine) if affine else None

    def describe(self, name: str) -> dict[str, Any]:
        """The attributes of `LayerActivity` that tell where the currents of the neurons ``name`` come from."""
        feeds, affine = self._feeds.get(name, []), self.affine(name)
        if not all(affine in feed.origins for feed in feeds):
            affine = ""
        source, normalised = "", ""
        if affine:
            received = self._feeds[affine][0]
            source, normalised = received.source, received.origins[-1] if received.alone else ""
            if not isinstance(self._module.get_submodule(affine), _BatchNorm) or not self._rows(normalised):
                normalised = ""
        return {
            "affine_name": affine,
            "axis": self.axis(name),
            "feeders": tuple(dict.fromkeys(origin for feed in feeds for origin in feed.origins)),
            "alone": all(feed.alone for feed in feeds),
            "source": source,
            "normalised": normalised,
        }

    def _layers(self, name: str) -> list[str]:
        first = self._feeds.get(name, [])[:1]
        return [o for feed in first for o in feed.origins if not is_spiking(self._module.get_submodule(o))]

    def _rows(self, layer: str) -> bool:
        return bool(layer) and has_rows(self._module.get_submodule(layer))


class _Statistics:
    """Per-unit statistics of the spikes of each neuron, in the order reached."""

    def __init__(self) -> None:
        self.wiring: _Wiring
        self._spikes: dict[str, Tensor] = {}  # of each unit
        self._marks: dict[str, Tensor] = {}  # a random sum over the steps at which it fires
        self._steps: dict[str, int] = {}

    @contextmanager
    def collecting(self, module: nn.Module) -> Iterator[None]:
        """See what the neurons of ``module`` send while the context lasts."""
        with watching_neurons(module, lambda name, _neuron, _args, spikes: self._see(name, spikes)):
            yield

    def _see(self, name: str, spikes: Tensor) -> None:
        axis = self.wiring.axis(name)
        per_unit = spikes.float().movedim(-1 if axis is None else axis, -1).flatten(0, -2)
        steps = self._steps.get(name, 0)
        draw = torch.Generator().manual_seed(steps)
        marks = torch.randint(_MARKS, (1, len(per_unit)), generator=draw).to(per_unit.device, torch.float64)
        self._spikes[name] = self._spikes.get(name, 0) + per_unit.double().sum(0)
        self._marks[name] = self._marks.get(name, 0) + (marks @ per_unit.double())[0]
        self._steps[name] = steps + len(per_unit)

    def _distinct(self, name: str) -> int:
        rates = self._spikes[name] / self._steps[name]
        return len(self._marks[name][(rates >= _IDLE) & (rates <= 1 - _IDLE)].unique())

    def activities(self) -> list[LayerActivity]:
        return [
            LayerActivity(
                name=name,
                units=spikes.numel(),
                silent=int((spikes == 0).sum()),
                saturated=int((spikes == self._steps[name]).sum()),
                rate=float(spikes.mean()) / self._steps[name],
                distinct=self._distinct(name),
                **self.wiring.describe(name),
            )
            for name, spikes in self._spikes.items()
        ]


@torch.no_grad()
def measure_activity(module: nn.Module, inputs: Iterable[Any]) -> list[LayerActivity]:
    """Firing statistics of every spiking layer, in the order reached. Call it inside ``undisturbed``.

    Args:
        module: The network; its neurons are reset before every batch.
        inputs: Batches of inputs; the first one also shows the data flow.
    """
    statistics, forward = _Statistics(), forward_of(module)
    batches = iter(inputs)
    for x in batches:
        with data_flow(module) as feeds, statistics.collecting(module):
            statistics.wiring = _Wiring(module, feeds)
            reset_neurons(module)
            forward(x)
        break
    with statistics.collecting(module):
        for x in batches:
            reset_neurons(module)
            forward(x)
    return statistics.activities()
