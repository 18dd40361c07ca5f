"""The penalty of a readout: the one that answers best on rows that are not fitted, found on some of the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_cvxsnn.convex import Path, Point, path
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.patterns import SpikeDictionary

__all__ = ["STEP", "Choice", "choose", "neighbours", "searches_some"]

_ROWS = 1024  # are fitted at most, and at most as many judge,
_ROUGH = 0.1  # to this relative gap: the loss that is compared hardly depends on either,
_VALUES, _SPAN = 13, 1e-6  # at penalties half a decade apart;
STEP = 10**0.5  # so far from the last penalty another one is looked for.
_LITTLE = 0.1  # of what L1 has gained: its walk beside ridge ends where the next penalty adds less,
_AFFORDED = 3  # or where it has taken so many times the work of ridge's
_GIVEN_AWAY = 0.02  # of what the best L1 penalty gains may be lost to a larger one, which leaves fewer units


@dataclass(frozen=True)
class Choice:
    """A penalty that rows which are not fitted have chosen.

    Attributes:
        penalty: It.
        point: A point to start from, such as a rough solution there; None: there is none.
        edge: The end of its grid at which beta was chosen, if it was.
    """

    penalty: Penalty
    point: Point | None
    edge: Literal["largest", "smallest"] | None


def choose(
    programme: CapturedProgramme,
    ratios: Sequence[float],
    betas: Sequence[float] | None = None,
    judging: CapturedProgramme | None = None,
) -> Choice:
    """The penalty that answers best on the rows that judge, fitted to some of the others.

    Features that have been trained on rows tell those apart better than others do, so held-out training rows would
    choose too weak a penalty: where there are enough validation rows, these judge.

    L1 is taken where it costs nothing: where its held-out loss is no higher than that of ridge, and found without much
    more work. Of L1 penalties the largest that is nearly as good as the best is taken; it leaves fewer units.

    Args:
        programme: Over the training rows.
        ratios: The ``l1_ratio`` to try: one, or several, ridge (0) among them, the preferred ones first.
        betas: The penalties to try, decreasing; None: six decades.
        judging: The programme over the validation rows; None: the held-out training rows judge.
    """
    few, columns = _some_rows(programme, judging), programme.dictionary.shape[1]
    if betas is None:
        largest = few.largest_rho(~few.held_out) or 1.0  # rows of one class: any penalty gives the same
        rhos = [largest * _SPAN ** (k / (_VALUES - 1)) for k in range(_VALUES)]
    else:
        rhos = [beta / columns**0.5 for beta in betas]
    if len(ratios) > 1:
        ridge = _walk(few, 0.0, rhos)
        walks = [_walk(few, r, rhos, _LITTLE, _AFFORDED * ridge.work) if r else ridge for r in ratios]
    else:
        walks = [_walk(few, ratios[0], rhos)]
    walk, ratio = min(zip(walks, ratios, strict=True), key=lambda pair: pair[0].held_out_losses[pair[0].best])
    return Choice(Penalty(walk.rho * columns**0.5, ratio), walk.solution.point, walk.edge)


def neighbours(programme: CapturedProgramme, penalty: Penalty, judging: CapturedProgramme | None = None) -> Choice:
    """The best of ``penalty`` and those next to it: features that have moved on may want another one."""
    betas = [penalty.beta * STEP, penalty.beta, penalty.beta / STEP]
    return replace(choose(programme, [penalty.l1_ratio], betas, judging), edge=None)


def searches_some(programme: CapturedProgramme) -> bool:
    """Whether `choose` fits far fewer rows than there are."""
    return int((programme.weights > 0).sum()) > 2 * _ROWS


def _some_rows(programme: CapturedProgramme, judging: CapturedProgramme | None) -> CapturedProgramme:
    """Some of the rows that are fitted, and some of those that judge, as its held-out ones."""
    if judging is None:
        fitted, held_out = (_some(programme, kind) for kind in (~programme.held_out, programme.held_out))
    else:
        fitted, held_out = (_some(each, torch.ones_like(each.held_out)) for each in (programme, judging))
    parts = [fitted.dictionary, held_out.dictionary]
    if parts[0].scale != parts[1].scale:  # rates of which the rows that judge do not show the time steps
        parts[1] = SpikeDictionary(parts[1].to_dense(torch.float32) / parts[0].scale, parts[0].scale)
    return replace(
        programme,
        dictionary=SpikeDictionary.stacked(parts),
        targets=torch.cat(_alike(fitted, held_out)),
        weights=torch.cat([fitted.weights, held_out.weights]),
        outputs=torch.cat([fitted.outputs, held_out.outputs]),
        held_out=torch.arange(parts[0].shape[0] + parts[1].shape[0]) >= parts[0].shape[0],
    )


def _some(programme: CapturedProgramme, rows: Tensor) -> CapturedProgramme:
    """At most so many of the rows of a bool mask, at random, in their order; those of weight 0 only where all are."""
    counted = rows & (programme.weights > 0)
    own = (counted if bool(counted.any()) else rows).nonzero()[:, 0]
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))
    return programme.subset(own[order[:_ROWS]].sort().values)


def _alike(*parts: CapturedProgramme) -> list[Tensor]:
    """Their targets, class indices as probabilities where one has these: as when only training rows are mixed up."""
    targets = [part.targets for part in parts]
    if len({each.dim() for each in targets}) == 1:
        return targets
    return [loss_named(part.loss).encode(part.targets, part.num_outputs) for part in parts]


def _walk(
    programme: CapturedProgramme,
    ratio: float,
    rhos: Sequence[float],
    least_gain: float = 0.0,
    max_work: float = math.inf,
) -> Path:
    walk = path(
        programme.dictionary,
        programme.targets,
        **programme.options,
        l1_ratio=ratio,
        held_out=programme.held_out,
        num_outputs=programme.num_outputs,
        sample_weight=programme.weights,
        rhos=rhos,
        least_gain=least_gain,
        max_work=max_work,
        gap_tolerance=_ROUGH,
    )
    if ratio == 0 or walk.edge == "smallest":
        return walk
    losses, least = walk.held_out_losses, walk.held_out_losses[walk.best]
    gained = losses[0] - least
    # Where the outputs are values, not decisions, a share of the gain may be most of the loss that is left.
    limit = least + _GIVEN_AWAY * (gained if loss_named(programme.loss).decides else min(gained, least))
    return replace(walk, best=next(k for k, loss in enumerate(losses) if loss <= limit))
