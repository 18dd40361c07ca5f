"""A spiking output layer: the linear programme gives its currents, its own firing rates judge them.

The programme is over what the linear layer before the neurons receives, reduced over time as the spikes are: the
neurons' input current, averaged. How strong a current they need is theirs to say, so the solution is tried at many
scales, and what the network then answers on the held-out rows decides.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.network.programme import Problem
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.guard import Judgement
from lightning_cvxsnn.witnesses.layer import run_neuron

#: Factors tried on a solution: from weights that saturate no neuron to ones that a slow neuron needs.
SCALES = tuple(2.0 ** (k / 2) for k in range(-4, 17))


def judge_spiking(
    module: nn.Module,
    rows: TrainingRows,
    readout: Readout,
    problem: Problem,
    solution: Solution,
    scales: Sequence[float] = SCALES,
) -> Judgement:
    """Find the factor at which ``solution`` decides best, and compare it with the readout as stored.

    A decision is the output with the highest firing rate, the first of equals. Of the scales at which the loss falls
    and no fewer decisions are right, the one with the most right decisions is best, among those the one of lowest loss.

    Args:
        module: The network. Call this inside ``undisturbed``.
        rows: Its training rows, all of them.
        readout: Its readout, with a spiking output layer.
        problem: The programme over those rows.
        solution: Its solution.
        scales: The factors to try, positive.
    """
    stored = readout.read()
    candidates = [stored, *((s * solution.coef, s * solution.intercept) for s in scales)]
    outputs = firing_rates(module, rows, readout, candidates)[:, problem.held_out]
    losses = [problem.held_out_loss(rates) for rates in outputs]
    right = [_right_decisions(rates, problem) for rates in outputs]
    better = [k for k in range(1, len(outputs)) if losses[k] < losses[0] and right[k] >= right[0]]
    best = min(better or range(1, len(outputs)), key=lambda k: (-right[k], losses[k]) if better else (losses[k],))
    before, after = (right[0], right[best]) if problem.num_outputs > 1 else (None, None)
    return Judgement(scales[best - 1], losses[0], losses[best], before, after, bool(better))


@torch.no_grad()
def firing_rates(
    module: nn.Module, rows: TrainingRows, readout: Readout, candidates: Sequence[tuple[Tensor, Any]]
) -> Tensor:
    """What the network would answer with each of several readouts, ``[candidates, n, C]`` float32 on the CPU.

    One pass over ``rows``; only the last layer is run again for each candidate, a coef ``[P, C]`` and an intercept
    ``[C]`` or None.
    """
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
        for batch in rows:
            received.clear()
            reset_neurons(module)
            readout.forward_of(module)(batch.x)
            steps = reduction.to_steps(received)
            spikes = (run_neuron(neuron, F.linear(steps, weight, bias)) for weight, bias in weights)
            reduced = (reduction.sum_steps(s.float()) for s in spikes)
            answers.append(torch.stack([values * scale for values, scale in reduced]).cpu())
    finally:
        handle.remove()
    return torch.cat(answers, 1)


def _right_decisions(outputs: Tensor, problem: Problem) -> float:
    """The share (by weight) of the held-out rows that are decided rightly; one output alone decides nothing: 0."""
    targets, weights = problem.targets[problem.held_out], problem.weights[problem.held_out]
    if outputs.shape[1] == 1:
        return 0.0
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return float(weights[outputs.argmax(1) == labels].sum() / weights.sum().clamp_min(1e-12))
