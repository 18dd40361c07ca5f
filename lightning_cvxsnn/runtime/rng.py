"""The global random number generators."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import seed

__all__ = ["isolate_rng"]


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Put the global generators back on exit: Lightning's context manager does not after an exception."""
    isolated = seed.isolate_rng()
    isolated.__enter__()
    try:
        yield
    finally:
        isolated.__exit__(None, None, None)
