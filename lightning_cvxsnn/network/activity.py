"""What the spiking layers of a network do on some rows: which layer feeds which neurons, and how they fire."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.isolation import forward_of, reset_neurons


@dataclass
class LayerActivity:
    """What one spiking layer does on some rows.

    Attributes:
        name: Dotted name of the neuron module.
        affine_name: Dotted name of the affine layer that feeds it (Linear, Conv or batch norm); "" if none ran before.
        units: Number of units, or of channels behind a convolution.
        silent: Units that never fire.
        saturated: Units that fire at every step of every row.
        rate: Mean firing rate, spikes per unit and step.
        source: Dotted name of the neurons whose spikes the affine layer receives as they are; "" if there are none.
        normalised: Dotted name of the affine layer that ran before this one, where this one is a batch norm; else "".
    """

    name: str
    affine_name: str
    units: int
    silent: int
    saturated: int
    rate: float
    source: str = ""
    normalised: str = ""

    @property
    def alive(self) -> bool:
        """Whether more than one unit in twenty carries information: neither silent nor saturated."""
        return (self.units - self.silent - self.saturated) * 20 > self.units

    @property
    def healthy(self) -> bool:
        """Whether at least half of the units carry information."""
        return (self.units - self.silent - self.saturated) * 2 >= self.units


def is_spiking(module: nn.Module) -> bool:
    """Whether ``module`` is a spiking neuron: stateful by step mode, with a surrogate for its threshold."""
    return isinstance(module, base.StepModule) and hasattr(module, "surrogate_function")


@dataclass
class _Probe:
    """Forward hooks that see which affine feeds which neuron, and per-unit spike statistics."""

    module: nn.Module
    affine: str = ""
    sent: tuple[str, Tensor] | None = None
    sources: dict[str, str] = field(default_factory=dict)
    feeds: dict[str, str] = field(default_factory=dict)
    normalised: dict[str, str] = field(default_factory=dict)
    low: dict[str, Tensor] = field(default_factory=dict)
    high: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "_Probe":
        self.handles = []
        for name, module in self.module.named_modules():
            if _has_rows(module):
                self.handles.append(module.register_forward_hook(lambda _, args, __, name=name: self._pass(name, args)))
            elif is_spiking(module):
                self.handles.append(module.register_forward_hook(lambda m, _, out, name=name: self._see(name, out)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self) -> None:
        """A forward pass begins."""
        self.affine, self.sent = "", None

    def _pass(self, name: str, args: tuple[Any, ...]) -> None:
        if isinstance(self.module.get_submodule(name), _BatchNorm):
            self.normalised.setdefault(name, self.affine)
        self.affine = name
        if self.sent is not None and args and isinstance(args[0], Tensor):
            source, spikes = self.sent
            same = args[0].data_ptr() == spikes.data_ptr() and args[0].numel() == spikes.numel()
            self.sources.setdefault(name, source if same else "")

    def _see(self, name: str, spikes: Any) -> None:
        if not isinstance(spikes, Tensor):
            return
        self.sent = name, spikes
        self.feeds.setdefault(name, self.affine)
        affine = self.module.get_submodule(self.feeds[name]) if self.feeds[name] else None
        per_unit = spikes.detach().float().movedim(unit_axis(affine, spikes), -1).flatten(0, -2)
        low, high = per_unit.amin(0), per_unit.amax(0)
        self.low[name] = torch.minimum(self.low.get(name, low), low)
        self.high[name] = torch.maximum(self.high.get(name, high), high)
        self.total[name] = self.total.get(name, 0.0) + float(per_unit.sum())
        self.count[name] = self.count.get(name, 0) + per_unit.numel()

    def activities(self) -> list[LayerActivity]:
        return [
            LayerActivity(
                name=name,
                affine_name=self.feeds[name],
                units=high.numel(),
                silent=int((high == 0).sum()),
                saturated=int((self.low[name] > 0).sum()),
                rate=self.total[name] / self.count[name],
                source=self.sources.get(self.feeds[name], ""),
                normalised=self.normalised.get(self.feeds[name], ""),
            )
            for name, high in self.high.items()
        ]


def _has_rows(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd, _BatchNorm)) and module.weight is not None


def unit_axis(affine: nn.Module | None, values: Tensor) -> int:
    """The axis of ``values`` along which the rows of ``affine`` lie; the last where they cannot be told."""
    if isinstance(affine, _ConvNd):
        axis = -1 - len(affine.kernel_size)
    elif isinstance(affine, _BatchNorm):
        axes = [-1, -2, -3, -4][: values.dim() - 1]
        return next((a for a in reversed(axes) if values.shape[a] == affine.num_features), -1)
    else:
        return -1
    return axis if values.dim() >= -axis and values.shape[axis] == affine.weight.shape[0] else -1


@torch.no_grad()
def measure_activity(module: nn.Module, inputs: Iterable[Any]) -> list[LayerActivity]:
    """Firing statistics of every spiking layer, in the order reached. Call it inside ``undisturbed``.

    Args:
        module: The network; its neurons are reset before every batch.
        inputs: Batches of inputs.
    """
    with _Probe(module) as probe:
        for x in inputs:
            reset_neurons(module)
            probe.start()
            forward_of(module)(x)
    return probe.activities()
