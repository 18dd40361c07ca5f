"""Hidden weights replaced before a solve."""

from dataclasses import dataclass
from typing import cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.witnesses.branches import Branched
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer
from lightning_cvxsnn.witnesses.column_generation import ColumnGeneration
from lightning_cvxsnn.witnesses.kinds import WitnessOptions, calibrate_to_target, repair_dead_layers
from lightning_cvxsnn.witnesses.paired import replace_by_pairs
from lightning_cvxsnn.witnesses.proposers import propose_branches, propose_units
from lightning_cvxsnn.witnesses.samplers import GaussianKind, affine_names, write_gaussian
from lightning_cvxsnn.witnesses.search import SearchStatistics


@dataclass(frozen=True, eq=False)
class Replacement:
    """How hidden weights were replaced.

    Attributes:
        layers: What was done to layers that keep their weights but for factors and biases.
        statistics: What a search for the others tried; None for the kinds that do not search.
    """

    layers: list[CalibratedLayer]
    statistics: SearchStatistics | None = None


@torch.no_grad()
def replace_witnesses(
    network: Network, programme: CapturedProgramme, options: WitnessOptions, beta: float | None
) -> Replacement:
    """Write the hidden weights of ``options.kind``.

    Args:
        network: The network, changed in place; its batch norms are estimated anew after each change.
        programme: The programme as found: the rows' targets, and which of them judge.
        options: Which witnesses.
        beta: L1 penalty of a search, in the paper's units; None: it chooses one.
    """
    module, kind = network.module, options.kind
    _warn_of_others(network)
    if kind in get_args(GaussianKind):
        names = affine_names(module, network.inputs()[0], network.readout.module)
        write_gaussian(module, names, cast(GaussianKind, kind), options.seed)
        network.refresh_norms()
        calibrate_to_target(network, only_dead=False, manner=lambda affine, layer: "scale_dead")
        return Replacement([])
    rho = None if beta is None else beta / network.readout.module.in_features**0.5
    if isinstance(module, Branched) and kind != "pairs":
        return _replace_branches(network, module, programme, options, rho)
    layers = repair_dead_layers(network, only_dead=False, untrained=True, skip_last=True)
    if kind == "pairs":
        last = replace_by_pairs(network, programme, options)
        rank_zero_info(
            f"ConvexReconstruction gave the {last.after.units} units of '{last.affine_name}' weights that tell pairs "
            "of training points apart."
        )
        return Replacement([*layers, last])
    return _replace_units(network, programme, options, rho, layers)


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


def _replace_units(
    network: Network,
    programme: CapturedProgramme,
    options: WitnessOptions,
    rho: float | None,
    layers: list[CalibratedLayer],
) -> Replacement:
    """Give the last hidden layer the units that ``pool`` or ``priced`` finds."""
    proposer = propose_units(network, programme, options)
    found = ColumnGeneration(proposer).search(rho)
    proposer.write(network, found)
    tried = found.statistics
    violates = "" if tried.violation is None else f"; the last ones violate optimality by up to {tried.violation:.2f}"
    rank_zero_info(
        f"ConvexReconstruction chose {proposer.width} witnesses for '{proposer.layer.affine_name}' among "
        f"{tried.candidates} candidates on {proposer.layer.inputs.shape[1]} samples: objective "
        f"{found.objectives[0]:.4g} -> {found.objectives[-1]:.4g} in {len(found.objectives)} rounds{violates}."
    )
    return Replacement(layers, tried)


def _replace_branches(
    network: Network,
    branched: Branched,
    programme: CapturedProgramme,
    options: WitnessOptions,
    rho: float | None,
) -> Replacement:
    """Write whole branches, constants included, that ``pool`` or ``priced`` finds; their rho only compares them."""
    proposer = propose_branches(network, branched, programme, options)
    found = ColumnGeneration(proposer).search(rho)
    proposer.write(network, found)
    rank_zero_info(
        f"ConvexReconstruction chose {len(found.chosen.branches)} branches among {proposer.drawn} on "
        f"{len(proposer.inputs)} samples: objective {found.objectives[0]:.4g} -> {found.objectives[-1]:.4g}."
    )
    return Replacement([], found.statistics)
