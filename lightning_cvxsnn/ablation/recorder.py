"""A callback that writes down a cell's training as it goes."""

import csv
import io
import time
from math import inf
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_cvxsnn.ablation.state import write_json, write_text
from lightning_cvxsnn.network import put_back, undisturbed
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.runtime.rng import isolate_rng


class Recorder(Callback):
    """Writes ``history.csv`` and ``reports.json`` at each validation; one recorder sees all fits of a cell.

    It stands behind the other callbacks. Before training, after ``on_train_start`` of the others, it validates once:
    the line of epoch 0. CPU seconds are those of this process, of fits and not of their validations.

    Args:
        folder: The cell's.
        stages: Fits of the cell; of several each line tells its ``stage``.

    Attributes:
        epochs: Epochs of all fits so far.
        steps: Optimiser steps of all fits so far.
        cpu_seconds: CPU seconds of all fits so far.
        trained_parameters: Most parameters that a fit trained: those that require a gradient as it begins.
        reports: Reports of the solves of all fits.
    """

    def __init__(self, folder: Path, stages: int = 1) -> None:
        self.folder, self.stages = folder, stages
        self.stage = self.epochs = self.steps = self.trained_parameters = 0
        self.cpu_seconds = 0.0
        self.reports: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []  # reports of finished fits
        self._lines: list[dict[str, Any]] = []
        self._started: float | None = None
        self._ahead = False  # in the validation before training

    # -- CPU time -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started = time.process_time()

    def _stop(self) -> None:
        if self._started is not None:
            self.cpu_seconds += time.process_time() - self._started
            self._started = None

    # -- hooks ----------------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """The clock starts: data are there."""
        if stage == "fit":
            self.stage += 1
            self._start()

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """The line before training."""
        self.trained_parameters = max(self.trained_parameters, sum(p.numel() for p in _trained(pl_module)))
        self._stop()
        self._ahead, steps, trainer.num_sanity_val_steps = True, trainer.num_sanity_val_steps, inf
        data = getattr(trainer, "datamodule", None)
        try:
            # Lightning's own pass before training, in which callbacks and loggers neither save nor compare.
            with isolate_rng(), undisturbed(pl_module), put_back([] if data is None else [data]):
                trainer._run_sanity_check()
        finally:
            self._ahead, trainer.num_sanity_val_steps = False, steps
        self._start()

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """The clock stands."""
        self._stop()

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """A line."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self._ahead or not trainer.sanity_checking:
            self._write(trainer, 0 if self._ahead else _epochs(trainer))
        if not self._ahead:
            self._start()

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """The clock stops; the next fit counts on."""
        self._stop()
        self.epochs += trainer.current_epoch
        self.steps += trainer.global_step
        self._write_reports(trainer)
        self._before = self.reports

    # -- files ----------------------------------------------------------------------------------------------------

    def _write(self, trainer: "pl.Trainer", epochs: float) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        stage = {"stage": self.stage} if self.stages > 1 else {}
        place = {"epoch": self.epochs + epochs, "step": self.steps + trainer.global_step}
        self._lines.append({**place, **stage, "cpu_seconds": round(self.cpu_seconds, 4), **metrics})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for line in self._lines for name in line)))
        writer.writeheader()
        writer.writerows(self._lines)
        write_text(self.folder / "history.csv", text.getvalue())
        self._write_reports(trainer)

    def _write_reports(self, trainer: "pl.Trainer") -> None:
        found = [getattr(c, "reports", None) for c in getattr(trainer, "callbacks", [])]
        solves = [r for each in found if isinstance(each, list) for r in each if isinstance(r, SolveReport)]
        self.reports = [*self._before, *(report.state() for report in solves)]
        write_json(self.folder / "reports.json", self.reports)


def _trained(module: "pl.LightningModule") -> list[Any]:
    return [p for p in module.parameters() if p.requires_grad]


def _epochs(trainer: "pl.Trainer") -> float:
    """Epochs since the fit began, with the part of the present one."""
    batches, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_idx + 1
    part = 1.0 if batches == inf or trainer.is_last_batch else done / batches
    epochs = trainer.current_epoch + part
    return int(epochs) if epochs == int(epochs) else round(epochs, 4)
