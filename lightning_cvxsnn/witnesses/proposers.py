"""What a search of one network's hidden weights chooses from, on some of its training samples."""

from functools import partial

import torch
from torch import Tensor

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.runtime.memory import check_witness_memory
from lightning_cvxsnn.witnesses.branch_search import BranchProposer, BranchSearchSettings
from lightning_cvxsnn.witnesses.branches import Branched
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.kinds import TARGET_RATE, WitnessOptions
from lightning_cvxsnn.witnesses.layer_search import POOL, LayerProposer, LayerSearchSettings
from lightning_cvxsnn.witnesses.samplers import is_initialised

_PRICED_SAMPLES = 10_240  # that units are chosen on, held-out ones included;
_PRICED_ENTRIES = 2**24  # of the dictionary of these: a convolution has many columns;
_FEWEST_SAMPLES = 512  # but no fewer samples than this
_BRANCH_SAMPLES = 2048  # that whole branches are chosen on


def propose_units(
    network: Network,
    programme: CapturedProgramme,
    options: WitnessOptions,
    settings: LayerSearchSettings | None = None,
    most: int = _PRICED_SAMPLES,
) -> LayerProposer:
    """Units of the last hidden layer.

    Args:
        network: The network.
        programme: The programme over its rows.
        options: Kind and seed of the search, and the engine of its patterns.
        settings: How hard to try; None: as the kind says. Units that somebody has trained compete.
        most: Samples to choose on, at most; fewer where they make many columns.

    Raises:
        ValueError: If no such layer can be found, see `find_witness_layer`.
        MisconfigurationException: If what it receives does not fit into memory.
    """
    per_sample = network.readout.reduction.rows_per_sample
    affordable = max(_PRICED_ENTRIES // (network.readout.module.in_features * per_sample), _FEWEST_SAMPLES)
    samples = some_samples(network, programme, min(most, affordable), options.seed)
    rows, own = network.rows.subset(samples)
    layer = find_witness_layer(
        network.module, network.readout, (batch.x for batch in rows), own, options.backend,
        partial(check_witness_memory, samples=int(samples.sum())),
    )  # fmt: skip
    if settings is None:
        pool = POOL * len(layer.weight) if options.kind == "pool" else None
        settings = LayerSearchSettings(pool=pool, keep_current=not is_initialised(layer.affine))
    part = programme.subset(samples.repeat_interleave(per_sample))
    return LayerProposer(layer, part, TARGET_RATE, options.seed, settings)


def propose_branches(
    network: Network,
    branched: Branched,
    programme: CapturedProgramme,
    options: WitnessOptions,
    most: int = _BRANCH_SAMPLES,
) -> BranchProposer:
    """Whole branches, chosen on rows that are held at once.

    Args:
        network: The network.
        branched: Its module.
        programme: The programme over its rows.
        options: Kind and seed of the search.
        most: Samples to choose on, at most.
    """
    samples = some_samples(network, programme, most, options.seed)
    part = programme.subset(samples.repeat_interleave(network.readout.reduction.rows_per_sample))
    inputs = _inputs(*network.rows.subset(samples))
    settings = BranchSearchSettings(price=options.kind == "priced")
    return BranchProposer(branched, inputs, part, TARGET_RATE, options.seed, settings)


def some_samples(network: Network, programme: CapturedProgramme, most: int, seed: int) -> Tensor:
    """Bool ``[samples]``: at most ``most`` of the training samples, by the seed."""
    count = len(programme.held_out) // network.readout.reduction.rows_per_sample
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]] = True
    return mask


def _inputs(rows: TrainingRows, own: Tensor) -> Tensor:
    """The inputs of ``rows`` that the mask ``own`` marks, in one piece."""
    inputs, seen = [], 0
    for batch in rows:
        inputs.append(batch.x[own[seen : seen + len(batch.x)].to(batch.x.device)])
        seen += len(batch.x)
    return torch.cat(inputs)
