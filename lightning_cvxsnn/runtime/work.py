"""Work of a solve in multiply-adds of float64 numbers: the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Work", "count_work", "counting"]


class Work:
    """Multiply-adds passed to `count_work` so far: products with the dictionary, Hessians, Cholesky factors, ..."""

    def __init__(self) -> None:
        self.multiply_adds = 0


_open: ContextVar[tuple[Work, ...]] = ContextVar("_open", default=())


@contextmanager
def counting(work: Work | None = None) -> Iterator[Work]:
    """Count the work of this context, inner contexts included; ``work`` is added to where it is given."""
    work = work or Work()
    token = _open.set((*_open.get(), work))
    try:
        yield work
    finally:
        _open.reset(token)


def count_work(multiply_adds: int) -> None:
    """Add to the counts of all contexts that enclose the call."""
    for work in _open.get():
        work.multiply_adds += multiply_adds
