"""What a Trainer lends to one reconstruction."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch.optim import Optimizer


class Progress(Protocol):
    """Shows a stage of work: a context that yields a function to call after each of ``total`` steps."""

    def __call__(self, stage: str, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """Begin ``stage``."""
        ...


@contextmanager
def no_progress(stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Surroundings:
    """What a Trainer gives to one reconstruction; the defaults are those of a bare module.

    Attributes:
        optimizers: Optimisers that hold state for the network's parameters.
        precision: The context of a training forward, such as autocast; None: none.
        progress: Shows the pattern pass and the solve.
        epoch: Epochs finished.
        step: Global step.
        batches: Training batches of an epoch, in each process.
    """

    optimizers: Sequence[Optimizer] = ()
    precision: Callable[[], AbstractContextManager] | None = None
    progress: Progress = no_progress
    epoch: int = 0
    step: int = 0
    batches: int = 0
