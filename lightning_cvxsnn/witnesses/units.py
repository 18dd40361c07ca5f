"""Units of one layer as witnesses: drawn, varied, and moved up the gradient of their score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.work import count_work
from lightning_cvxsnn.witnesses.layer import WitnessLayer
from lightning_cvxsnn.witnesses.restricted import RestrictedMaster
from lightning_cvxsnn.witnesses.samplers import between, pairs
from lightning_cvxsnn.witnesses.scores import UnitScores

#: A pass forward and backward, in passes forward.
BACKWARD = 3

_CALIBRATION_SAMPLES = 128
_ASCENT_SAMPLES = 512
_ASCENT_CURRENTS = 2**23  # of all units at most: maps have many
_FEWEST = 32  # samples in any case
_ASCENT_RATE = 0.1  # of Adam, relative to the root mean square of a unit's weights
_REDRAWS = 16  # of pairs that do not differ
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Units:
    """Hidden units of a layer and their columns, unit by unit.

    Attributes:
        weight: ``[M, F]``.
        bias: ``[M]``; zeros where the layer has none.
        columns: ``[n, M G]``, G of each unit.
    """

    weight: Tensor
    bias: Tensor
    columns: SpikeDictionary

    def __len__(self) -> int:
        return len(self.weight)

    def pick(self, index: Tensor) -> "Units":
        """Those at ``index``, int64 positions."""
        per_unit = self.columns.shape[1] // len(self)
        columns = self.columns.columns((index[:, None] * per_unit + torch.arange(per_unit)).flatten())
        return Units(self.weight[index], self.bias[index], columns)

    def join(self, other: "Units") -> "Units":
        """These, then ``other``."""
        columns = SpikeDictionary.side_by_side([self.columns, other.columns])
        return Units(torch.cat([self.weight, other.weight]), torch.cat([self.bias, other.bias]), columns)


class UnitSampler:
    """Draws weights for the units of one layer, all brought to one firing rate.

    Args:
        layer: The layer; its inputs are those of the programme's samples.
        programme: The programme; weights come from its fitted rows alone.
        rate: Firing rate that every candidate is scaled to.
        seed: Seed of the draws; global generators are neither read nor advanced.

    Attributes:
        passes: Units times samples run forward so far; a pass forward and backward counts as three.
    """

    def __init__(self, layer: WitnessLayer, programme: RestrictedMaster, rate: float, seed: int) -> None:
        self.layer, self.rate, self.passes = layer, rate, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.scores = UnitScores(layer.columns_per_unit, programme.problem.fit_intercept)
        samples = programme.fitted.unflatten(0, (layer.inputs.shape[1], -1))[:, 0].nonzero()[:, 0]
        self._rows_per_sample = len(programme.fitted) // layer.inputs.shape[1]
        self._inputs = layer.inputs.index_select(1, samples.to(layer.inputs.device))
        self._targets = programme.problem.targets[programme.fitted].unflatten(0, (-1, self._rows_per_sample))[:, -1]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Weights ``[count, F]`` and biases ``[count]``, half from pairs, half random, mixed and calibrated."""
        fan_in, paired = self.layer.weight.shape[1], count // 2
        weight = torch.randn(count - paired, fan_in, generator=self.generator) / fan_in**0.5
        bias = (2 * torch.rand(count - paired, generator=self.generator) - 1) / fan_in**0.5
        weight, bias = self._calibrated(weight.to(self.layer.weight), bias.to(self.layer.weight))
        if paired:
            more = self.draw_pairs(paired)
            weight, bias = torch.cat([weight, more[0]]), torch.cat([bias, more[1]])
        order = torch.randperm(count, generator=self.generator)
        return weight[order], bias[order]

    def draw_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Weights ``[count, F]`` and biases ``[count]`` from pairs of fitted samples, calibrated.

        Two samples that are equal at the step drawn would give weights of zero: other pairs are drawn for these, and
        random weights if none differ.
        """
        weight, bias = self._between_pairs(count)
        for _ in range(_REDRAWS):
            same = (~weight.any(1)).nonzero()[:, 0]
            if not len(same):
                break
            weight[same], bias[same] = self._between_pairs(len(same))
        same = (~weight.any(1)).nonzero()[:, 0]
        if len(same):
            drawn = torch.randn(len(same), weight.shape[1], generator=self.generator)
            weight[same], bias[same] = drawn.to(weight) / weight.shape[1] ** 0.5, 0.0
        return self._calibrated(weight.to(self.layer.weight), bias.to(self.layer.weight))

    def _between_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        points = pairs(self._inputs, self._targets, count, self.generator)
        return between(*self.layer.patches(*points, self.generator))

    def mutate(self, count: int, units: Units, importance: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """``count`` of ``units``, drawn by ``importance [M]``, with noise of relative ``size`` on their weights."""
        parents = torch.multinomial(importance, count, replacement=True, generator=self.generator)
        weight = units.weight[parents]
        noise = torch.randn(weight.shape, generator=self.generator).to(weight)
        weight = weight + size * noise * weight.norm(dim=1, keepdim=True) / weight.shape[1] ** 0.5
        return self._calibrated(weight, units.bias[parents])

    @torch.enable_grad()
    def ascend(self, weight: Tensor, bias: Tensor, dual: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Climb the score by the neuron's surrogate gradient; units of any size move at the same relative rate.

        Args:
            weight: ``[M, F]``.
            bias: ``[M]``.
            dual: The dual point over the fitted rows.
            steps: Steps of Adam, each on some of the samples.

        Returns:
            Weights and biases, calibrated.
        """
        size = weight.square().mean(1, keepdim=True).sqrt().clamp_min(_TINY)
        point = [(weight / size).requires_grad_(), (bias / size[:, 0]).requires_grad_()]
        optimizer = torch.optim.Adam(point, lr=_ASCENT_RATE)
        most = _ASCENT_CURRENTS // (len(weight) * self.layer.places * len(self._inputs))
        samples = min(_ASCENT_SAMPLES, max(most, _FEWEST))
        self.layer.neuron.train()  # some neurons have a surrogate gradient in this mode only
        for _ in range(steps):
            inputs, rows = self.some_inputs(samples)
            self.count_passes(BACKWARD * len(weight), inputs.shape[1])
            spikes = self.layer.spikes(inputs, point[0] * size, point[1] * size[:, 0])
            values, scale = self.layer.rows(spikes)
            score, _ = self.scores.correlate(values * scale, dual[rows].to(values))
            gradient = torch.autograd.grad(score.sum(), point)
            for parameter, g in zip(point, gradient, strict=True):
                parameter.grad = -g
            if not self.layer.has_bias:
                point[1].grad = None
            optimizer.step()
        self.layer.neuron.eval()
        climbed, moved = (point[0] * size).detach(), (point[1] * size[:, 0]).detach()
        lives = climbed.any(1) & climbed.isfinite().all(1) & moved.isfinite()
        return self._calibrated(torch.where(lives[:, None], climbed, weight), torch.where(lives, moved, bias))

    def measure(self, weight: Tensor, bias: Tensor) -> Units:
        """The units of weights ``[M, F]`` and biases ``[M]``, with their columns over all samples."""
        self.count_passes(len(weight), self.layer.inputs.shape[1])
        return Units(weight, bias, self.layer.columns(self.layer.inputs, weight, bias))

    def some_inputs(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs of random fitted samples (all if there are fewer), and their rows in the dual point."""
        samples = torch.randperm(self._inputs.shape[1], generator=self.generator)[:count]
        rows = samples[:, None] * self._rows_per_sample + torch.arange(self._rows_per_sample)
        return self._inputs.index_select(1, samples.to(self._inputs.device)), rows.flatten()

    def count_passes(self, units: int, samples: int) -> None:
        """Count a pass of ``units`` over ``samples``, here and, by its multiply-adds, as work."""
        self.passes += units * samples
        fan_in = self.layer.weight.shape[1]
        count_work(units * samples * len(self._inputs) * self.layer.places * fan_in // 2)  # of float32 numbers

    def _calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.some_inputs(_CALIBRATION_SAMPLES)[0]
        self.count_passes(len(weight), inputs.shape[1])
        if not self.layer.has_bias:
            bias = torch.zeros_like(bias)
        return self.layer.calibrated(inputs, weight, bias, self.rate)
