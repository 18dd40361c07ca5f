"""What solves may cost: their work against that of training, counted so that runs repeat exactly on any machine.

Most is gained early. So the solves after the first epochs may spend what the whole fit will have paid for, and the
others wait until it is earned.

The unit is a multiply-add of float32 numbers in a matrix product or convolution; one of float64 numbers, as in the
convex solver, counts two. A training step counts as three forward passes: one forward, two for its gradients; layers
that are held count as if they trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_cvxsnn.network import forward_of, reset_neurons
from lightning_cvxsnn.runtime.work import counting

#: A multiply-add of float64 numbers, in those of float32.
FLOAT64 = 2

_TRAINING_STEP = 3
_EARLY = (1, 2, 5)  # epochs after which a solve may be paid for ahead


@dataclass
class Budget:
    """The account of all solves; warm start and final solve are made whatever they cost.

    Attributes:
        share: Of training work that they may take; None: any.
        epoch: Work of one training epoch; 0 before the first solve.
        spent: Work of all solves so far.
        free: That part of it that no budget can refuse.
        expected: Work of the next one: that of the last solve, whatever its occasion, without what is done only once.
        rejected: Periodic solves in a row whose solution was rejected.
        planned: Epochs of the fit; 0: it is not known.
    """

    share: float | None
    epoch: float = 0.0
    spent: float = 0.0
    free: float = 0.0
    expected: float = 0.0
    rejected: int = 0
    planned: int = 0

    def allows(self, epochs: int) -> bool:
        """Whether the share of training pays for one more periodic solve; the first of all is always tried.

        So is the first one of a loader without a length, whose epoch is known only then. After rejections it must pay
        for more: twice as much for each.
        """
        paying = max(epochs, self.planned) if epochs in _EARLY else epochs
        wanted = self.expected * 2**self.rejected
        if self.share is None or not self.epoch:
            return True
        return self.spent - self.free + wanted <= self.share * self.epoch * paying

    def charge(self, work: float, *, periodic: bool, accepted: bool, once: float = 0.0) -> None:
        """Enter a solve of which the part ``once`` (a search for witnesses, the choice of beta) is not repeated."""
        self.expected = work - once
        self.spent += work
        if not periodic:
            self.free += work
        else:
            self.rejected = 0 if accepted else self.rejected + 1

    def charge_look(self, work: float) -> None:
        """Enter a pass over validation rows without a solve: less than what the Trainer's own validation takes."""
        self.spent += work
        self.free += work

    def overhead(self, epochs: int) -> float:
        """What all solves took of the work of ``epochs`` epochs."""
        return self.spent / (self.epoch * epochs) if self.epoch and epochs else 0.0

    def state_dict(self) -> dict[str, float]:
        """Plain numbers for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "share"}


@dataclass
class Meter:
    """Counts the work of forward passes, by what arrives at the readout, and of convex solves.

    Attributes:
        batch: Work of one forward pass over a batch.
        row: The same, for each row that the readout receives.
    """

    batch: float
    row: float

    def epoch(self, batches: int) -> float:
        """Work of a training epoch of so many batches."""
        return _TRAINING_STEP * self.batch * batches

    @contextmanager
    def counting(self, readout: nn.Linear) -> Iterator[Callable[[], float]]:
        """Yield a function that tells the work done in this context so far."""
        rows = 0

        def arrive(_module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal rows
            rows += args[0].shape[:-1].numel()

        handle = readout.register_forward_pre_hook(arrive)
        try:
            with counting() as solving:
                yield lambda: self.row * rows + FLOAT64 * solving.multiply_adds
        finally:
            handle.remove()


@torch.no_grad()
def measure(module: nn.Module, readout: nn.Linear, x: Any) -> Meter:
    """Count one forward pass over the batch ``x``. Call it inside ``undisturbed``."""
    rows: list[int] = []
    handle = readout.register_forward_pre_hook(lambda _module, args: rows.append(args[0].shape[:-1].numel()))
    try:
        reset_neurons(module)
        with FlopCounterMode(display=False) as counter:
            forward_of(module)(x)
    finally:
        handle.remove()
    batch = counter.get_total_flops() / 2
    return Meter(batch, batch / sum(rows))
