"""Hidden weights that tell pairs of training points apart, for the first layer of a network or for its last."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.activity import LayerActivity
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer
from lightning_cvxsnn.witnesses.kinds import PAIRED_SAMPLES, WitnessOptions
from lightning_cvxsnn.witnesses.layer import WitnessLayer
from lightning_cvxsnn.witnesses.proposers import propose_units
from lightning_cvxsnn.witnesses.samplers import between, pairs

_TOLD_ROWS = 256  # on which the activity of replaced units is measured for the report
_DRAWN = 4  # pairs for each unit, since two points may be equal at the step drawn


def replace_by_pairs(network: Network, programme: CapturedProgramme, options: WitnessOptions) -> CalibratedLayer:
    """Give the last hidden layer weights that tell pairs of training points apart."""
    proposer = propose_units(network, programme, options, most=PAIRED_SAMPLES)
    layer, width = proposer.layer, proposer.width
    before = network.last_activity(_TOLD_ROWS)
    layer.write(network, torch.arange(width), *proposer.sampler.draw_pairs(width))
    after = network.last_activity(_TOLD_ROWS)
    return CalibratedLayer(before.name, layer.affine_name, before, after, replaced=True)


@torch.no_grad()
def write_pairs(network: Network, layer: LayerActivity, x: Any, seed: int) -> None:
    """Give a layer whose inputs are the data weights that tell points of ``x`` apart, of whatever targets; in place.

    Units whose two points are equal keep the weights they have.

    Args:
        network: The network.
        layer: The spiking layer, fed by a linear layer or a convolution.
        x: A batch of inputs.
        seed: Seed of the pairs.
    """
    affine: Any = network.module.get_submodule(layer.affine_name)
    neuron = network.module.get_submodule(layer.name)
    if not isinstance(affine, (nn.Linear, _ConvNd)) or getattr(affine, "groups", 1) > 1:
        return
    inputs, places = _received(network.module, affine, x)
    width, generator = len(affine.weight), torch.Generator().manual_seed(seed)
    points = pairs(inputs, torch.arange(inputs.shape[1]), _DRAWN * width, generator)
    differ = (points[0] != points[1]).flatten(1).any(1)
    chosen = differ.int().argsort(descending=True, stable=True)[:width]
    chosen = chosen[differ[chosen]]
    seen = WitnessLayer(layer.affine_name, layer.name, affine, neuron, network.readout.reduction, inputs, places)
    weight, bias = between(*seen.patches(points[0][chosen], points[1][chosen], generator))
    affine.weight[: len(weight)] = weight.unflatten(1, affine.weight.shape[1:]).to(affine.weight)
    if affine.bias is not None:
        affine.bias[: len(bias)] = bias.to(affine.bias)


def _received(module: nn.Module, affine: Any, x: Any) -> tuple[Tensor, int]:
    """What an affine layer receives of a batch, ``[T, N, ...]``, and in how many places it sends a unit's output."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = affine.register_forward_hook(lambda _, args, output: calls.append((args[0].detach(), output)))
    try:
        reset_neurons(module)
        forward_of(module)(x)
    finally:
        handle.remove()
    rank = affine.weight.dim()
    steps = [call if call.dim() > rank else call[None] for call, _ in calls]
    inputs = torch.cat([step for step in steps if step.shape[1:] == steps[0].shape[1:]])
    return inputs, 1 if isinstance(affine, nn.Linear) else calls[0][1].shape[2 - rank :].numel()
