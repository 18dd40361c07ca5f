"""The kinds of witnesses; hidden weights that are kept, repaired where a layer is dead, or calibrated."""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_cvxsnn.convex import Loss
from lightning_cvxsnn.network.activity import LayerActivity
from lightning_cvxsnn.network.dataflow import is_spiking
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.quick import quick_neurons
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.patterns import Backend
from lightning_cvxsnn.runtime.memory import check_witness_memory
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.branches import Branched
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer, DeadLayerError, Manner, calibrate_layers
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.samplers import is_initialised

Witnesses = Literal[
    "auto",
    "keep",
    "calibrated",
    "gaussian_standard",
    "gaussian_normalized",
    "gaussian_orthogonal",
    "pairs",
    "pool",
    "priced",
]

#: Firing rate, spikes per unit and step, that repaired and calibrated layers are brought to.
TARGET_RATE = 0.1

#: Samples that pairs are drawn from: more are hardly better, and take longer to read.
PAIRED_SAMPLES = 2048

_SHALLOW = 2  # spiking layers up to which biases bring fresh ones to life; nine of them lost what they received


@dataclass(frozen=True)
class WitnessOptions:
    """What a search for hidden weights is asked for.

    Attributes:
        kind: Which witnesses.
        seed: Seed of what is drawn.
        backend: Engine of candidates' patterns, see `resolve_backend`.
        loss: Loss of the programme.
    """

    kind: Witnesses
    seed: int
    backend: Backend
    loss: Loss


def repair_dead_layers(
    network: Network, *, only_dead: bool, untrained: bool, skip_last: bool = False
) -> list[CalibratedLayer]:
    """Change the weights that feed dead layers, or all layers, so that they fire at `TARGET_RATE`.

    A layer that holds its constructor's weights, and half of whose units carry no information, is brought there as a
    whole: by one factor and a bias of each unit in a network of at most two spiking layers. In a deeper one, linear
    layers behind another send on its spikes, the first ones are changed by biases, and of all others each unit is
    rescaled. Of a dead layer that is not as its constructor made it only the dead units are. Where all layers are
    meant, every unit is; below new witnesses, fresh ones as above.

    Args:
        network: The network, changed in place; its batch norms are estimated anew after each change.
        only_dead: Leave layers that carry information as they are.
        untrained: Whether training has yet to begin: a layer that is half dead then counts as dead if it holds its
            constructor's weights. Later its other half is somebody's work.
        skip_last: Leave the last spiking layer as it is: it gets new witnesses.

    Returns:
        What was done to each layer, in the order reached.

    Raises:
        MisconfigurationException: If the weights that feed a dead layer cannot be changed, or no change helps.
    """
    shallow = _is_shallow(network.module)

    def manner(affine: nn.Module, layer: LayerActivity) -> Manner:
        if not is_initialised(affine):
            return "scale_dead" if only_dead else "scale"
        if not (only_dead or skip_last) or not (shallow or isinstance(affine, nn.Linear)):
            return "scale"
        return "shift_bias" if shallow or not layer.source else "copy_below"

    return calibrate_to_target(
        network, only_dead=only_dead, skip_last=skip_last,
        also=lambda affine, layer: untrained and not layer.healthy and is_initialised(affine), manner=manner,
    )  # fmt: skip


def calibrate_to_target(network: Network, **options: Any) -> list[CalibratedLayer]:
    """`calibrate_layers` to `TARGET_RATE`; what it cannot change is the user's to mend."""
    try:
        return calibrate_layers(network, rate=TARGET_RATE, **options)
    except DeadLayerError as error:
        raise MisconfigurationException(str(error)) from error


def _is_shallow(module: nn.Module) -> bool:
    return sum(map(is_spiking, module.modules())) <= _SHALLOW


@torch.no_grad()
def wants_pairs(network: Network) -> bool:
    """Whether ``witnesses="auto"`` gives a classifier's last hidden layer weights that tell training points apart.

    It does where that was measured to train better: one decision per sample and at most two spiking layers, of which
    the last still holds its constructor's weights.

    Args:
        network: The network, of whose rows one batch is looked at. Call this inside ``undisturbed``.
    """
    module, readout = network.module, network.readout
    if readout.reduction.rows_per_sample > 1 or not _is_shallow(module) or isinstance(module, Branched):
        return False
    first = (batch.x for batch in islice(network.rows, 1))
    check_memory = partial(check_witness_memory, samples=PAIRED_SAMPLES)
    try:
        layer = find_witness_layer(module, readout, first, check_memory=check_memory)
    except (ValueError, MisconfigurationException):
        return False  # no plain layer whose units can be replaced one by one, or no memory for what it receives
    return is_initialised(layer.affine) and isinstance(layer.affine, nn.Linear) and layer.norm is None


def describe_repairs(layers: list[CalibratedLayer]) -> str:
    """Which of ``layers`` carried no information, and what was done to them."""

    def change(layer: CalibratedLayer) -> str:
        if layer.replaced:
            return "given new weights"
        if layer.copies:
            return "now sends on the spikes of the layer below"
        return f"times {layer.scale:.2g}, {layer.negated} units negated, biases {layer.shift:+.2g}"

    return "; ".join(
        f"'{r.name}' ({r.before.silent} of {r.before.units} units silent, {r.before.saturated} saturated; "
        f"'{r.affine_name}' {change(r)}, firing rate {r.before.rate:.3f} -> {r.after.rate:.3f})"
        for r in layers
        if not r.before.healthy
    )


def calibrate(model: nn.Module, dataloader: Any, *, rate: float = TARGET_RATE, seed: int = 0) -> list[CalibratedLayer]:
    """Rescale the hidden weights of ``model``, layer by layer and in place, so that its units fire at ``rate``.

    What ``witnesses="calibrated"`` does before its solve, alone: the fair starting point for surrogate gradients.

    Args:
        model: A spiking network.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        rate: Target firing rate, spikes per unit and step, in (0, 1).
        seed: Seed of the 1024 rows that are used.

    Returns:
        What was done to each layer, in the order reached. Batch norms that training updates have the statistics of the
        rows that were used.

    Raises:
        MisconfigurationException: If ``rate`` is out of range or the data is not as expected.
        DeadLayerError: If the weights that feed a dead layer cannot be changed, or no change helps; nothing is changed.
            It is a ValueError.
    """
    if not 0 < rate < 1:
        raise MisconfigurationException(f"Invalid value rate={rate!r}. Expected spikes per unit and step, in (0, 1).")
    network = Network(model, rows_of(model, dataloader, seed=seed))
    with isolate_rng(), all_or_nothing(model):
        with undisturbed(model), quick_neurons(model):
            model.eval()
            network.refresh_norms()
            layers = calibrate_layers(network, rate=rate, only_dead=False)
            statistics = [(buffer, buffer.clone()) for buffer in network.statistics]
        with torch.no_grad():
            for buffer, value in statistics:
                buffer.copy_(value)
    return layers
