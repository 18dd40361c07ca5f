"""Compares the programme's loss, and its slope in the readout, with those that the module trains, on two batches."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_cvxsnn.convex import Loss, mean_loss
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.network import reset_neurons, undisturbed
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.rows import unpack
from lightning_cvxsnn.network.targets import row_targets, row_weights
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.training.progress_bars import above_progress_bar
from lightning_cvxsnn.training.trainer import unlogged

_TOLERANCE = 1e-2  # relative difference of losses taken for equal
_SMALL = 1e-2  # losses below it are compared as if they were as large
_SLOPES = 5e-2  # relative difference of gradients taken for equal, also in half precision
_FLAT = 1e-6  # gradients below it are not compared
_COMPARISONS = 2


class Agreement:
    """Compares the programme's loss with what the module trains on the same batch.

    On the first batch after a solve, and on the last one of that epoch. The losses of a fresh network, whose answers
    are near zero, hardly tell label smoothing or class weights from their absence: their gradients do.

    Args:
        loss: Loss of the programme.

    Attributes:
        compared: How often that was done, 2 at most.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss, self.compared = loss, 0
        self._ours: BatchLoss | None = None

    def note(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", readout: Readout, batch: Any, index: int
    ) -> None:
        """The programme's loss on a batch that is about to be trained on."""
        if self.compared == _COMPARISONS or (self.compared and not trainer.is_last_batch):
            return
        try:
            with unlogged(pl_module):
                self._ours = batch_loss(
                    pl_module, readout, batch, index, loss=self.loss, precision=trainer.precision_plugin.forward_context
                )
        except Exception:  # what this batch lacks is told by the next solve; training goes on
            self._ours = None
        if self._ours is None:
            self.compared = _COMPARISONS

    def compare(self, trainer: "pl.Trainer", readout: Readout, loss: Tensor) -> None:
        """Warn if ``loss``, what `training_step` returned for that batch, is another one."""
        if self._ours is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = trainer.accumulate_grad_batches / (scaler.get_scale() if scaler is not None else 1.0)
        slope = _slope(loss, readout.module.weight)
        theirs = BatchLoss(float(loss.detach()) * factor, slope if slope is None else factor * slope)
        with above_progress_bar(trainer):
            same = warn_unless_same_loss(self._ours, theirs, loss=self.loss, num_outputs=readout.module.out_features)
        self.compared, self._ours = self.compared + 1 if same else _COMPARISONS, None


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """A loss on one batch.

    Attributes:
        value: The loss.
        slope: Its gradient in the readout's weight ``[C, K]``; None where it is not known.
    """

    value: float
    slope: Tensor | None


def batch_loss(
    module: nn.Module,
    readout: Readout,
    batch: Any,
    index: int,
    *,
    loss: Loss,
    precision: Callable[[], AbstractContextManager],
) -> BatchLoss | None:
    """The programme's loss of the network on one training batch, in training mode.

    States of neurons, batch-norm statistics and random number generators stay as they are.

    Args:
        module: The LightningModule.
        readout: Its proved readout.
        batch: What ``training_step`` gets.
        index: Position of the batch, for messages.
        loss: Loss of the programme.
        precision: The context of a training forward.

    Returns:
        The loss; None where targets are given for several outputs, whose losses are trained together.
    """
    reduction, num_outputs = readout.reduction, readout.module.out_features
    x, y, weight = unpack(module, batch, index)
    if not isinstance(y, Tensor):
        return None
    with isolate_rng(), precision(), undisturbed(module), torch.enable_grad():
        reset_neurons(module)
        output = readout.forward_of(module)(x)
    targets = row_targets(y, reduction, loss=loss, num_outputs=num_outputs)
    rows = reduction.flatten_rows(output) if reduction.kind == "all" else output
    weights = row_weights(readout.pick(weight), len(targets), reduction)
    outputs = rows.reshape(len(targets), -1).double().cpu()
    value = mean_loss(outputs.detach(), targets, loss=loss, sample_weight=weights)
    return BatchLoss(value, _slope(_differentiable(outputs, targets, loss, weights), readout.module.weight))


def _differentiable(outputs: Tensor, targets: Tensor, loss: Loss, weights: Tensor | None) -> Tensor:
    """What has the slope of ``mean_loss`` in the outputs."""
    named, at = loss_named(loss), outputs.detach()
    slopes = named.gradient(at, named.encode(targets.cpu(), at.shape[1])) / len(at)
    return (slopes if weights is None else slopes * weights.to(slopes)[:, None]).mul(outputs).sum()


def _slope(loss: Tensor, weight: Tensor) -> Tensor | None:
    """The gradient in a weight; None where the loss does not depend on it, or its graph allows no second pass."""
    try:
        (slope,) = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
    except RuntimeError:  # of a compiled module
        return None
    return None if slope is None else slope.detach().double()


def warn_unless_same_loss(ours: BatchLoss, theirs: BatchLoss, *, loss: Loss, num_outputs: int) -> bool:
    """Warn if the two losses differ by more than 1 %, or their slopes by more than 5 % of their length.

    Torch's ``mse_loss``, 2/C times ``squared``, is accepted.
    """
    least = max(abs(theirs.value), abs(ours.value), _SMALL)
    alike = [
        factor
        for factor in loss_named(loss).trained_factors(num_outputs)
        if abs(factor * ours.value - theirs.value) <= _TOLERANCE * least
    ]
    apart = min((_apart(factor, ours.slope, theirs.slope) for factor in alike), default=0.0)
    same = bool(alike) and apart <= _SLOPES
    if not same:
        found = (
            f"whose slope in the readout differs by {100 * apart:.0f} % on a training batch from that of what "
            f"`training_step` returned, {theirs.value:.4f}"
            if alike
            else f"which is {ours.value:.4f} on a training batch, but `training_step` returned {theirs.value:.4f}"
        )
        rank_zero_warn(
            f"ConvexReconstruction solves loss={loss!r}, {found}. Choose the `loss` that you train with; if training "
            "reduces the outputs itself, or runs the network several times, define `convex_forward(self, x)`; class "
            "weights, label smoothing, soft targets and mixed "
            "samples are solved as trained where `convex_batch(self, batch)` returns the weights or probabilities. "
            "Other terms, such as penalties, are not part of the programme."
        )
    return same


def _apart(factor: float, ours: Tensor | None, theirs: Tensor | None) -> float:
    """The difference of two slopes over the longer one; 0 where one is not known or both are flat."""
    if ours is None or theirs is None:
        return 0.0
    longest = max(float((factor * ours).norm()), float(theirs.norm()))
    return float((factor * ours - theirs).norm()) / longest if longest > _FLAT else 0.0
