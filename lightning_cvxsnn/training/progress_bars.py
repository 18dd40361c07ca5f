"""Shows the stages of a solve in the Trainer's progress bar, Rich's or tqdm's, and log lines above it."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from itertools import count
from typing import TYPE_CHECKING, Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from tqdm.auto import tqdm

from lightning_cvxsnn.runtime.progress import Listener, listening, report_progress

if TYPE_CHECKING:
    from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress


@contextmanager
def trainer_progress(trainer: "pl.Trainer", stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show a stage in the Trainer's progress bar, if it has one.

    Args:
        trainer: The Trainer; its ``RichProgressBar`` gets a task, its ``TQDMProgressBar`` a bar below.
        stage: Name of the stage.
        total: Number of steps; None: those that are reported in the context.
    """
    bar = trainer.progress_bar_callback
    description = f"Convex: {stage.removeprefix('convex ')}"
    _start_rich(trainer, bar)
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.is_enabled:
        shown: AbstractContextManager[Listener] = _rich_task(bar, bar.progress, description, total or 1)
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        shown = _tqdm_bar(description, total or 1, 2 * bar.process_position + 2)
    else:
        shown = nullcontext(_nothing)
    steps = count(1)
    with shown as show, listening(_now_and_then(show)):
        yield lambda: report_progress(next(steps), total or 1)


@contextmanager
def _rich_task(bar: RichProgressBar, progress: "CustomProgress", description: str, total: float) -> Iterator[Listener]:
    """One task for all stages, hidden in between: Lightning finds its own tasks by their positions."""
    task = next((t.id for t in progress.tasks if t.fields.get("convex")), None)
    if task is None:
        task = progress.add_task(description, total=total, convex=True)
    progress.reset(task, total=total, description=description, visible=True)
    bar.refresh()

    def show(done: float, total: float, note: str) -> None:
        told = f"{description}, {note}" if note else description
        if done < progress.tasks[progress.task_ids.index(task)].completed:  # another loop: its time left is its own
            progress.reset(task)
        progress.update(task, completed=done, total=round(total, 1), description=told)
        bar.refresh()

    try:
        yield show
    finally:
        progress.update(task, visible=False)
        bar.refresh()


@contextmanager
def _tqdm_bar(description: str, total: float, position: int) -> Iterator[Listener]:
    """A bar below Lightning's, on the same stream."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
    options: dict[str, Any] = {"desc": description, "position": position, "bar_format": layout, "file": sys.stdout}
    with tqdm(total=total, leave=False, dynamic_ncols=True, **options) as shown:

        def show(done: float, total: float, note: str) -> None:
            if done < shown.n or total != shown.total:  # another loop: its time left is its own
                shown.reset(total)
            shown.n = done
            shown.set_postfix_str(note, refresh=False)
            shown.refresh()

        yield show
    shown.fp.write("\r")  # closed, a lower bar leaves the cursor at the end of its line


def _nothing(done: float, total: float, note: str) -> None:
    """Show nothing."""


def _now_and_then(show: Listener) -> Listener:
    """Ten times a second at most, and at the end of each loop: solvers report after each step.

    Steps of one loop do not go back, as a gap does now and then; where a loop was nearly through, another has begun.
    """
    last, furthest, steps = -math.inf, 0.0, 0.0

    def told(done: float, total: float, note: str) -> None:
        nonlocal last, furthest, steps
        furthest = max(done, furthest) if total == steps and furthest < 0.9 * total else done
        steps = total
        if done >= total or time.monotonic() >= last + 0.1:
            show(furthest, total, note)
            last = time.monotonic()

    return told


@contextmanager
def above_progress_bar(trainer: "pl.Trainer") -> Iterator[None]:
    """Print what is logged and warned of in this context above the Trainer's progress bar, not through its picture.

    Rich sends ``sys.stderr`` there as soon as it shows something; tqdm has to take its bars away for each line.
    Handlers of Lightning's logger hold the console as it was when they were made, and are led there too.
    """
    bar = trainer.progress_bar_callback
    _start_rich(trainer, bar)
    stderr, handlers = sys.stderr, _lightning_handlers()
    above: AbstractContextManager[object] = nullcontext()
    if isinstance(bar, TQDMProgressBar):
        above = redirect_stderr(_AboveBars(stderr))
    consoles = (sys.__stderr__, stderr, getattr(stderr, "rich_proxied_file", stderr))
    held = [(handler, handler.stream) for handler in handlers if handler.stream in consoles]
    try:
        with above:
            for handler, _ in held:
                handler.setStream(sys.stderr)
            yield
    finally:
        for handler, stream in held:
            handler.setStream(stream)


def _start_rich(trainer: "pl.Trainer", bar: Any) -> None:
    """Start Rich's bar before its turn in ``on_train_start``, which comes after ours; it starts only once."""
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is None:
        bar.on_train_start(trainer, trainer.lightning_module)


def _lightning_handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers that a message of `rank_zero_info` reaches and that write to a stream."""
    loggers = (logging.getLogger("lightning.pytorch"), logging.getLogger("lightning"), logging.getLogger())
    return [h for logger in loggers for h in logger.handlers if isinstance(h, logging.StreamHandler)]


class _AboveBars:
    """A stream whose text appears above all bars of tqdm."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Take the bars away, write, and draw them again."""
        with redirect_stderr(self._stream), tqdm.external_write_mode(file=self._stream):
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
