"""What a Trainer gives to one reconstruction."""

from functools import partial

import lightning.pytorch as pl

from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.runtime.ranks import Ranks
from lightning_cvxsnn.training.step_inputs import check_step_inputs
from lightning_cvxsnn.training.trainer import trainer_progress, transfer


def training_rows(
    trainer: "pl.Trainer", pl_module: "pl.LightningModule", settings: Settings, ranks: Ranks
) -> TrainingRows:
    """The rows that the Trainer trains on, all of them or as many as the settings say."""
    return TrainingRows(
        pl_module,
        trainer.train_dataloader,
        transfer=partial(transfer, trainer, pl_module),
        max_samples=settings.max_samples,
        seed=settings.seed,
        ranks=ranks,
        limit=trainer.num_training_batches,
    )


def context_of(trainer: "pl.Trainer", epoch: int) -> TrainerContext:
    """The Trainer's part of a reconstruction after ``epoch`` finished epochs."""
    batches = trainer.num_training_batches
    return TrainerContext(
        optimizers=trainer.optimizers,
        precision=None if trainer.precision == "32-true" else trainer.precision_plugin.forward_context,
        progress=partial(trainer_progress, trainer),
        check=partial(check_step_inputs, trainer),
        epoch=epoch,
        step=trainer.global_step,
        batches=0 if batches == float("inf") else int(batches),
    )
