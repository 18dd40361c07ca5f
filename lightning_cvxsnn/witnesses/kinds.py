"""Hidden weights before a solve: dead layers brought to life, all of them calibrated, or better witnesses."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network import adapting_batch_norms, estimate_batch_norm, reset_neurons, undisturbed
from lightning_cvxsnn.network.activity import LayerActivity, is_spiking, measure_activity
from lightning_cvxsnn.network.programme import Problem
from lightning_cvxsnn.network.readout import Readout, forward_of
from lightning_cvxsnn.network.rows import TrainingRows, rows_of
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.runtime.memory import check_witness_memory
from lightning_cvxsnn.tasks.models import ParallelSNN
from lightning_cvxsnn.witnesses import CalibratedLayer, calibrate_layers
from lightning_cvxsnn.witnesses.branches import BranchSearch
from lightning_cvxsnn.witnesses.calibrate import Manner
from lightning_cvxsnn.witnesses.column_generation import POOL, Priced, Pricer, Tried
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.samplers import GaussianKind, affine_names, is_initialised, write_gaussian

#: Firing rate, spikes per unit and step, that repaired and calibrated layers are brought to.
TARGET_RATE = 0.1
#: Training rows that firing rates are measured on.
CALIBRATION_ROWS = 1024

_TOLD_ROWS = 256  # that the activity of replaced units is told of
_SHALLOW = 2  # spiking layers up to which biases bring fresh ones to life; nine of them lost what they received
_PRICED_SAMPLES = 10_240  # that witnesses are chosen on, held-out ones included;
_PAIRED_SAMPLES = 2048  # that pairs are drawn from: more are hardly better, and take longer to read
_PRICED_ENTRIES = 2**24  # of the dictionary of these: a convolution has many columns;
_FEWEST_SAMPLES = 512  # but no fewer samples than this
_BRANCH_SAMPLES = 2048  # that whole branches are chosen on


def repair_dead_layers(
    module: nn.Module,
    rows: TrainingRows,
    estimate: Callable[[], None],
    *,
    only_dead: bool,
    untrained: bool,
    skip_last: bool = False,
) -> list[CalibratedLayer]:
    """Bring dead layers, or all, to life, at `TARGET_RATE`.

    A layer that holds its constructor's weights, and half of whose units carry no information, is brought there as a
    whole: by one factor and a bias of each unit in a network of at most two spiking layers. In a deeper one, linear
    layers behind another send on its spikes, the first ones are changed by biases, and of all others each unit is
    rescaled. Of a dead layer that is not as its constructor made it only the dead units are. Where all layers are
    meant, every unit is; below new witnesses, fresh ones as above.

    Args:
        module: The network, changed in place.
        rows: Its training rows, of which `CALIBRATION_ROWS` are looked at.
        estimate: Estimates the batch norms anew; called after each change.
        only_dead: Leave layers that carry information as they are.
        untrained: Whether training has yet to begin: a layer that is half dead then counts as dead if it holds its
            constructor's weights. Later its other half is somebody's work.
        skip_last: Leave the last spiking layer as it is: it gets new witnesses.

    Returns:
        What was done to each layer, in the order reached.
    """
    inputs = [batch.x for batch in rows.sample(CALIBRATION_ROWS)]
    shallow = _is_shallow(module)

    def manner(affine: nn.Module, layer: LayerActivity) -> Manner:
        if not is_initialised(affine):
            return "dead rows" if only_dead else "rows"
        if not (only_dead or skip_last) or not (shallow or isinstance(affine, nn.Linear)):
            return "rows"
        return "biases" if shallow or not layer.source else "copies"

    return calibrate_layers(
        module, forward_of(module), inputs, rate=TARGET_RATE, only_dead=only_dead, after_change=estimate,
        unhealthy_too=lambda affine: untrained and is_initialised(affine), manner=manner, skip_last=skip_last,
    )  # fmt: skip


def _is_shallow(module: nn.Module) -> bool:
    return sum(map(is_spiking, module.modules())) <= _SHALLOW


@torch.no_grad()
def wants_pairs(module: nn.Module, readout: Readout, settings: Settings, rows: TrainingRows) -> bool:
    """Whether ``witnesses="auto"`` gives the last hidden layer weights that tell pairs of training points apart.

    It does where that was measured to train better: a classifier with one decision per sample and at most two spiking
    layers, of which the last still holds its constructor's weights.

    Args:
        module: The network. Call this inside ``undisturbed``.
        readout: Its proved readout.
        settings: The callback's arguments.
        rows: Its training rows, of which a batch is looked at.
    """
    one_decision = settings.loss != "squared" and readout.reduction.rows_per_sample == 1
    if settings.witnesses != "auto" or not one_decision or not _is_shallow(module) or isinstance(module, ParallelSNN):
        return False
    first = (batch.x for batch in islice(rows, 1))
    room = partial(check_witness_memory, samples=_PAIRED_SAMPLES)
    try:
        layer = find_witness_layer(module, readout.module, readout.reduction, forward_of(module), first, room=room)
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
    module: nn.Module,
    rows: TrainingRows,
    readout: Readout,
    problem: Problem,
    settings: Settings,
    beta: float | None,
    estimate: Callable[[], None],
) -> tuple[Priced | Tried | None, list[CalibratedLayer]]:
    """Write the hidden weights that ``settings.witnesses`` names; for ``"auto"``, those of ``"pairs"``.

    Args:
        module: The network, changed in place.
        rows: Its training rows.
        readout: Its proved readout.
        problem: The programme as found: the rows' targets, and which of them judge.
        settings: The callback's arguments.
        beta: Regularisation in use; None: pricing chooses.
        estimate: Estimates the batch norms anew; called after each change.

    Returns:
        What a search by the programme found, None for the kinds that do not search; and what was done to layers that
        keep their weights but for factors and biases.
    """
    kind, seed, forward = settings.witnesses, settings.seed, forward_of(module)
    if kind != "auto":
        _warn_of_others(module, rows, readout)
    if kind in get_args(GaussianKind):
        inputs = [batch.x for batch in rows.sample(CALIBRATION_ROWS)]
        names = affine_names(module, forward, inputs[0], readout.module)
        write_gaussian(module, names, cast(GaussianKind, kind), seed)
        estimate()
        calibrate_layers(
            module, forward, inputs, rate=TARGET_RATE, after_change=estimate, only_dead=False,
            manner=lambda affine, layer: "dead rows",
        )  # fmt: skip
        return None, []
    if isinstance(module, ParallelSNN) and kind != "pairs":
        return _replace_branches(module, rows, readout, problem, settings, beta), []
    layers = repair_dead_layers(module, rows, estimate, only_dead=kind == "auto", untrained=True, skip_last=True)
    most = _PAIRED_SAMPLES if kind in ("auto", "pairs") else _PRICED_SAMPLES
    pricer = _pricer(module, rows, readout, problem, settings, most)
    layer, width = pricer.layer, len(pricer.layer.weight)
    if kind in ("auto", "pairs"):
        before = _last_activity(module, rows, readout)
        layer.write(torch.arange(width), *pricer.draw_pairs(width), estimate)
        after = _last_activity(module, rows, readout)
        layers.append(CalibratedLayer(before.name, layer.affine_name, before, after, replaced=True))
        rank_zero_info(
            f"ConvexReconstruction gave the {width} units of '{layer.affine_name}' weights that tell pairs of training "
            "points apart."
        )
        return None, layers
    rho = None if beta is None else beta / readout.module.in_features**0.5
    own = not is_initialised(layer.affine)  # somebody's work competes
    priced = pricer.run(width, rho, own=own, pool=POOL * width if kind == "pool" else None)
    layer.write(torch.arange(width), priced.units.weight, priced.units.bias, estimate)
    violates = "" if priced.violation is None else f"; the last ones violate optimality by up to {priced.violation:.2f}"
    rank_zero_info(
        f"ConvexReconstruction chose {width} witnesses for '{layer.affine_name}' among {priced.candidates} "
        f"candidates on {layer.inputs.shape[1]} samples: objective {priced.objectives[0]:.4g} -> "
        f"{priced.objectives[-1]:.4g} in {len(priced.objectives)} rounds{violates}."
    )
    return priced, layers


def _warn_of_others(module: nn.Module, rows: TrainingRows, readout: Readout) -> None:
    """Say that other outputs lose what they have learned over hidden weights that are replaced."""
    others = readout.others(module, next(iter(rows)).x)
    if others:
        rank_zero_warn(
            f"Hidden weights get new values for '{readout.name}' alone, and the network also returns {list(others)}. "
            "Where these outputs depend on the same layers they answer something else now, and have to be trained "
            "after it. Use witnesses='auto', which keeps hidden weights that somebody has trained."
        )


def _last_activity(module: nn.Module, rows: TrainingRows, readout: Readout) -> LayerActivity:
    """Activity of the neurons that the readout receives, to be told."""
    inputs = [batch.x for batch in rows.sample(_TOLD_ROWS)]
    hidden = [a for a in measure_activity(module, forward_of(module), inputs) if a.name != readout.neuron_name]
    return hidden[-1]


@torch.no_grad()
def recycle_units(
    module: nn.Module,
    rows: TrainingRows,
    readout: Readout,
    problem: Problem,
    settings: Settings,
    rho: float,
    start: Solution | None,
    tolerance: float,
    estimate: Callable[[], None],
) -> Tried | None:
    """Write priced witnesses for last hidden units that have no part in the answers to the training rows.

    Their readout row is zero, or made zero first because their column is constant: the bias takes over what they
    contribute. What takes their places starts with that row, so that no answer changes.

    Args:
        module: The network, changed in place.
        rows: Its training rows.
        readout: Its proved readout.
        problem: The programme over its columns.
        settings: The callback's arguments.
        rho: Penalty of the programme.
        start: A point to start its solve from.
        tolerance: Of a forward pass, relative.
        estimate: Estimates the batch norms anew; called after each change.

    Returns:
        What was tried; None where no unit is free.
    """
    coef, intercept = readout.read()
    idle = _idle_columns(readout, problem, coef, intercept)
    free = ~coef.any(1) | idle
    if not bool(free.any()):
        return None
    if isinstance(module, ParallelSNN):
        recycle = _branch_search(module, rows, readout, problem, settings).recycle
    else:
        search = _pricer(module, rows, readout, problem, settings, _PRICED_SAMPLES)
        recycle = partial(search.recycle, estimate=estimate)
        own = search.layer.columns_per_unit
        idle = idle & search.whole(free).repeat_interleave(own)  # a channel in use keeps the places that never fire
    x = next(iter(rows)).x
    tensors = [*module.parameters()]
    found, before = [t.detach().clone() for t in tensors], _answers(module, x)
    if bool(coef[idle].any()):
        values = problem.dictionary.block(slice(0, 1))[0].double().cpu() * problem.dictionary.scale
        contributed = values[idle] @ coef[idle]
        readout.write(torch.where(idle[:, None], 0.0, coef), contributed + (0.0 if intercept is None else intercept))
    recycled = recycle(free, rho, start)
    same = zip(before, _answers(module, x), strict=True)
    if not all(bool((a - b).abs().max() <= tolerance * a.abs().max()) for a, b in same):
        for tensor, value in zip(tensors, found, strict=True):
            tensor.copy_(value)
        estimate()
        rank_zero_warn(
            f"Units that '{readout.name}' does not use were not given other weights: something else that the network "
            "returns depends on them. Use witnesses='auto' for such a network."
        )
    return recycled


def _idle_columns(readout: Readout, problem: Problem, coef: Tensor, intercept: Tensor | None) -> Tensor:
    """``[P]`` bool: silent units and, where there is a bias to take over what they contribute, saturated ones."""
    if readout.neuron is not None:  # spiking outputs also depend on when a unit fires
        return torch.zeros(len(coef), dtype=torch.bool)
    constant = problem.dictionary.constant.cpu()
    return constant if intercept is not None else constant & (problem.dictionary.rates.cpu() == 0)


def _answers(module: nn.Module, x: Any) -> list[Tensor]:
    """All tensors that the network returns for ``x``; the same ones again for the same weights."""
    reset_neurons(module)
    with isolate_rng():
        torch.manual_seed(0)
        return [leaf.float() for leaf in tree_flatten(forward_of(module)(x))[0] if isinstance(leaf, Tensor)]


def _pricer(
    module: nn.Module, rows: TrainingRows, readout: Readout, problem: Problem, settings: Settings, most: int
) -> Pricer:
    """A search of the last hidden units on at most ``most`` samples."""
    rows_per_sample = readout.reduction.rows_per_sample
    affordable = max(_PRICED_ENTRIES // (readout.module.in_features * rows_per_sample), _FEWEST_SAMPLES)
    samples = _chosen(len(problem.held_out) // rows_per_sample, min(most, affordable), settings.seed)
    few, own = rows.among(samples)
    layer = find_witness_layer(
        module, readout.module, readout.reduction, forward_of(module), (batch.x for batch in few), own,
        settings.backend, partial(check_witness_memory, samples=int(samples.sum())),
    )  # fmt: skip
    return Pricer(layer, problem.at(samples.repeat_interleave(rows_per_sample)), TARGET_RATE, settings.seed)


def _replace_branches(
    module: ParallelSNN,
    rows: TrainingRows,
    readout: Readout,
    problem: Problem,
    settings: Settings,
    beta: float | None,
) -> Tried:
    """Write whole branches, constants included, that ``pool`` or ``priced`` finds."""
    search = _branch_search(module, rows, readout, problem, settings)
    rho = None if beta is None else beta / module.readout.in_features**0.5
    chosen = search.run(rho, price=settings.witnesses == "priced")
    search.write(chosen.branches)
    rank_zero_info(
        f"ConvexReconstruction chose {len(chosen.branches)} branches among {chosen.candidates} on {search.samples} "
        f"samples: objective {chosen.objectives[0]:.4g} -> {chosen.objectives[-1]:.4g}."
    )
    return chosen.tried


def _branch_search(
    module: ParallelSNN, rows: TrainingRows, readout: Readout, problem: Problem, settings: Settings
) -> BranchSearch:
    """A search of whole branches on at most `_BRANCH_SAMPLES`, all of the rows that are held at once."""
    rows_per_sample = readout.reduction.rows_per_sample
    samples = _chosen(len(problem.held_out) // rows_per_sample, _BRANCH_SAMPLES, settings.seed)
    few, own = rows.among(samples)
    inputs, seen = [], 0
    for batch in few:
        inputs.append(batch.x[own[seen : seen + len(batch.x)].to(batch.x.device)])
        seen += len(batch.x)
    part = problem.at(samples.repeat_interleave(rows_per_sample))
    return BranchSearch(module, torch.cat(inputs), part, TARGET_RATE, settings.seed)


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
    rows = rows_of(model, dataloader, seed=seed)
    norms = adapting_batch_norms(model)
    with isolate_rng(), all_or_nothing(model), undisturbed(model):
        model.eval()
        estimate = partial(estimate_norms, model, norms, rows)
        estimate()
        inputs = [batch.x for batch in rows.sample(CALIBRATION_ROWS)]
        return calibrate_layers(model, forward_of(model), inputs, rate=rate, only_dead=False, after_change=estimate)


def estimate_norms(module: nn.Module, norms: list[Any], rows: TrainingRows) -> None:
    """Estimate the statistics of ``norms`` over the training rows."""
    if norms:
        estimate_batch_norm(module, norms, forward_of(module), (batch.x for batch in rows))
