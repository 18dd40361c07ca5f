"""How a computation shows its progress: whoever can show it begins a stage, loops and solvers in it report."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["Listener", "Progress", "listening", "no_progress", "progress_step", "report_gap", "report_progress"]

#: Is told how many of how many steps are done (both may be fractions), and a note such as the gap.
Listener = Callable[[float, float, str], object]

_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)


class Progress(Protocol):
    """Shows a stage of work: a context that yields a function to call after each of ``total`` steps.

    Where ``total`` is None, the steps are what `report_progress` and `report_gap` report in the context.
    """

    def __call__(self, stage: str, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """Begin ``stage``."""
        ...


@contextmanager
def no_progress(stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show nothing."""
    yield lambda: None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` what is reported in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(done: float, total: float, note: str = "") -> None:
    """Report that ``done`` of ``total`` steps are done; costs nothing where nobody listens."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total, note)


def report_gap(gap: float, tolerance: float, objective: float) -> None:
    """Report the duality gap of a solve, as the percentage of the decades from the objective down to the tolerance.

    Args:
        gap: Gap so far, certified or about what it is.
        tolerance: Gap to reach.
        objective: Objective so far, which no gap exceeds where losses are not negative.
    """
    if _listener.get() is not None and 0 < tolerance < objective < math.inf:
        decades = math.log10(objective) - math.log10(max(gap, tolerance))
        report_progress(100 * max(0.0, decades / math.log10(objective / tolerance)), 100, f"gap {gap:.0e}")


@contextmanager
def progress_step(index: int, total: int, note: str = "") -> Iterator[None]:
    """Step ``index`` of ``total`` of a loop: what is reported in this context is a part of this step.

    Args:
        index: Number of the step, from 0.
        total: Steps of the loop; it may end early.
        note: Shown until something inside reports its own.
    """
    listener = _listener.get()
    if listener is None:
        yield
        return
    listener(index, total, note)
    reached = 0.0  # what is inside may go back, or be several loops

    def part(done: float, of: float, inner: str) -> None:
        nonlocal reached
        reached = max(reached, min(done / of, 1.0))
        listener(index + reached, total, inner or note)

    with listening(part):
        yield
