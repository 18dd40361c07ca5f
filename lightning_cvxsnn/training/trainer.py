"""Reads a Trainer: batch transfer, callbacks that compare or average, checkpoint folders."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.runtime.ranks import Ranks
from lightning_cvxsnn.training.progress_bars import trainer_progress

# Lightning's connectors set `Trainer.callbacks` from outside the class, where mypy does not see it: `attr-defined`.


def transfer(trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any) -> Any:
    """A batch as ``training_step`` receives it: converted to the precision, transferred to the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def training_rows(
    trainer: "pl.Trainer", pl_module: "pl.LightningModule", settings: Settings, ranks: Ranks
) -> TrainingRows:
    """The rows of the Trainer's loader that the settings ask for, as ``training_step`` receives them."""
    return TrainingRows(
        pl_module,
        trainer.train_dataloader,
        transfer=partial(transfer, trainer, pl_module),
        max_samples=settings.max_samples,
        seed=settings.seed,
        ranks=ranks,
        limit=trainer.num_training_batches,
    )


def trainer_context(trainer: "pl.Trainer", epoch: int) -> TrainerContext:
    """What a solve after ``epoch`` finished epochs reads of the Trainer."""
    return TrainerContext(
        optimizers=trainer.optimizers,
        precision=None if trainer.precision == "32-true" else trainer.precision_plugin.forward_context,
        progress=partial(trainer_progress, trainer),
        epoch=epoch,
        step=trainer.global_step,
        batches=0 if trainer.num_training_batches == float("inf") else int(trainer.num_training_batches),
    )


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


def validation_metrics(trainer: "pl.Trainer") -> dict[str, float]:
    """What has been logged under names with ``val`` in them, newest values."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name.lower()}


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
