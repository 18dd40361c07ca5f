"""The interface through which a computation shows its progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Shows a stage of work: a context that yields a function to call after each of ``total`` steps."""

    def __call__(self, stage: str, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """Begin ``stage``."""
        ...


@contextmanager
def no_progress(stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show nothing."""
    yield lambda: None
