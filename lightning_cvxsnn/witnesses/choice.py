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
from lightning_cvxsnn.network.programme import CapturedProgramme, capture_programme
from lightning_cvxsnn.network.spikes import capture
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer, Manner
from lightning_cvxsnn.witnesses.kinds import WitnessOptions, calibrate_to_target, repair_dead_layers, wants_pairs
from lightning_cvxsnn.witnesses.paired import replace_by_pairs, write_pairs
from lightning_cvxsnn.witnesses.ridge import left_out_error
from lightning_cvxsnn.witnesses.samplers import is_initialised

First = Literal["scale", "pairs"]

_SCORED = 500  # rows of the dictionary that candidates are compared on,
_FEWEST = 5  # of at least so many samples,
_CALIBRATED = 128  # and rows that they are brought to a firing rate on
_MARGIN = 0.01  # of the error, by which a candidate that changes more must be better

_NAMES: dict[First, str] = {
    "scale": "a rescaled first layer",
    "pairs": "a first layer that tells pairs of rows apart",
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

    def __init__(self, network: Network, options: WitnessOptions) -> None:
        self._options = options
        self._fresh = fresh_layers(network)
        rows = network.rows.widened(TOGETHER)
        self._network = network.over(rows.some(max(_SCORED // network.readout.reduction.rows_per_sample, _FEWEST)))
        self._few = network.over(rows.some(_CALIBRATED))
        programme = capture_programme(
            self._network, loss=options.loss, seed=options.seed, progress=no_progress, stage="patterns as found"
        )
        assert programme is not None  # of rows that are this process's alone
        self._programme = programme
        self._inputs = [batch.x for batch in self._network.rows]
        self._tensors = [*network.module.parameters(), *network.constants, *network.statistics]
        self._found = [t.clone() for t in self._tensors]
        self.best: _Start | None = None

    def attempt(self, name: str, write: Callable[[], list[CalibratedLayer]]) -> bool:
        """Write a candidate and score it; whether it is the best so far."""
        self._put(self._found)
        layers = write()
        if self.best is not None and all(map(torch.equal, self._tensors, self.best.values)):
            return False
        error = self._error()
        if self.best is not None and error >= (1 - _MARGIN) * self.best.error:
            return False
        name = name if layers else "the network's own hidden weights"
        self.best = _Start(name, error, layers, [t.clone() for t in self._tensors])
        return True

    def repaired(self) -> list[CalibratedLayer]:
        """Bring what is dead to life, as a network that is not fresh is repaired."""
        return repair_dead_layers(self._few, only_dead=True, untrained=True)

    def calibrated(self, first: First, behind: Manner, *, paired: bool = False) -> list[CalibratedLayer]:
        """Bring fresh layers to the firing rate, the first in one manner and those behind another layer in another.

        Args:
            first: ``scale``; ``pairs``: weights that tell points apart, then scaled.
            behind: Of the others.
            paired: Whether the last layer gets pairs instead.
        """
        if first == "pairs":
            self._write_first_pairs()

        def manner(affine: nn.Module, layer: LayerActivity) -> Manner:
            if affine not in self._fresh:
                return "scale_dead"
            return behind if layer.source else "scale"

        layers = calibrate_to_target(
            self._few, only_dead=True, skip_last=paired,
            also=lambda affine, layer: affine in self._fresh, manner=manner,
        )  # fmt: skip
        return [*layers, replace_by_pairs(self._network, self._programme, self._options)] if paired else layers

    def write_best(self) -> list[CalibratedLayer]:
        """Leave the best candidate in the network, and say which it is."""
        assert self.best is not None
        self._put(self.best.values)
        rank_zero_info(
            f"ConvexReconstruction starts from {self.best.name}; a quick ridge readout over it explains "
            f"{100 * max(0.0, 1 - self.best.error):.1f} % of the variance of rows that it has not seen."
        )
        return self.best.layers

    def _write_first_pairs(self) -> None:
        network, x = self._few, self._few.first().x
        for position, layer in enumerate(measure_activity(network.module, [x])):
            affine = network.module.get_submodule(layer.affine_name) if layer.affine_name else None
            if affine in self._fresh and (position == 0 or (isinstance(affine, nn.Linear) and not layer.source)):
                write_pairs(network, layer, x, self._options.seed)

    def _put(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.copy_(value)

    def _error(self) -> float:
        programme = self._programme
        captured = capture(self._network.module, self._network.readout, self._inputs)
        return left_out_error(
            captured.dictionary.to_dense(torch.float32), _values(programme), programme.weights.float()
        )


@torch.no_grad()
def choose_start(network: Network, options: WitnessOptions) -> list[CalibratedLayer]:
    """Write the hidden weights over which a ridge readout errs least on rows that it is not fitted to.

    Only layers that hold their constructor's weights get others; of somebody's own, dead units are repaired. Of nearly
    equal candidates the one that changes less stays.

    Args:
        network: The network, changed in place; its batch norms are estimated anew.
        options: Seed and backend of what is drawn, and the loss, which tells what targets are.

    Returns:
        What was done to each layer.

    Raises:
        MisconfigurationException: If a dead layer cannot be repaired.
    """
    deep = sum(map(is_spiking, network.module.modules())) > 1
    passed = ", whose spikes the later layers pass on" if deep else ""
    pairs_behind = deep and wants_pairs(network)
    trial = _Trial(network, options)
    trial.attempt("repaired hidden weights", trial.repaired)
    below: First = "scale"
    for first in get_args(First):
        try:
            if trial.attempt(f"{_NAMES[first]}{passed}", partial(trial.calibrated, first, "copy_below")):
                below = first
        except MisconfigurationException:  # what had to change, the repair has changed
            continue
    if pairs_behind:
        trial.attempt(
            f"{_NAMES[below]}, and pairs in the last layer", partial(trial.calibrated, below, "scale", paired=True)
        )
    layers = trial.write_best()
    if layers:  # else the statistics are those of the network as found
        network.refresh_norms()
    return layers


def _values(programme: CapturedProgramme) -> Tensor:
    """Targets as values ``[n, C]``."""
    targets = programme.targets
    if targets.dim() > 1:
        return targets.float()
    return F.one_hot(targets, max(programme.num_outputs, 2)).float()
