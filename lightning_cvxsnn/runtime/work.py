"""What a solve costs, counted in multiply-adds of float64 numbers, so that it is the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Work", "count_work", "counting"]


class Work:
    """Multiply-adds so far: products with the dictionary, Hessians, Cholesky factors, and what others `count_work`."""

    def __init__(self) -> None:
        self.multiply_adds = 0


_open: ContextVar[tuple[Work, ...]] = ContextVar("_open", default=())


@contextmanager
def counting(work: Work | None = None) -> Iterator[Work]:
    """Count what is spent in this context, inner contexts included, on top of ``work`` or anew."""
    work = work or Work()
    token = _open.set((*_open.get(), work))
    try:
        yield work
    finally:
        _open.reset(token)


def count_work(multiply_adds: int) -> None:
    """Add to every count that is open."""
    for work in _open.get():
        work.multiply_adds += multiply_adds
