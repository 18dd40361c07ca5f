"""The guard: what a solution answers on rows that it was not fitted to, against the network as found.

A linear readout is judged by its outputs. Before a spiking output layer the programme is over what the linear layer
receives, reduced over time as the spikes are: the neurons' input current, averaged. How strong a current they need is
not part of it, so the solution is tried at many scales, and the firing rates on the held-out rows decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network.isolation import reset_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import ROUGH, CapturedProgramme
from lightning_cvxsnn.witnesses.layer import run_neuron

#: Factors tried on a solution before spiking outputs: from weights that saturate no neuron to what a slow one needs.
SCALES = tuple(2.0 ** (k / 2) for k in range(-4, 17))


@dataclass(frozen=True)
class Judgement:
    """What the held-out rows say of a solution.

    Attributes:
        scale: Factor on the solution.
        before: Loss with the readout as found.
        after: Loss with the solution, scaled.
        accuracy_before: Share of the rows that are decided rightly with the readout as found; None where the outputs
            decide nothing.
        accuracy_after: The same with the solution, scaled.
        accepted: Whether the solution is better.
    """

    scale: float
    before: float
    after: float
    accuracy_before: float | None
    accuracy_after: float | None
    accepted: bool


def judge_linear(
    programme: CapturedProgramme, as_found: CapturedProgramme | None, solution: Solution, scale: float
) -> Judgement:
    """Compare the outputs of a linear readout.

    Args:
        programme: The programme.
        as_found: The same before hidden weights were replaced; None: they were not.
        solution: A solution that was not fitted to the held-out rows.
        scale: Factor on it.
    """
    outputs = scale * (programme.dictionary.rows(programme.held_out) @ solution.coef + solution.intercept)
    found = as_found or programme
    before, after = programme.found_loss(), programme.held_out_loss(outputs)
    return Judgement(
        scale=scale,
        before=before,
        after=after,
        accuracy_before=found.held_out_accuracy(found.outputs[found.held_out]),
        accuracy_after=programme.held_out_accuracy(outputs),
        accepted=after < before,
    )


def is_clear(judgement: Judgement, programme: CapturedProgramme) -> bool:
    """Whether the verdict on a roughly fitted solution holds for the certified one: it wins by more than it is rough.

    Args:
        judgement: The verdict.
        programme: The programme.
    """
    silent = programme.held_out_loss(programme.outputs.new_zeros(int(programme.held_out.sum()), programme.num_outputs))
    return judgement.accepted and judgement.after <= judgement.before - ROUGH * silent


def judge_spiking(
    network: Network, programme: CapturedProgramme, solution: Solution, scales: Sequence[float] = SCALES
) -> Judgement:
    """Find the factor at which ``solution`` decides best, and compare it with the readout as stored.

    A decision is the output with the highest firing rate, the first of equals. Of the scales at which the loss falls
    and no fewer decisions are right, the one with the most right decisions is best, among those the one of lowest loss.

    Args:
        network: The network, with a spiking output layer. Call this inside ``undisturbed``.
        programme: The programme over its rows, all of them.
        solution: Its solution.
        scales: The factors to try, positive.
    """
    stored = network.readout.read()
    candidates = [stored, *((s * solution.coef, s * solution.intercept) for s in scales)]
    outputs = firing_rates(network, candidates)[:, programme.held_out]
    losses = [programme.held_out_loss(rates) for rates in outputs]
    right = [programme.share_right(rates) if programme.num_outputs > 1 else 0.0 for rates in outputs]
    better = [k for k in range(1, len(outputs)) if losses[k] < losses[0] and right[k] >= right[0]]
    best = min(better or range(1, len(outputs)), key=lambda k: (-right[k], losses[k]) if better else (losses[k],))
    before, after = (right[0], right[best]) if programme.num_outputs > 1 else (None, None)
    return Judgement(scales[best - 1], losses[0], losses[best], before, after, bool(better))


@torch.no_grad()
def firing_rates(network: Network, candidates: Sequence[tuple[Tensor, Any]]) -> Tensor:
    """What the network would answer with each of several readouts, ``[candidates, n, C]`` float32 on the CPU.

    One pass over the rows; only the last layer is run again for each candidate, a coef ``[P, C]`` and an intercept
    ``[C]`` or None.
    """
    readout = network.readout
    layer, reduction, neuron = readout.module, readout.reduction, readout.neuron
    assert neuron is not None
    weights = [
        (coef.T.to(layer.weight), None if layer.bias is None else (intercept / reduction.bias_count).to(layer.bias))
        for coef, intercept in candidates
    ]
    received: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: received.append(args[0].detach()))
    answers = []
    try:
        for batch in network.rows:
            received.clear()
            reset_neurons(network.module)
            readout.forward_of(network.module)(batch.x)
            steps = reduction.to_steps(received)
            spikes = (run_neuron(neuron, F.linear(steps, weight, bias)) for weight, bias in weights)
            reduced = (reduction.sum_steps(s.float()) for s in spikes)
            answers.append(torch.stack([values * scale for values, scale in reduced]).cpu())
    finally:
        handle.remove()
    return torch.cat(answers, 1)
