"""The hidden weights that a fresh network starts from: candidates, written in turn, scored by a ridge readout.

The first layer decides, since nothing behind it adds information: candidates for it are compared with their spikes
copied up to the readout, and only then, over the best of them, other weights for the layers behind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.dataflow import is_spiking
from lightning_cvxsnn.network.network import TOGETHER, Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.network.spikes import capture
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer, Manner
from lightning_cvxsnn.witnesses.kinds import WitnessOptions, calibrate_to_target, repair_dead_layers, wants_pairs
from lightning_cvxsnn.witnesses.paired import replace_by_pairs, write_pairs
from lightning_cvxsnn.witnesses.proposers import some_samples
from lightning_cvxsnn.witnesses.ridge import left_out_error
from lightning_cvxsnn.witnesses.samplers import is_initialised

First = Literal["scale", "pairs"]

_SCORED = 1000  # samples that candidates are compared on,
_CALIBRATED = 128  # and rows that they are brought to a firing rate on
_MARGIN = 0.01  # of the error, by which a candidate that changes more must be better

_NAMES: dict[First, str] = {
    "scale": "rescaled weights in the first layer",
    "pairs": "weights that tell pairs of points apart in the first layer",
}


def fresh_layers(network: Network) -> set[nn.Module]:
    """The hidden layers that still hold their constructor's weights."""
    readout = network.readout.module
    return {part for part in network.module.modules() if part is not readout and is_initialised(part)}


@dataclass(frozen=True, eq=False)
class _Start:
    """A candidate that was written: its name, its error, what was done, and the parameters that it left."""

    name: str
    error: float
    layers: list[CalibratedLayer]
    values: list[Tensor]


class _Trial:
    """Writes candidates, each over the weights as found, and keeps the best."""

    def __init__(self, network: Network, programme: CapturedProgramme, options: WitnessOptions) -> None:
        self._network, self._programme, self._options = network, programme, options
        self._fresh = fresh_layers(network)
        per_sample = network.readout.reduction.rows_per_sample
        samples = some_samples(network, programme, max(_SCORED // per_sample, 1), options.seed)
        rows, own = network.rows.widened(TOGETHER).subset(samples)
        self._inputs = [batch.x for batch in rows]
        self._own = own.repeat_interleave(per_sample)
        self._part = programme.subset(samples.repeat_interleave(per_sample))
        self._tensors = [*network.module.parameters(), *network.constants]
        self._found = [t.clone() for t in self._tensors]
        self.best: _Start | None = None

    def attempt(self, name: str, write: Callable[[], list[CalibratedLayer]]) -> bool:
        """Write a candidate and score it; whether it is the best so far."""
        self._put(self._found)
        layers = write()
        error = self._error()
        if self.best is not None and error >= (1 - _MARGIN) * self.best.error:
            return False
        self.best = _Start(name, error, layers, [t.clone() for t in self._tensors])
        return True

    def calibrated(self, first: First, behind: Manner, *, paired: bool = False) -> list[CalibratedLayer]:
        """Bring fresh layers to the firing rate, the first in one manner and those behind another layer in another.

        Args:
            first: ``scale``; ``pairs``: weights that tell points apart, then scaled.
            behind: Of the others.
            paired: Whether the last layer gets pairs instead.
        """
        network = self._network
        if first == "pairs":
            self._write_first_pairs()

        def manner(affine: nn.Module, layer: LayerActivity) -> Manner:
            if affine not in self._fresh:
                return "scale_dead"
            return behind if layer.source else "scale"

        layers = calibrate_to_target(
            network, only_dead=True, rows=_CALIBRATED, skip_last=paired,
            also=lambda affine, layer: affine in self._fresh, manner=manner,
        )  # fmt: skip
        return [*layers, replace_by_pairs(network, self._programme, self._options)] if paired else layers

    def write_best(self) -> list[CalibratedLayer]:
        """Leave the best candidate in the network, and say which it is."""
        assert self.best is not None
        self._put(self.best.values)
        rank_zero_info(
            f"ConvexReconstruction starts from {self.best.name}: over it, a ridge readout leaves {self.best.error:.1%} "
            "of the variance of rows that it has not seen."
        )
        return self.best.layers

    def _write_first_pairs(self) -> None:
        inputs = self._network.inputs(_CALIBRATED)
        for position, layer in enumerate(measure_activity(self._network.module, inputs[:1])):
            affine = self._network.module.get_submodule(layer.affine_name) if layer.affine_name else None
            if affine in self._fresh and (position == 0 or (isinstance(affine, nn.Linear) and not layer.source)):
                write_pairs(self._network, layer, inputs[0], self._options.seed)

    def _put(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.copy_(value)
        self._network.refresh_norms()

    def _error(self) -> float:
        network, part = self._network, self._part
        captured = capture(network.module, network.readout, self._inputs)
        columns = captured.dictionary.rows(self._own).to_dense(torch.float32)
        return left_out_error(columns, _values(part), part.weights.float())


@torch.no_grad()
def choose_start(network: Network, programme: CapturedProgramme, options: WitnessOptions) -> list[CalibratedLayer]:
    """Write the hidden weights over which a ridge readout errs least on rows that it is not fitted to.

    Only layers that hold their constructor's weights get others; of somebody's own, dead units are repaired. Of nearly
    equal candidates the one that changes less stays.

    Args:
        network: The network, changed in place; its batch norms are estimated anew.
        programme: The programme as found: the rows' targets and weights.
        options: Seed and backend of what is drawn.

    Returns:
        What was done to each layer.

    Raises:
        MisconfigurationException: If a dead layer cannot be repaired.
    """
    behind = sum(map(is_spiking, network.module.modules())) > 1 and wants_pairs(network)
    trial = _Trial(network, programme, options)
    trial.attempt(
        "its hidden weights, repaired",
        lambda: repair_dead_layers(network, only_dead=True, untrained=True, rows=_CALIBRATED),
    )
    below: First = "scale"
    for first in get_args(First):
        try:
            if trial.attempt(f"{_NAMES[first]}, sent upward", partial(trial.calibrated, first, "copy_below")):
                below = first
        except MisconfigurationException:  # what had to change, the repair has changed
            continue
    if behind:
        trial.attempt(f"{_NAMES[below]}, and pairs in the last", partial(trial.calibrated, below, "scale", paired=True))
    return trial.write_best()


def _values(programme: CapturedProgramme) -> Tensor:
    """Targets as values ``[n, C]``."""
    targets = programme.targets
    if targets.dim() > 1:
        return targets.float()
    return F.one_hot(targets, max(programme.num_outputs, 2)).float()
