"""The last spiking layer: what reaches it, and the columns that other weights would make of that."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.isolation import reset_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.reduction import TimeReduction
from lightning_cvxsnn.network.writable import why_not_writable
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary
from lightning_cvxsnn.patterns.kernels import Backend
from lightning_cvxsnn.patterns.neuron import Neuron
from lightning_cvxsnn.patterns.spikes import PatternKind, spike_patterns
from lightning_cvxsnn.witnesses.calibration import factors_for

Affine = nn.Linear | _ConvNd

INSTEAD = "Witnesses cannot be replaced, pruned or widened there; witnesses='calibrated' works for such a network."

_BLOCK = 2**21  # currents held at once, 8 MiB of float32
_SCALED = 2**25  # the same, of units brought to a rate
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


@dataclass(frozen=True, eq=False)
class WitnessLayer:
    """The affine layer and the neurons behind it whose spikes are the dictionary, and what reaches them.

    A unit of a linear layer makes one column. A channel of a convolution is a unit that sends a map of spikes, and
    makes a column of each place of the map that the readout receives. Where a batch norm follows, a unit's weight and
    bias are those of the two together, at the running statistics.

    Attributes:
        affine_name: Dotted name of the linear or convolutional layer.
        neuron_name: Dotted name of the neuron module.
        affine: The layer; its rows, flat, are the witnesses.
        neuron: The neuron module; candidates are run through it as it is.
        reduction: How its spikes over time become rows of the dictionary.
        inputs: ``[T, N, F]``, what the layer receives; ``[T, N, C, ...]`` of a convolution.
        places: Spikes that a unit can send in a step.
        columns_per_unit: Columns that it makes.
        pools: What its map passes on its way to the readout.
        constants: The neuron's constants, where its dynamics are known: candidates then need no pass through it.
        backend: Engine of their patterns, see `resolve_backend`.
        norm: The batch norm between the layer and the neurons, if there is one.
        norm_name: Its dotted name.
    """

    affine_name: str
    neuron_name: str
    affine: Affine
    neuron: nn.Module
    reduction: TimeReduction
    inputs: Tensor
    places: int = 1
    columns_per_unit: int = 1
    pools: tuple[nn.Module, ...] = ()
    constants: Neuron | None = None
    backend: Backend = "auto"
    norm: _BatchNorm | None = None
    norm_name: str = ""

    @property
    def weight(self) -> Tensor:
        """The layer's own, flat, ``[P, F]``."""
        return folded(self.affine, self.norm)[0]

    @property
    def bias(self) -> Tensor:
        """The layer's own, ``[P]``; zeros where it has none."""
        return folded(self.affine, self.norm)[1]

    @property
    def has_bias(self) -> bool:
        """Whether a unit can have one."""
        return self.affine.bias is not None or self.norm is not None

    def currents(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What units with ``weight [M, F]`` and ``bias [M]`` send their neurons: ``[T, N, M]``, or maps of that."""
        return applied(self.affine, inputs, weight, bias)

    def spikes(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Spikes of units with ``weight [M, F]`` and ``bias [M]``, with the neuron's own gradient; as `currents`."""
        return run_neuron(self.neuron, self.currents(inputs, weight, bias))

    def rows(self, spikes: Tensor) -> tuple[Tensor, float]:
        """The dictionary's rows that ``spikes`` make, and their scale, see `TimeReduction.sum_steps`."""
        return self.reduction.sum_steps(pooled(self.pools, spikes).flatten(2))

    @torch.no_grad()
    def write(self, network: Network, units: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Give ``units`` (int64 ``[M]``) other weights, in place; a batch norm is made to undo its normalisation.

        Args:
            network: The network that the layer is part of; its batch norms are estimated anew.
            units: Their positions in the layer.
            weight: ``[M, F]``.
            bias: ``[M]``.
        """
        own = self.affine.weight
        own[units] = weight.unflatten(1, own.shape[1:]).to(own)
        if self.norm is None:
            if self.affine.bias is not None:
                self.affine.bias[units] = bias.to(own)
            return
        if self.affine.bias is not None:
            self.affine.bias[units] = 0.0  # the norm takes it out again
        network.refresh_norms()
        mean, deviation = _statistics(self.norm)
        self.norm.weight[units] = deviation[units]
        self.norm.bias[units] = mean[units] + bias

    @torch.no_grad()
    def columns(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> SpikeDictionary:
        """The columns that units with ``weight [M, F]`` and ``bias [M]`` make of ``inputs``, on the CPU."""
        blocks = []
        for part in torch.arange(len(weight)).split(self._units(_BLOCK, inputs)):
            currents = self.currents(inputs, weight[part], bias[part])
            kind = self.reduction.kind
            known = kind in get_args(PatternKind) and currents.dtype == torch.float32 and not self.pools
            if self.constants is None or not known:
                values, scale = self.rows(run_neuron(self.neuron, currents))
                blocks.append(SpikeDictionary.from_values(values, scale))
            else:
                blocks.append(
                    spike_patterns(self.constants, currents.flatten(2), cast(PatternKind, kind), self.backend)
                )
        return SpikeDictionary.side_by_side(blocks)

    @torch.no_grad()
    def calibrated(self, inputs: Tensor, weight: Tensor, bias: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """``weight [M, F]`` and ``bias [M]``, each unit scaled so that it fires at ``rate`` on ``inputs``."""
        scaled = []
        for part in torch.arange(len(weight)).split(self._units(_SCALED, inputs)):
            currents = self.currents(inputs, weight[part], bias[part]).transpose(2, -1)  # units last, as factors are

            def rates(factors: Tensor, currents: Tensor = currents) -> Tensor:
                spikes = run_neuron(self.neuron, (currents * factors).transpose(2, -1))
                return spikes.float().transpose(2, -1).flatten(0, -2).mean(0)

            scaled.append(factors_for(rates, len(part), rate, weight.device))
        factors = torch.cat(scaled)
        return weight * factors[:, None], bias * factors

    @torch.no_grad()
    def patches(self, first: Tensor, second: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a unit sees of each of two inputs, both at one place.

        The place is drawn by how much they differ there, squared. All of the input of a linear layer is seen.

        Args:
            first: ``[n, F]``, or ``[n, C, ...]``.
            second: The same.
            generator: Source of randomness, on the CPU.

        Returns:
            Two of ``[n, F]``.
        """
        if isinstance(self.affine, nn.Linear):
            return first, second
        fan_in = self.weight.shape[1]
        every, none = torch.eye(fan_in).to(first), first.new_zeros(fan_in)
        found = []
        for part in torch.arange(len(first)).split(max(_BLOCK // (fan_in * self.places), 1)):
            seen = self.currents(torch.stack([first[part], second[part]]), every, none).flatten(3)
            differ = (seen[0] - seen[1]).square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
            place = torch.multinomial(differ.float().cpu(), 1, generator=generator).to(seen.device)
            found.append(seen.gather(3, place[None, :, None].expand(2, -1, fan_in, -1))[..., 0])
        ours, theirs = torch.cat(found, 1)
        return ours, theirs

    def _units(self, most: int, inputs: Tensor) -> int:
        """Units whose currents are ``most`` numbers."""
        return max(most // (inputs.shape[0] * inputs.shape[1] * self.places), 1)


def check_writable(module: nn.Module, name: str) -> None:
    """Refuse an affine layer whose weights are computed, frozen or shared.

    Raises:
        ValueError: If new weights cannot be written into it.
    """
    if reason := why_not_writable(module, name, f"'{name}'"):
        raise ValueError(f"{reason}, so new weights cannot be written there. Expected a plain layer. {INSTEAD}")


def run_neuron(neuron: nn.Module, currents: Tensor) -> Tensor:
    """Spikes of ``currents [T, N, M]`` from a fresh state."""
    reset_neurons(neuron)
    return _over_steps(neuron, currents)


def _over_steps(module: nn.Module, steps: Tensor) -> Tensor:
    """A module over ``[T, ...]``, all at once or step by step as it is made."""
    if getattr(module, "step_mode", "s") == "m":
        return module(steps)
    return torch.stack([module(step) for step in steps])


def folded(affine: Affine, norm: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight, flat, and bias of a layer and the batch norm behind it, at the running statistics."""
    weight = affine.weight.flatten(1)
    bias = weight.new_zeros(len(weight)) if affine.bias is None else affine.bias
    if norm is None:
        return weight, bias
    mean, deviation = _statistics(norm)
    factor = norm.weight / deviation
    return weight * factor[:, None], (bias - mean) * factor + norm.bias


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm subtracts, and what it divides by."""
    return cast(Tensor, norm.running_mean), (cast(Tensor, norm.running_var) + norm.eps).sqrt()


def applied(affine: Affine, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's outputs for ``inputs [T, N, ...]`` at ``weight [M, F]`` and ``bias [M]`` of other units."""
    weight = weight.unflatten(1, affine.weight.shape[1:])
    if isinstance(affine, nn.Linear):
        return F.linear(inputs, weight, bias)
    convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(affine, kind))
    outputs = convolve(inputs.flatten(0, 1), weight, bias, affine.stride, affine.padding, affine.dilation)
    return outputs.unflatten(0, inputs.shape[:2])


def pooled(pools: Iterable[nn.Module], spikes: Tensor) -> Tensor:
    """``spikes [T, N, P, ...]`` behind pooling modules."""
    for pool in pools:
        spikes = _over_steps(pool, spikes)
    return spikes
