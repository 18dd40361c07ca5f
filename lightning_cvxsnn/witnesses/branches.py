"""Whole branches as witnesses: all layers of a branch and the constants of its neurons."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.work import count_work
from lightning_cvxsnn.witnesses.calibration import factors_for

_CALIBRATION_SAMPLES = 256
_BLOCK = 2**22  # spikes of one layer held at once


@runtime_checkable
class Branched(Protocol):
    """A network of branches side by side, whose last layers a readout receives; such as `ParallelSNN`.

    Attributes:
        branches: Of each, linear and LIF layers in turn.
        widths: Values per time step, and units of each layer of a branch.
        reduction: What the readout receives: ``last``, ``mean``, ``membrane``, or the spikes of ``all`` steps.
        readout: The readout.
    """

    branches: nn.ModuleList
    widths: list[int]
    reduction: str
    readout: nn.Linear

    def draw_branch(self) -> nn.Sequential:
        """A new branch with constants from the network's ranges, by torch's global generator."""

    def features(self, branch: nn.Module, steps: Tensor) -> Tensor:
        """What the readout receives of a branch after ``steps [T, N, F]``: ``[N, P / K]``, for ``all`` T in front."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch and the columns of its last layer.

    Attributes:
        layers: Linear and LIF layers in turn.
        columns: ``[n, P / K]``.
    """

    layers: nn.Sequential
    columns: SpikeDictionary


@dataclass(frozen=True, eq=False)
class Branches:
    """Branches side by side."""

    branches: Sequence[Branch]

    @cached_property
    def columns(self) -> SpikeDictionary:
        """The columns of all, ``[n, P]``."""
        return SpikeDictionary.side_by_side([branch.columns for branch in self.branches])


class BranchSampler:
    """Draws branches for one network, each unit brought to one firing rate. Torch's global generator is advanced.

    Args:
        network: The network; it is not changed.
        inputs: ``[N, T, F]``, the programme's samples.
        rate: Firing rate that every unit is scaled to.

    Attributes:
        passes: Units of last layers times samples run forward so far.
    """

    def __init__(self, network: Branched, inputs: Tensor, rate: float) -> None:
        self.network, self.rate, self.passes = network, rate, 0
        self._steps = inputs.transpose(0, 1)

    def draw(self) -> nn.Sequential:
        """A new branch, as the network draws its own."""
        return self.network.draw_branch().to(self._steps)

    def mutate(self, layers: nn.Sequential, size: float) -> nn.Sequential:
        """A branch with noise of relative ``size`` on its weights and the same constants."""
        varied: Any = copy.deepcopy(layers)
        for affine in varied[::2]:
            scale = affine.weight.norm(dim=1, keepdim=True) / affine.in_features**0.5
            affine.weight.add_(size * scale * torch.randn_like(affine.weight))
        return varied

    def widen(self, layers: nn.Sequential, width: int) -> nn.Sequential:
        """The same lower layers and constants with ``width`` new units in the last layer."""
        own: Any = layers
        affine = nn.Linear(own[-2].in_features, width, bias=own[-2].bias is not None).to(own[-2].weight)
        return nn.Sequential(*own[:-2], affine, own[-1])

    def cut(self, branch: Branch, units: Tensor) -> Branch:
        """A branch of some of the units of a wider one, int64 positions."""
        own: Any = branch.layers
        affine: Any = nn.Linear(own[-2].in_features, len(units), bias=own[-2].bias is not None).to(own[-2].weight)
        for ours, theirs in zip(affine.parameters(), own[-2].parameters(), strict=True):
            ours.copy_(theirs[units])
        return Branch(nn.Sequential(*own[:-2], affine, own[-1]), branch.columns.columns(units))

    def put(self, branch: Branch, places: Tensor, source: nn.Sequential, units: Tensor) -> Branch:
        """A copy of a branch whose last units at ``places`` (bool) are those of ``source`` at ``units`` (int64)."""
        layers: Any = copy.deepcopy(branch.layers)
        affine: Any = source[-2]
        for ours, theirs in zip(layers[-2].parameters(), affine.parameters(), strict=True):
            ours[places] = theirs[units]
        return self.measure(layers)

    def calibrated(self, layers: nn.Sequential, *, only_last: bool = False) -> nn.Sequential:
        """``layers``, each unit scaled so that it fires at the rate, in place and from the first layer on."""
        samples = torch.randperm(self._steps.shape[1])[:_CALIBRATION_SAMPLES]
        spikes = self._steps[:, samples.to(self._steps.device)]
        parts: Any = layers
        for position in range(0, len(parts), 2):
            affine, neuron = parts[position], parts[position + 1]
            currents = affine(spikes)
            factors = torch.ones_like(affine.weight[:, 0])
            if not only_last or position + 2 == len(parts):
                rates = partial(_rates, neuron, currents)
                factors = factors_for(rates, affine.out_features, self.rate, currents.device)
            affine.weight.mul_(factors[:, None])
            if affine.bias is not None:
                affine.bias.mul_(factors)
            spikes = _run(neuron, currents * factors)
        return layers

    def measure(self, layers: nn.Sequential) -> Branch:
        """A branch of any last width, with its columns over all samples."""
        steps, samples, _ = self._steps.shape
        affines: Any = layers[::2]
        self.passes += samples * affines[-1].out_features
        count_work(samples * steps * sum(affine.weight.numel() for affine in affines) // 2)  # of float32 numbers
        rows = max(_BLOCK // (steps * max(affine.out_features for affine in affines)), 1)
        parts = []
        for block in self._steps.split(rows, dim=1):
            reset_neurons(layers)
            values = self.network.features(layers, block)
            parts.append(values.transpose(0, 1).flatten(0, 1) if self.network.reduction == "all" else values)
        reset_neurons(layers)
        values, scale = torch.cat(parts), 1.0
        if self.network.reduction == "mean":
            values, scale = (values * steps).round(), 1 / steps
        return Branch(layers, SpikeDictionary(SpikeDictionary.from_values(values).counts.cpu(), scale))


def _rates(neuron: nn.Module, currents: Tensor, factors: Tensor) -> Tensor:
    return _run(neuron, currents * factors).mean((0, 1))


def _run(neuron: nn.Module, currents: Tensor) -> Tensor:
    reset_neurons(neuron)
    spikes = neuron(currents)
    reset_neurons(neuron)
    return spikes
