"""Show a stage of work beside the progress bar that the Trainer already has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from tqdm.auto import tqdm

from lightning_cvxsnn.reconstruct import no_progress


@contextmanager
def trainer_progress(trainer: "pl.Trainer", stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """A stage named ``stage`` of ``total`` steps (None: unknown); nothing is shown where the Trainer shows nothing.

    Args:
        trainer: The Trainer; its ``RichProgressBar`` gets a task, its ``TQDMProgressBar`` a bar below.
        stage: What is being done.
        total: Number of steps.
    """
    bar = trainer.progress_bar_callback
    description = f"Convex: {stage.removeprefix('convex ')}"
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.is_enabled:
        progress = bar.progress
        task = progress.add_task(description, total=total)
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.remove_task(task)
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        with tqdm(total=total, desc=description, leave=False, position=2 * bar.process_position + 2) as shown:
            yield shown.update
    else:
        with no_progress(stage, total) as advance:
            yield advance
