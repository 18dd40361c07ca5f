"""What a Trainer lends to one reconstruction."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from lightning.pytorch import LightningModule
from torch import nn
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


@contextmanager
def unlogged(module: nn.Module) -> Iterator[None]:
    """Drop what the forwards of LightningModules log in this context: its passes are no steps of training."""
    logging = [m for m in module.modules() if isinstance(m, LightningModule)]
    own = [vars(m).get("log") for m in logging]
    try:
        for m in logging:
            vars(m)["log"] = _drop
        yield
    finally:
        for m, log in zip(logging, own, strict=True):
            if log is None:
                del vars(m)["log"]
            else:
                vars(m)["log"] = log


def _drop(*_: object, **__: object) -> None:
    """Log nothing."""


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
