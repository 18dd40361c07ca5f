"""What a Trainer lends to one reconstruction."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.runtime.progress import Progress, no_progress


@dataclass(frozen=True)
class TrainerContext:
    """What a Trainer gives to one reconstruction; the defaults are those of a bare module.

    Attributes:
        optimizers: Optimisers that hold state for the network's parameters.
        precision: The context of a training forward, such as autocast; None: none.
        progress: Shows the pattern pass and the solve.
        check: Called with the network once its readout is proved, before anything is written; raises where the Trainer
            trains it on something else than what is captured.
        epoch: Epochs finished.
        step: Global step.
        batches: Training batches of an epoch, in each process.
        watched: Whether something in the fit compares validations.
        may_stand: Whether a network that was shown may be shown again: nobody else writes what is validated.
    """

    optimizers: Sequence[Optimizer] = ()
    precision: Callable[[], AbstractContextManager] | None = None
    progress: Progress = no_progress
    check: Callable[[Network], None] = lambda network: None
    epoch: int = 0
    step: int = 0
    batches: int = 0
    watched: bool = False
    may_stand: bool = False
