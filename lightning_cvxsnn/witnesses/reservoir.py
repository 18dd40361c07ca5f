"""Reservoirs at the edge of chaos: random hidden weights and constants of neurons at which activity just persists.

The measure is the branching ratio of Beggs and Plenz, "Neuronal avalanches in neocortical circuits" (J. Neurosci.
2003), estimated by regression as by Wilting and Priesemann (Nature Communications 2018); the search over leak,
threshold and input scale is that of the liquid state machines which Udupi, Yang, Zhai, arXiv 2605.08022 (2026),
compare with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.network import forward_of, is_spiking, reset_neurons
from lightning_cvxsnn.network.activity import watching_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.witnesses.branches import Branched
from lightning_cvxsnn.witnesses.samplers import GaussianKind, affine_names, write_gaussian

LEAKS, THRESHOLDS, SCALES = (0.9, 0.95, 0.99, 0.995), (0.5, 1.0, 1.5, 2.0), (0.5, 1.0, 2.0, 4.0)
_ROWS = 256  # rows that activity is measured on


@dataclass(frozen=True)
class Reservoir:
    """Where a reservoir works.

    Attributes:
        leak: Share of the voltage that neurons keep from step to step.
        threshold: The voltage at which they fire.
        scale: Factor on the random weights.
        ratio: Branching ratio there.
    """

    leak: float
    threshold: float
    scale: float
    ratio: float


def branching_ratio(spikes: Tensor) -> float:
    """Spikes that follow each spike one step later: the slope of activity on the activity of the step before.

    Args:
        spikes: ``[T, N, P]``; activity is their number at each step, summed over units and samples.

    Returns:
        1 where activity persists, below 1 where it dies out; 0 of a silent layer.

    Example:
        >>> doubling = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
        >>> branching_ratio(doubling), branching_ratio(0 * doubling)
        (2.0, 0.0)
    """
    activity = spikes.double().flatten(1).sum(1)
    before, after = activity[:-1], activity[1:]
    return float(before @ after / (before @ before)) if bool(before.any()) else 0.0


@torch.no_grad()
def tune_reservoir(
    network: Network,
    kind: GaussianKind,
    seed: int,
    leaks: Sequence[float] = LEAKS,
    thresholds: Sequence[float] = THRESHOLDS,
    scales: Sequence[float] = SCALES,
) -> Reservoir:
    """Give a network random hidden weights, and the constants and factor at which its branching ratio is nearest to 1.

    The ratio is that of the layers whose spikes the readout receives. Call it inside ``undisturbed`` and
    ``isolate_rng``, and put the constants, which these undo, in place by `set_constants` afterwards.

    Args:
        network: The network; its hidden weights and biases are replaced.
        kind: Distribution of the weights.
        seed: Seed of the weights.
        leaks: Leaks to try, in (0, 1).
        thresholds: Thresholds to try, above 0.
        scales: Factors on the weights to try, above 0.

    Raises:
        MisconfigurationException: If a number is out of range, there are no neurons with a ``tau`` and a
            ``v_threshold``, or none of the combinations fires.
    """
    _check("leaks", leaks, 1.0)
    _check("thresholds", thresholds, torch.inf)
    _check("scales", scales, torch.inf)
    module, inputs = network.module, network.inputs(_ROWS)
    names = affine_names(module, inputs[0], network.readout.module)
    write_gaussian(module, names, kind, seed)
    weights: list[Any] = [module.get_submodule(name).weight for name in names]
    drawn = [weight.clone() for weight in weights]

    def scaled(scale: float) -> None:
        for weight, values in zip(weights, drawn, strict=True):
            weight.copy_(scale * values)

    found = []
    for leak, threshold, scale in product(leaks, thresholds, scales):
        set_constants(module, leak, threshold)
        scaled(scale)
        found.append(Reservoir(leak, threshold, scale, branching_ratio(last_spikes(network, inputs))))
    best = min(found, key=lambda reservoir: abs(reservoir.ratio - 1))
    if best.ratio == 0:
        raise MisconfigurationException(
            f"Found no spikes in the last layer with any of {len(found)} reservoirs. Expected lower thresholds or "
            "larger scales."
        )
    scaled(best.scale)
    return best


def last_spikes(network: Network, inputs: Sequence[Any]) -> Tensor:
    """Spikes ``[T, N, P]`` of the layers that the readout receives: the last one, or the last of each branch."""
    module = network.module
    last: dict[str, list[Tensor]] = {}

    def see(name: str, neuron: nn.Module, arguments: tuple[Any, ...], spikes: Tensor) -> None:
        several = getattr(neuron, "step_mode", "m") == "m"
        last.setdefault(name, []).append(spikes if several else spikes[None])

    batches = []
    for x in inputs:
        last.clear()
        reset_neurons(module)
        with watching_neurons(module, see):
            forward_of(module)(x)
        trains = {name: torch.cat(parts) for name, parts in last.items() if name != network.readout.neuron_name}
        chosen = list(trains.values())[-1:]
        if isinstance(module, Branched):
            ends = {id(branch[-1]) for branch in module.branches}  # type: ignore[index]
            chosen = [train for name, train in trains.items() if id(module.get_submodule(name)) in ends]
        batches.append(torch.cat([train.flatten(2) for train in chosen], -1))
    return torch.cat(batches, 1)


@torch.no_grad()
def set_constants(module: nn.Module, leak: float, threshold: float) -> None:
    """Give all neurons a leak and a threshold; a `LIF` keeps them in its state dict, a ``LIFNode`` does not.

    Raises:
        MisconfigurationException: If a neuron has none.
    """
    for name, neuron in module.named_modules():
        if is_spiking(neuron):
            for constant, value in (("tau", 1 / (1 - leak)), ("v_threshold", threshold)):
                held = getattr(neuron, constant, None)
                if isinstance(held, Tensor):
                    held.fill_(value)
                elif isinstance(held, float):
                    setattr(neuron, constant, value)
                else:
                    raise MisconfigurationException(
                        f"'{name}' ({type(neuron).__name__}) has no {constant}. Expected LIF neurons, whose leak and "
                        "threshold can be tuned."
                    )


def _check(name: str, values: Sequence[float], below: float) -> None:
    if not values or not all(0 < value < below for value in values):
        raise MisconfigurationException(
            f"Invalid value {name}={list(values)!r}. Expected numbers above 0{f' and below {below:g}' * (below == 1)}."
        )
