"""Hidden weights before a solve: dead layers brought to life, all of them calibrated, or better witnesses."""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_cvxsnn.convex import Point
from lightning_cvxsnn.network.activity import LayerActivity, is_spiking
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.patterns import Backend
from lightning_cvxsnn.runtime.memory import check_witness_memory
from lightning_cvxsnn.tasks.models import ParallelSNN
from lightning_cvxsnn.witnesses.branches import BranchSearch
from lightning_cvxsnn.witnesses.calibrate import CalibratedLayer, Manner, calibrate_layers
from lightning_cvxsnn.witnesses.column_generation import POOL, Priced, Pricer, Tried
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.samplers import GaussianKind, affine_names, is_initialised, write_gaussian

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

_TOLD_ROWS = 256  # on which the activity of replaced units is measured for the report
_SHALLOW = 2  # spiking layers up to which biases bring fresh ones to life; nine of them lost what they received
_PRICED_SAMPLES = 10_240  # that witnesses are chosen on, held-out ones included;
_PAIRED_SAMPLES = 2048  # that pairs are drawn from: more are hardly better, and take longer to read
_PRICED_ENTRIES = 2**24  # of the dictionary of these: a convolution has many columns;
_FEWEST_SAMPLES = 512  # but no fewer samples than this
_BRANCH_SAMPLES = 2048  # that whole branches are chosen on


@dataclass(frozen=True)
class WitnessOptions:
    """What a search for hidden weights is asked for.

    Attributes:
        kind: Which witnesses.
        seed: Seed of what is drawn.
        backend: Engine of candidates' patterns, see `resolve_backend`.
    """

    kind: Witnesses
    seed: int
    backend: Backend


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
    """
    shallow = _is_shallow(network.module)

    def manner(affine: nn.Module, layer: LayerActivity) -> Manner:
        if not is_initialised(affine):
            return "scale_dead" if only_dead else "scale"
        if not (only_dead or skip_last) or not (shallow or isinstance(affine, nn.Linear)):
            return "scale"
        return "shift_bias" if shallow or not layer.source else "copy_below"

    return calibrate_layers(
        network, rate=TARGET_RATE, only_dead=only_dead, skip_last=skip_last,
        unhealthy_too=lambda affine: untrained and is_initialised(affine), manner=manner,
    )  # fmt: skip


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
    if readout.reduction.rows_per_sample > 1 or not _is_shallow(module) or isinstance(module, ParallelSNN):
        return False
    first = (batch.x for batch in islice(network.rows, 1))
    check_memory = partial(check_witness_memory, samples=_PAIRED_SAMPLES)
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


@torch.no_grad()
def replace_witnesses(
    network: Network, programme: CapturedProgramme, options: WitnessOptions, beta: float | None
) -> tuple[Priced | Tried | None, list[CalibratedLayer]]:
    """Write the hidden weights of ``options.kind``; for ``"auto"``, those of ``"pairs"``.

    Args:
        network: The network, changed in place; its batch norms are estimated anew after each change.
        programme: The programme as found: the rows' targets, and which of them judge.
        options: Which witnesses.
        beta: Regularisation in use; None: pricing chooses.

    Returns:
        What a search by the programme found, None for the kinds that do not search; and what was done to layers that
        keep their weights but for factors and biases.
    """
    module, readout, kind = network.module, network.readout, options.kind
    if kind != "auto":
        _warn_of_others(network)
    if kind in get_args(GaussianKind):
        names = affine_names(module, network.inputs()[0], readout.module)
        write_gaussian(module, names, cast(GaussianKind, kind), options.seed)
        network.refresh_norms()
        calibrate_layers(network, rate=TARGET_RATE, only_dead=False, manner=lambda affine, layer: "scale_dead")
        return None, []
    if isinstance(module, ParallelSNN) and kind != "pairs":
        return _replace_branches(network, module, programme, options, beta), []
    layers = repair_dead_layers(network, only_dead=kind == "auto", untrained=True, skip_last=True)
    most = _PAIRED_SAMPLES if kind in ("auto", "pairs") else _PRICED_SAMPLES
    pricer = _pricer(network, programme, options, most)
    layer, width = pricer.layer, len(pricer.layer.weight)
    if kind in ("auto", "pairs"):
        before = network.last_activity(_TOLD_ROWS)
        layer.write(network, torch.arange(width), *pricer.draw_pairs(width))
        after = network.last_activity(_TOLD_ROWS)
        layers.append(CalibratedLayer(before.name, layer.affine_name, before, after, replaced=True))
        rank_zero_info(
            f"ConvexReconstruction gave the {width} units of '{layer.affine_name}' weights that tell pairs of training "
            "points apart."
        )
        return None, layers
    rho = None if beta is None else beta / readout.module.in_features**0.5
    own = not is_initialised(layer.affine)  # somebody's work competes
    priced = pricer.run(width, rho, own=own, pool=POOL * width if kind == "pool" else None)
    layer.write(network, torch.arange(width), priced.units.weight, priced.units.bias)
    violates = "" if priced.violation is None else f"; the last ones violate optimality by up to {priced.violation:.2f}"
    rank_zero_info(
        f"ConvexReconstruction chose {width} witnesses for '{layer.affine_name}' among {priced.candidates} "
        f"candidates on {layer.inputs.shape[1]} samples: objective {priced.objectives[0]:.4g} -> "
        f"{priced.objectives[-1]:.4g} in {len(priced.objectives)} rounds{violates}."
    )
    return priced, layers


def _warn_of_others(network: Network) -> None:
    """Say that other outputs lose what they have learned over hidden weights that are replaced."""
    readout = network.readout
    others = readout.others(network.module, network.first().x)
    if others:
        rank_zero_warn(
            f"Hidden weights get new values for '{readout.name}' alone, and the network also returns {list(others)}. "
            "Where these outputs depend on the same layers they answer something else now, and have to be trained "
            "after it. Use witnesses='auto', which keeps hidden weights that somebody has trained."
        )


@torch.no_grad()
def recycle_units(
    network: Network, programme: CapturedProgramme, options: WitnessOptions, rho: float, start: Point | None
) -> Tried | None:
    """Write priced witnesses for last hidden units that have no part in the answers to the training rows.

    Their readout row is zero, or made zero first because their column is constant: the bias takes over what they
    contribute. What takes their places starts with that row, so that no answer changes.

    Args:
        network: The network, changed in place; its batch norms are estimated anew after each change.
        programme: The programme over its columns.
        options: Seed and backend of the search.
        rho: Penalty of the programme.
        start: A point to start its solve from.

    Returns:
        What was tried; None where no unit is free.
    """
    module, readout = network.module, network.readout
    coef, intercept = readout.read()
    idle = _idle_columns(readout, programme, coef, intercept)
    free = ~coef.any(1) | idle
    if not bool(free.any()):
        return None
    if isinstance(module, ParallelSNN):
        recycle = _branch_search(network, module, programme, options).recycle
    else:
        search = _pricer(network, programme, options, _PRICED_SAMPLES)
        recycle = partial(search.recycle, network=network)
        own = search.layer.columns_per_unit
        idle = idle & search.whole(free).repeat_interleave(own)  # a channel in use keeps the places that never fire
    x = network.first().x
    tensors = [*module.parameters()]
    found, before = [t.detach().clone() for t in tensors], network.answers(x)
    if bool(coef[idle].any()):
        values = programme.dictionary.block(slice(0, 1))[0].double().cpu() * programme.dictionary.scale
        contributed = values[idle] @ coef[idle]
        readout.write(torch.where(idle[:, None], 0.0, coef), contributed + (0.0 if intercept is None else intercept))
    recycled = recycle(free, rho, start)
    same = zip(before, network.answers(x), strict=True)
    if not all(bool((a - b).abs().max() <= network.tolerance * a.abs().max()) for a, b in same):
        for tensor, value in zip(tensors, found, strict=True):
            tensor.copy_(value)
        network.refresh_norms()
        rank_zero_warn(
            f"Units that '{readout.name}' does not use were not given other weights: something else that the network "
            "returns depends on them. Use witnesses='auto' for such a network."
        )
    return recycled


def _idle_columns(readout: Readout, programme: CapturedProgramme, coef: Tensor, intercept: Tensor | None) -> Tensor:
    """``[P]`` bool: silent units and, where there is a bias to take over what they contribute, saturated ones."""
    if readout.neuron is not None:  # spiking outputs also depend on when a unit fires
        return torch.zeros(len(coef), dtype=torch.bool)
    constant = programme.dictionary.constant.cpu()
    return constant if intercept is not None else constant & (programme.dictionary.rates.cpu() == 0)


def _pricer(network: Network, programme: CapturedProgramme, options: WitnessOptions, most: int) -> Pricer:
    """A search of the last hidden units on at most ``most`` samples."""
    readout = network.readout
    rows_per_sample = readout.reduction.rows_per_sample
    affordable = max(_PRICED_ENTRIES // (readout.module.in_features * rows_per_sample), _FEWEST_SAMPLES)
    samples = _chosen(len(programme.held_out) // rows_per_sample, min(most, affordable), options.seed)
    few, own = network.rows.subset(samples)
    layer = find_witness_layer(
        network.module, readout, (batch.x for batch in few), own, options.backend,
        partial(check_witness_memory, samples=int(samples.sum())),
    )  # fmt: skip
    return Pricer(layer, programme.subset(samples.repeat_interleave(rows_per_sample)), TARGET_RATE, options.seed)


def _replace_branches(
    network: Network, module: ParallelSNN, programme: CapturedProgramme, options: WitnessOptions, beta: float | None
) -> Tried:
    """Write whole branches, constants included, that ``pool`` or ``priced`` finds."""
    search = _branch_search(network, module, programme, options)
    rho = None if beta is None else beta / module.readout.in_features**0.5
    chosen = search.run(rho, price=options.kind == "priced")
    search.write(chosen.branches)
    rank_zero_info(
        f"ConvexReconstruction chose {len(chosen.branches)} branches among {chosen.candidates} on {search.samples} "
        f"samples: objective {chosen.objectives[0]:.4g} -> {chosen.objectives[-1]:.4g}."
    )
    return chosen.tried


def _branch_search(
    network: Network, module: ParallelSNN, programme: CapturedProgramme, options: WitnessOptions
) -> BranchSearch:
    """A search of whole branches on at most `_BRANCH_SAMPLES`, all of the rows that are held at once."""
    rows_per_sample = network.readout.reduction.rows_per_sample
    samples = _chosen(len(programme.held_out) // rows_per_sample, _BRANCH_SAMPLES, options.seed)
    few, own = network.rows.subset(samples)
    inputs, seen = [], 0
    for batch in few:
        inputs.append(batch.x[own[seen : seen + len(batch.x)].to(batch.x.device)])
        seen += len(batch.x)
    part = programme.subset(samples.repeat_interleave(rows_per_sample))
    return BranchSearch(module, torch.cat(inputs), part, TARGET_RATE, options.seed)


def _chosen(count: int, most: int, seed: int) -> torch.Tensor:
    """A bool mask ``[count]`` of at most ``most`` samples, by the seed."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]] = True
    return mask


def calibrate(model: nn.Module, dataloader: Any, *, rate: float = TARGET_RATE, seed: int = 0) -> list[CalibratedLayer]:
    """Rescale the hidden weights of ``model``, layer by layer and in place, so that its units fire at ``rate``.

    What ``witnesses="calibrated"`` does before its solve, alone: the fair starting point for surrogate gradients.

    Args:
        model: A spiking network.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        rate: Target firing rate, spikes per unit and step, in (0, 1).
        seed: Seed of the 1024 rows that are used.

    Returns:
        What was done to each layer, in the order reached.

    Raises:
        MisconfigurationException: If ``rate`` is out of range or the data is not as expected.
        ValueError: If a dead layer has no affine layer before it, or a frozen one; nothing is changed.
    """
    if not 0 < rate < 1:
        raise MisconfigurationException(f"Invalid value rate={rate!r}. Expected spikes per unit and step, in (0, 1).")
    network = Network(model, rows_of(model, dataloader, seed=seed))
    with isolate_rng(), all_or_nothing(model), undisturbed(model):
        model.eval()
        network.refresh_norms()
        return calibrate_layers(network, rate=rate, only_dead=False)
