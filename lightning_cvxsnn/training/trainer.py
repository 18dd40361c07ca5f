"""Reads a Trainer: batch transfer, callbacks that compare or average, checkpoint folders, progress bars."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from tqdm.auto import tqdm

from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.runtime.progress import no_progress

# Lightning's connectors set `Trainer.callbacks` from outside the class, where mypy does not see it: `attr-defined`.


def transfer(trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any) -> Any:
    """A batch as ``training_step`` receives it: converted to the precision, transferred to the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def watcher(trainer: "pl.Trainer") -> str:
    """Name of what compares validations of different epochs in this fit, early stopping or a plateau; "" if none."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    if any(not 0 <= epochs <= c.patience for c in stopping):
        return "EarlyStopping"
    return "ReduceLROnPlateau" if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs) else ""


def check_strategy(trainer: "pl.Trainer") -> None:
    """Refuse strategies that shard parameters, and several processes that are not DDP's.

    Raises:
        MisconfigurationException: Naming the strategy.
    """
    name = type(trainer.strategy).__name__
    if name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise MisconfigurationException(
            f"ConvexReconstruction does not support {name}, which shards parameters. Use Trainer(strategy='ddp') or "
            "Trainer(devices=1)."
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise MisconfigurationException(
            f"ConvexReconstruction runs in several processes under DDP only; found {trainer.world_size} of them under "
            f"{name}. Use Trainer(strategy='ddp') or Trainer(devices=1)."
        )


def tell_of_watcher(watching: str, apply: Literal["auto", "shadow"]) -> None:
    """Say what a fit does whose ``watching`` ("": nothing) would take a shadow's validation for training's.

    Args:
        watching: What compares validations, see `watcher`.
        apply: The callback's argument.
    """
    if watching and apply == "auto":
        rank_zero_info(
            f"ConvexReconstruction makes no periodic solves in this fit: {watching} compares the validations of "
            "trained weights, and solutions would now and then be better. Warm start and final solve stay."
        )
    elif watching:
        rank_zero_warn(
            f"With apply='shadow' {watching} compares validations of solutions with those of trained weights, and "
            "may end training or lower the learning rate for that alone. Use apply='auto' or every_n_epochs=0."
        )


def averages(trainer: "pl.Trainer") -> list[Callback]:
    """The callbacks that replace the weights by their averages at the end of training."""
    return [c for c in trainer.callbacks if isinstance(c, (StochasticWeightAveraging, WeightAveraging))]  # type: ignore[attr-defined]


def save_beside_checkpoints(trainer: "pl.Trainer") -> None:
    """Save ``convex-last.ckpt`` into the folders of the user's checkpoints; existing files are kept."""
    # WeightAveraging puts the average into a full checkpoint in place of the network's weights.
    weights_only = any(isinstance(c, WeightAveraging) for c in averages(trainer))
    folders = {
        os.path.dirname(path)
        for checkpoint in trainer.checkpoint_callbacks
        for path in (getattr(checkpoint, "best_model_path", ""), getattr(checkpoint, "last_model_path", ""))
        if path
    }
    for folder in sorted(folders):
        path, version = os.path.join(folder, "convex-last.ckpt"), 0
        while os.path.exists(path):
            version += 1
            path = os.path.join(folder, f"convex-last-v{version}.ckpt")
        trainer.save_checkpoint(path, weights_only=weights_only)
        rank_zero_info(f"ConvexReconstruction saved the network after its final solve: {path}")


@contextmanager
def unlogged(module: nn.Module) -> Iterator[None]:
    """Discard what LightningModules log in this context, whose forward passes are not training steps."""
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


def context_of(trainer: "pl.Trainer", epoch: int) -> TrainerContext:
    """The Trainer's part in a reconstruction after so many epochs."""
    return TrainerContext(
        optimizers=trainer.optimizers,
        precision=None if trainer.precision == "32-true" else trainer.precision_plugin.forward_context,
        progress=partial(trainer_progress, trainer),
        epoch=epoch,
        step=trainer.global_step,
        batches=0 if trainer.num_training_batches == float("inf") else int(trainer.num_training_batches),
    )


@contextmanager
def trainer_progress(trainer: "pl.Trainer", stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show a stage in the Trainer's progress bar, if it has one.

    Args:
        trainer: The Trainer; its ``RichProgressBar`` gets a task, its ``TQDMProgressBar`` a bar below.
        stage: Name of the stage.
        total: Number of steps; None: unknown.
    """
    bar = trainer.progress_bar_callback
    description = f"Convex: {stage.removeprefix('convex ')}"
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.is_enabled:
        progress, steps = bar.progress, 1 if total is None else total
        # One task for all stages, hidden in between: Lightning finds its own tasks by their positions.
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
