"""Reads a Trainer: batch transfer, callbacks that compare or average, checkpoint folders."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_cvxsnn.network.contents import put_back
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.relays import Relay
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.policy import Occasion, Policy
from lightning_cvxsnn.reconstruction.settings import Apply, Settings
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.runtime.ranks import Ranks, checksum
from lightning_cvxsnn.training.progress_bars import above_progress_bar, trainer_progress
from lightning_cvxsnn.training.step_inputs import check_step_inputs

# Lightning's connectors set `Trainer.callbacks` from outside the class, where mypy does not see it: `attr-defined`.


Kind = TypeVar("Kind", bound=Callback)


def transfer(
    trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, stage: RunningStage = RunningStage.TRAINING
) -> Any:
    """A batch as the step of ``stage`` receives it: converted to the precision, transferred to the device."""
    own, trainer.state.stage = trainer.state.stage, stage  # hooks may ask in which one they are
    try:
        return _transfer(trainer, pl_module, batch)
    finally:
        trainer.state.stage = own


def _transfer(trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def data_hooks(trainer: "pl.Trainer") -> list[LightningDataModule]:
    """Whose hooks, beside those of the network's module, `transfer` calls."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    return [] if datamodule is None else [datamodule]


def training_rows(
    trainer: "pl.Trainer", pl_module: "pl.LightningModule", settings: Settings, ranks: Ranks
) -> TrainingRows:
    """The rows of the Trainer's loader that the settings ask for, as ``training_step`` receives them."""
    with undisturbed(pl_module):  # rows are counted behind its hooks
        return TrainingRows(
            pl_module,
            trainer.train_dataloader,
            transfer=partial(transfer, trainer, pl_module),
            max_samples=settings.max_samples,
            seed=settings.seed,
            ranks=ranks,
            limit=trainer.num_training_batches,
        )


def validation_rows(
    trainer: "pl.Trainer", pl_module: "pl.LightningModule", settings: Settings, ranks: Ranks
) -> Callable[[], TrainingRows] | None:
    """Makes the rows of the Trainer's validation loader, the first of several; None where it has none by now."""
    loaders = trainer.val_dataloaders
    if not trainer.enable_validation or loaders is None:
        return None
    several = list(loaders.values()) if isinstance(loaders, dict) else loaders
    first = several[0] if isinstance(several, (list, tuple)) else several

    def rows() -> TrainingRows:
        with undisturbed(pl_module):
            return TrainingRows(
                pl_module,
                first,
                transfer=partial(transfer, trainer, pl_module, stage=RunningStage.VALIDATING),
                max_samples=settings.max_samples,
                seed=settings.seed,
                ranks=ranks,
                limit=trainer.num_val_batches[0],
            )

    return rows


def trainer_context(trainer: "pl.Trainer", epoch: int, *, alone: bool) -> TrainerContext:
    """What a solve after ``epoch`` finished epochs reads of the Trainer; ``alone``: there is one callback like this."""
    endless = trainer.num_training_batches == float("inf")  # a loader without a length: batches so far
    return TrainerContext(
        optimizers=trainer.optimizers,
        precision=None if trainer.precision == "32-true" else trainer.precision_plugin.forward_context,
        progress=partial(trainer_progress, trainer),
        check=partial(check_step_inputs, trainer),
        epoch=epoch,
        step=trainer.global_step,
        watched=bool(watcher(trainer)),
        may_stand=alone and not changes_weights(trainer),
        batches=max(trainer.fit_loop.epoch_loop.batch_idx + 1, 0) if endless else int(trainer.num_training_batches),
    )


@contextmanager
def lent(
    trainer: "pl.Trainer",
    pl_module: "pl.LightningModule",
    settings: Settings,
    what: str = "comparison with what was shown",
    *,
    epoch: int,
    alone: bool,
) -> Iterator[tuple[TrainingRows, TrainerContext, Callable[[], TrainingRows] | None]]:
    """Yield training rows, the Trainer's part and validation rows; what reading them changes is put back.

    What fails inside, but for a warm start, is left out with a warning: training alone would go on.

    Args:
        trainer: The Trainer, in a fit.
        pl_module: Its module.
        settings: The arguments.
        what: The name of what is done with them.
        epoch: Epochs finished.
        alone: Whether there is one callback like this.
    """
    ranks = Ranks(alone=trainer.world_size == 1)
    try:
        with above_progress_bar(trainer), ranks, unlogged(pl_module), put_back(data_hooks(trainer)):
            rows = training_rows(trainer, pl_module, settings, ranks)
            yield (
                rows,
                trainer_context(trainer, epoch, alone=alone),
                validation_rows(trainer, pl_module, settings, ranks),
            )
    except Exception as error:  # whatever it is
        if what == "warm start" or not ranks.in_step:
            raise
        with above_progress_bar(trainer):
            rank_zero_warn(
                f"ConvexReconstruction leaves out the {what}, and training goes on. {type(error).__name__}: {error}"
            )


def watcher(trainer: "pl.Trainer") -> str:
    """What acts on a validation that is no better than an earlier one; "" if nothing does in this fit.

    Lightning's ``EarlyStopping``, a schedule on a plateau, and any callback with ``compares_validations = True``.
    """
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    for c in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(c, EarlyStopping) and not 0 <= epochs <= c.patience:
            return "EarlyStopping"
        if getattr(c, "compares_validations", False):
            return type(c).__name__
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


def tell_of_watcher(trainer: "pl.Trainer", apply: Literal["auto", "shadow"]) -> None:
    """Say what a fit does in which something would take a shadow's validation for training's, see `watcher`."""
    watching = watcher(trainer)
    if not watching:
        return
    with above_progress_bar(trainer):
        if apply == "auto":
            rank_zero_info(
                f"ConvexReconstruction shows no solutions after epochs of this fit: {watching} compares validations of "
                "trained weights, and solutions would now and then be better. Trained readouts are drawn towards them."
            )
        else:
            rank_zero_warn(
                f"With apply='shadow' {watching} compares validations of solutions with those of trained weights, and "
                "may end training or lower the learning rate for that alone. Use apply='auto' or every_n_epochs=0."
            )


def follow_averages(trainer: "pl.Trainer", callback: Callback) -> None:
    """Put ``callback`` behind those that average weights, which in ``on_train_end`` replace what a solve acts on."""
    if averages(trainer):
        trainer.callbacks = sorted(  # type: ignore[attr-defined]
            trainer.callbacks,  # type: ignore[attr-defined]
            key=lambda c: 2 if isinstance(c, Checkpoint) else int(c is callback),
        )


def fit_allows(trainer: "pl.Trainer", occasion: Occasion, apply: Apply) -> bool:
    """Whether a solve has its place in this fit: never under ``fast_dev_run``; a mere shadow where somebody looks."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    return occasion != "periodic solve" or apply != "shadow" or seen_after_epoch(trainer)


def seen_after_epoch(trainer: "pl.Trainer") -> bool:
    """Whether a validation or a checkpoint follows the batch that has just ended, the last one of an epoch.

    Also where the fit has neither: then reports are all that solves are for.
    """
    savers = trainer.checkpoint_callbacks
    if not trainer.enable_validation and not savers:
        return True
    return _validates_next(trainer) or any(_saves_next(trainer, saver) for saver in savers)


def shows_after_epoch(trainer: "pl.Trainer", settings: Settings) -> bool:
    """Whether somebody sees, after the batch that has just ended, what is shown then, and takes it for no other."""
    return seen_after_epoch(trainer) and Policy(settings, "periodic solve", bool(watcher(trainer))).shows


def _validates_next(trainer: "pl.Trainer") -> bool:
    every, batch = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    if batch is None:  # a time interval: whether it is over is not known to all processes alike
        return False
    loop = trainer.fit_loop.epoch_loop
    done = loop.total_batch_idx if every is None else loop.batch_idx
    return batch == float("inf") or (done + 1) % batch == 0


def _saves_next(trainer: "pl.Trainer", saver: Callback) -> bool:
    if not isinstance(saver, ModelCheckpoint):
        return True
    steps, every = saver._every_n_train_steps, saver._every_n_epochs
    if steps > 0 and trainer.global_step % steps == 0:
        return True
    return saver._should_save_on_train_epoch_end(trainer) and every > 0 and (trainer.current_epoch + 1) % every == 0


def tell_of_relays(trainer: "pl.Trainer", relays: Sequence[Relay]) -> None:
    """Say which layers are held, as training begins."""
    if relays:
        with above_progress_bar(trainer):
            rank_zero_info(
                f"ConvexReconstruction holds {len(relays)} spiking layers, from '{relays[0].neuron}' on, while the "
                "others train: they send on the spikes of the layer below. To train all, start with "
                "witnesses='calibrated'."
            )


def log_report(trainer: "pl.Trainer", report: SolveReport, readout: str | None) -> None:
    """The numbers of a report to all loggers, under the readout's name where there are several."""
    name = "convex/" if readout is None else f"convex/{readout}/"
    metrics = {f"{name}{key.removeprefix('convex/')}": value for key, value in report.metrics().items()}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def start_module(trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
    """Call the module's own ``on_train_start`` now; Lightning's call of it, which comes after, does nothing then."""
    if is_overridden("on_train_start", pl_module) and "on_train_start" not in vars(pl_module):
        call._call_lightning_module_hook(trainer, "on_train_start")
        vars(pl_module)["on_train_start"] = partial(forget_start, pl_module)


def forget_start(pl_module: "pl.LightningModule") -> None:
    """Undo what `start_module` put in the place of a hook, if Lightning has not called that yet."""
    if getattr(vars(pl_module).get("on_train_start"), "func", None) is forget_start:
        del vars(pl_module)["on_train_start"]


def weights_digest(module: nn.Module) -> str:
    """A digest of all parameters that have a value."""
    return checksum(*(p for p in module.parameters() if not isinstance(p, UninitializedParameter)))


def changes_weights(trainer: "pl.Trainer") -> bool:
    """Whether a callback is known to write to weights between training steps."""
    return bool(averages(trainer) or alike(trainer, ModelPruning))


def alike(trainer: "pl.Trainer", kind: type[Kind]) -> list[Kind]:
    """All callbacks of a kind, in the order in which they act."""
    # Lightning's connectors set `Trainer.callbacks` from outside the class, where mypy does not see it.
    return [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]


def averages(trainer: "pl.Trainer") -> list[Callback]:
    """The callbacks that replace the weights by their averages at the end of training."""
    return [*alike(trainer, StochasticWeightAveraging), *alike(trainer, WeightAveraging)]


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
        while get_filesystem(folder).exists(path):
            version += 1
            path = os.path.join(folder, f"convex-last-v{version}.ckpt")
        trainer.save_checkpoint(path, weights_only=weights_only)
        with above_progress_bar(trainer):
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
