"""The guard: what a solution answers on rows that it was not fitted to, against the network as found.

A linear readout is judged by its outputs. Before a spiking output layer the programme is over what the linear layer
receives, reduced over time as the spikes are: the neurons' input current, averaged. How strong a current they need is
not part of it, so the solution is tried at many scales, and the firing rates on the rows that judge decide.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cvxsnn.convex import Point
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.network.isolation import reset_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.witnesses.layer import run_neuron

#: Factors tried on a solution before spiking outputs: from weights that saturate no neuron to what a slow one needs.
SCALES = tuple(2.0 ** (k / 2) for k in range(-4, 17))
#: Validation rows of weight above 0 that judge alone; fewer do so together with held-out training rows.
ENOUGH_ROWS = 100


@dataclass(frozen=True)
class Judgement:
    """What the rows that judge say of a solution.

    Attributes:
        scale: Factor on the solution.
        before: Loss with the readout as found.
        after: Loss with the solution, scaled.
        accuracy_before: Share of the rows that are decided rightly with the readout as found; None where the outputs
            decide nothing.
        accuracy_after: The same with the solution, scaled.
        accepted: Whether the solution is better: of loss and accuracy neither is worse, and one is better.
    """

    scale: float
    before: float
    after: float
    accuracy_before: float | None
    accuracy_after: float | None
    accepted: bool

    @property
    def best(self) -> "Score":
        """That of the solution if it is accepted, else that of the network as found."""
        if self.accepted:
            return Score(self.after, self.accuracy_after)
        return Score(self.before, self.accuracy_before)


@dataclass(frozen=True)
class Score:
    """Loss and accuracy of one readout on the rows that judge; accuracy is None where the outputs decide nothing."""

    loss: float
    accuracy: float | None

    def __str__(self) -> str:
        return f"loss {self.loss:.4g}" + ("" if self.accuracy is None else f", accuracy {100 * self.accuracy:.1f} %")

    def beats(self, other: "Score") -> bool:
        """Whether one of the two is better and none is worse."""
        mine, theirs = (self.accuracy or 0.0, -self.loss), (other.accuracy or 0.0, -other.loss)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))

    def better(self, other: "Score") -> "Score":
        """The one of more right decisions, of equals the one of lower loss."""
        return max(self, other, key=lambda score: (score.accuracy or 0.0, -score.loss))


@dataclass(frozen=True, eq=False)
class Judges:
    """The rows that judge.

    Attributes:
        parts: Programmes whose held-out rows these are, and the rows that each was captured on.
        kind: What rows they are.
        decides: Whether the largest output is a decision, which is right or wrong.
    """

    parts: tuple[tuple[CapturedProgramme, TrainingRows], ...]
    kind: Literal["train", "validation", "both"]
    decides: bool

    @classmethod
    def of(
        cls,
        network: Network,
        training: CapturedProgramme | None,
        validation: tuple[CapturedProgramme, TrainingRows] | None,
        *,
        alone: bool,
    ) -> "Judges":
        """Those of what was captured: enough validation rows judge alone, few together with held-out training rows.

        Args:
            network: The network.
            training: The programme over its rows; None: enough validation rows judge.
            validation: That over validation rows, and these; None: there are none.
            alone: Whether even few of them judge alone.
        """
        parts = [] if training is None else [(training, network.rows)]
        kind: Literal["train", "validation", "both"] = "train"
        if validation is not None:
            kind = "validation" if alone or _are_enough(validation[0]) else "both"
            parts = [validation] if kind == "validation" else [*parts, validation]
        programme = parts[0][0]
        spiking = network.readout.neuron is not None
        return cls(tuple(parts), kind, programme.num_outputs > 1 if spiking else loss_named(programme.loss).decides)

    @property
    def chooser(self) -> CapturedProgramme | None:
        """The programme over validation rows, if these are enough to choose a penalty, too; None: training rows do."""
        programme = self.parts[0][0]
        return programme if self.kind == "validation" and _are_enough(programme) else None

    def score(self, answers: Sequence[Tensor]) -> Score:
        """Loss and accuracy of ``answers``, ``[held-out rows, C]`` for each part."""
        pairs = [(part, answer) for (part, _), answer in zip(self.parts, answers, strict=True)]
        loss = _mean((len(answer), part.held_out_loss(answer)) for part, answer in pairs)
        if not self.decides:
            return Score(loss, None)
        weights = [float(part.weights[part.held_out].sum()) for part, _ in pairs]
        return Score(
            loss, _mean((w, part.share_right(answer)) for w, (part, answer) in zip(weights, pairs, strict=True))
        )

    def found(self) -> Score:
        """That of what the network itself answered."""
        return self.score([part.outputs[part.held_out] for part, _ in self.parts])

    def linear(self, point: Point, scale: float) -> Score:
        """That of a linear readout."""
        return self.score(
            [scale * (part.dictionary.rows(part.held_out) @ point.coef + point.intercept) for part, _ in self.parts]
        )

    def spiking(self, network: Network, point: Point, scales: Sequence[float]) -> list[Score]:
        """That of a readout at each scale before the network's spiking output layer. Call it in ``undisturbed``."""
        candidates = [(scale * point.coef, scale * point.intercept) for scale in scales]
        rates = [firing_rates(network, rows, candidates)[:, part.held_out] for part, rows in self.parts]
        return [self.score(answers) for answers in zip(*rates, strict=True)]


def judge_linear(judges: Judges, found: Score, point: Point, scale: float) -> Judgement:
    """Compare the outputs of a linear readout.

    Args:
        judges: The rows that judge.
        found: What the network scores without the solution.
        point: A solution that was not fitted to these rows.
        scale: Factor on it.
    """
    solved = judges.linear(point, scale)
    return Judgement(scale, found.loss, solved.loss, found.accuracy, solved.accuracy, solved.beats(found))


def judge_spiking(
    network: Network, judges: Judges, found: Score, point: Point, scales: Sequence[float] = SCALES
) -> Judgement:
    """Find the factor at which a solution decides best, and compare it with the network as found.

    A decision is the output with the highest firing rate, the first of equals. Of the scales at which the loss falls
    and no fewer decisions are right, the one with the most right decisions is best, among those the one of lowest loss.

    Args:
        network: The network, with a spiking output layer. Call this inside ``undisturbed``.
        judges: The rows that judge.
        found: What the network scores without the solution.
        point: A solution that was not fitted to these rows.
        scales: The factors to try, positive.
    """
    scores = judges.spiking(network, point, scales)
    better = [k for k, score in enumerate(scores) if score.loss < found.loss and score.beats(found)]
    best = min(
        better or range(len(scores)),
        key=lambda k: (-(scores[k].accuracy or 0.0), scores[k].loss) if better else (scores[k].loss,),
    )
    solved = scores[best]
    return Judgement(scales[best], found.loss, solved.loss, found.accuracy, solved.accuracy, bool(better))


def _are_enough(validation: CapturedProgramme) -> bool:
    return int((validation.weights > 0).sum()) >= ENOUGH_ROWS


def _mean(weighted: Iterable[tuple[float, float]]) -> float:
    """The mean of values, each behind its weight; not a number where none has any."""
    pairs = [(weight, value) for weight, value in weighted if weight]
    return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs) if pairs else math.nan


@torch.no_grad()
def firing_rates(network: Network, rows: TrainingRows, candidates: Sequence[tuple[Tensor, Any]]) -> Tensor:
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
        for batch in rows:
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
