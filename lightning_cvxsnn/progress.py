"""Show a stage of work beside the progress bar that the Trainer already has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from tqdm.auto import tqdm

from lightning_cvxsnn.surroundings import no_progress


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
        progress, steps = bar.progress, 1 if total is None else total
        # One task, hidden between stages and used again: Lightning counts on the positions of its own tasks.
        task = next((t.id for t in progress.tasks if t.fields.get("convex")), None)
        if task is None:
            task = progress.add_task(description, total=steps, convex=True)
        progress.reset(task, total=steps, description=description, visible=True)
        bar.refresh()

        def advance() -> None:
            progress.advance(task)
            bar.refresh()

        try:
            yield advance
        finally:
            progress.update(task, visible=False)
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        with tqdm(total=total, desc=description, leave=False, position=2 * bar.process_position + 2) as shown:
            yield shown.update
    else:
        with no_progress(stage, total) as nothing:
            yield nothing
