"""The user's network with its training rows: what a reconstruction asks of the two together."""

import copy
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_flatten

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.batch_norm import adapting_batch_norms, estimate_batch_norm
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.lif import LIF
from lightning_cvxsnn.network.readout import Readout, find_readout
from lightning_cvxsnn.network.rows import Batch, TrainingRows, count_rows
from lightning_cvxsnn.network.spikes import Capture, capture
from lightning_cvxsnn.runtime.rng import isolate_rng

#: Training rows that firing rates, and statistics of batch norms, are measured on.
CALIBRATION_ROWS = 1024

#: Rows that one pass may take at once where it keeps no gradient, whatever the batches of training.
TOGETHER = 256


class Network:
    """A module, its training rows, its readout and the batch norms that training updates.

    Make it while the module is in the user's mode, since that mode tells which batch norms adapt. Ask it inside
    `undisturbed` and `isolate_rng`: it resets neurons, runs forward passes and seeds generators.

    Args:
        module: A LightningModule, or any module whose call returns what the loss is applied to.
        rows: Its training rows.
        readout: The readout if it is known, its dotted name, or None: the last linear layer that a batch reaches. A
            name or None is looked for, and proved, at the first use of `readout`.
        tolerance: Relative deviation allowed between two ways to compute one forward pass.

    Attributes:
        module: As given.
        rows: As given.
        tolerance: As given.
        norms: The batch norms that training updates.
    """

    def __init__(
        self,
        module: nn.Module,
        rows: TrainingRows,
        readout: Readout | str | None = None,
        tolerance: float = 1e-4,
    ) -> None:
        self.module, self.rows, self.tolerance = module, rows, tolerance
        self.norms = adapting_batch_norms(module)
        self._sought = readout

    @cached_property
    def readout(self) -> Readout:
        """The proved readout.

        Raises:
            MisconfigurationException: If no layer can be proved to be one, see `find_readout`.
        """
        if isinstance(self._sought, Readout):
            return self._sought
        return find_readout(self.module, self.first().x, self._sought, self.tolerance)

    def over(self, rows: TrainingRows) -> "Network":
        """The same network with other rows."""
        other = copy.copy(self)
        other.rows = rows
        return other

    def first(self) -> Batch:
        """The first training batch, read anew.

        Raises:
            MisconfigurationException: If there is none.
        """
        batch = next(iter(self.rows), None)
        if batch is None:
            raise MisconfigurationException("The training dataloader is empty. Expected at least one batch.")
        return batch

    def inputs(self, rows: int = CALIBRATION_ROWS) -> list[Any]:
        """Batches of inputs that hold at least so many random rows, all if there are fewer."""
        return [batch.x for batch in self.rows.widened(TOGETHER).sample(rows)]

    def activity(self, rows: int = CALIBRATION_ROWS) -> list[LayerActivity]:
        """How the units of every spiking layer fire on some rows, in the order in which a batch reaches the layers."""
        return measure_activity(self.module, self.inputs(rows))

    def last_activity(self, rows: int) -> LayerActivity:
        """The same of the neurons whose spikes the readout receives."""
        return [layer for layer in self.activity(rows) if layer.name != self.readout.neuron_name][-1]

    def refresh_norms(self) -> None:
        """Set the statistics of the adapting batch norms to those of training rows at the present weights."""
        if self.norms:
            batches = self.rows.widened(TOGETHER).sample(CALIBRATION_ROWS)
            # A single row left over has no variance; training itself would fail on it.
            several = [batch.x for batch in batches if count_rows(batch) > 1]
            estimate_batch_norm(self.module, self.norms, several or [batch.x for batch in batches])

    def capture(self) -> Capture:
        """What the readout receives on this process's training rows, and what the network answers."""
        return capture(self.module, self.readout, (batch.x for batch in self.rows))

    def answers(self, x: Any) -> list[Tensor]:
        """All tensors that the network returns for a batch of inputs; the same numbers again for the same weights."""
        reset_neurons(self.module)
        with isolate_rng():
            torch.manual_seed(0)
            returned = tree_flatten(forward_of(self.module)(x))[0]
        return [leaf.float() for leaf in returned if isinstance(leaf, Tensor)]

    @property
    def statistics(self) -> list[Tensor]:
        """The buffers of the adapting batch norms."""
        return [buffer for norm in self.norms for buffer in norm.buffers()]

    @property
    def constants(self) -> list[Tensor]:
        """The buffers that hold constants of neurons: part of the witnesses, as weights are."""
        return [buffer for module in self.module.modules() if isinstance(module, LIF) for buffer in module.buffers()]

    @torch.no_grad()
    def synchronise(self) -> None:
        """Give all processes rank 0's parameters, neuron constants and batch-norm statistics."""
        if self.rows.ranks.size > 1:
            for tensor in (*self.module.parameters(), *self.statistics, *self.constants):
                tensor.copy_(self.rows.ranks.broadcast(tensor))

    def check_initialised(self) -> None:
        """Refuse lazy modules that have not seen a batch.

        Raises:
            MisconfigurationException: Naming their parameters.
        """
        lazy = [name for name, p in self.module.named_parameters() if isinstance(p, UninitializedParameter)]
        if lazy:
            raise MisconfigurationException(
                f"The parameters {lazy} of lazy modules have no shape yet. Expected initialised ones: run one batch "
                "through the network before the fit."
            )

    def check_finite(self) -> None:
        """Refuse a network whose training has diverged.

        Raises:
            ValueError: If a parameter holds NaN or infinity.
        """
        broken = [name for name, p in self.module.named_parameters() if not bool(p.isfinite().all())]
        if broken:
            raise ValueError(
                f"The parameters {broken} hold NaN or infinite values before the solve: training has diverged, nothing "
                "was written. Lower the learning rate, clip gradients, or train in a wider precision (float16 needs "
                "'16-mixed', not '16-true')."
            )

    def verify(self) -> None:
        """Check that the network's own forward answers what its dictionary and its stored readout say.

        Raises:
            RuntimeError: If the two differ by more than the tolerance.
        """
        x, readout = self.first().x, self.readout
        with readout.linearised():
            captured = capture(self.module, readout, [x])
        coef, intercept = readout.read()
        expected = captured.dictionary.to_dense() @ coef + (0.0 if intercept is None else intercept)
        error = float((captured.outputs.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not error <= self.tolerance:
            raise RuntimeError(
                f"After writing the readout '{readout.name}' the network's output differs from the dictionary's "
                f"prediction by {error:.1%} (tolerance {self.tolerance:.1%}), so nothing was written. Does the network "
                "change from one forward to the next? Expected the same output for the same input in eval mode."
            )

    def describe_dead(self) -> str:
        """What a person needs to know of a network whose readout receives the same on every row."""
        dead = [
            f"'{layer.name}' ({layer.silent} of {layer.units} units silent, {layer.saturated} saturated)"
            for layer in self.activity()
            if not layer.alive
        ]
        return (
            f"The readout '{self.readout.name}' receives the same pattern on every training row, so there is nothing "
            f"to learn from. Layers that carry no information: {', '.join(dead) or 'none by themselves'}. Use "
            "witnesses='auto' or 'calibrated' to bring them to life, or give the network weights or thresholds with "
            "which its neurons fire."
        )
