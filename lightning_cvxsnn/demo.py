"""The embedded demonstration: surrogate gradients alone, from two starts, against the callback, on real digits."""

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typing_extensions import override

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN, calibrate


@dataclass
class DemoRow:
    """One way to train the network.

    Attributes:
        name: What was done.
        start: Validation accuracy before the first epoch, in [0, 1].
        validation: Validation accuracy after each epoch.
        test: Test accuracy at the end.
        gap: Largest certified duality gap of its solves; None without solves.
        solves: Numbers of accepted solves and of all.
        seconds: Wall-clock seconds of the fit, solves included.
        seconds_solves: Those of the solves and their pattern passes.
    """

    name: str
    start: float = 0.0
    validation: list[float] = field(default_factory=list)
    test: float = 0.0
    gap: float | None = None
    solves: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    seconds_solves: float = 0.0


class _Record(pl.Callback):
    """Validation accuracy before the first epoch and after each."""

    def __init__(self, row: DemoRow, progress: Progress) -> None:
        self.row, self.progress = row, progress

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.datamodule is not None  # type: ignore[attr-defined]
        with torch.no_grad():
            hits = [pl_module(x).argmax(1) == y for x, y in trainer.datamodule.val_dataloader()]  # type: ignore[attr-defined]
        self.row.start = float(torch.cat(hits).float().mean())
        self.task = self.progress.add_task(self.row.name, total=trainer.max_epochs)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.row.validation.append(float(trainer.callback_metrics["val_accuracy"]))
        self.progress.advance(self.task)


@dataclass(frozen=True)
class DemoSettings:
    """What the runs of a comparison share.

    Attributes:
        epochs: Epochs of each run.
        hidden: Width of each LIF layer, first to last.
        lr: Learning rate of Adam.
        seed: Seed of weights, split and batches.
    """

    epochs: int
    hidden: tuple[int, ...]
    lr: float
    seed: int


def train(
    name: str,
    settings: DemoSettings,
    progress: Progress,
    *,
    calibrated: bool = False,
    callback: ConvexReconstruction | None = None,
) -> DemoRow:
    """Train `LitSNN` on scikit-learn's digits once.

    Args:
        name: What to call the run.
        settings: Those of all runs.
        progress: Shows it.
        calibrated: Whether hidden weights are calibrated first.
        callback: Convex reconstruction, or None: surrogate gradients alone.
    """
    row = DemoRow(name)
    with quiet():
        pl.seed_everything(settings.seed, verbose=False)
        data = DigitsDataModule(seed=settings.seed)
        net = LitSNN(hidden=list(settings.hidden), lr=settings.lr)
        data.setup("fit")
        started = time.perf_counter()
        if calibrated:
            calibrate(net, data.train_dataloader())
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=settings.epochs,
            callbacks=[*([] if callback is None else [callback]), _Record(row, progress)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(net, datamodule=data)
        row.seconds = time.perf_counter() - started
        row.test = trainer.test(net, datamodule=data, verbose=False)[0]["test_accuracy"]
    if callback is not None:
        row.gap = max(report.gap for report in callback.reports)
        row.solves = (sum(r.accepted for r in callback.reports), len(callback.reports))
        row.seconds_solves = sum(r.seconds_patterns + r.seconds_solve for r in callback.reports)
    return row


def run_demo(
    epochs: int = 20, hidden: int | tuple[int, ...] = (128, 128), lr: float = 1e-2, seed: int = 0
) -> list[DemoRow]:
    """Train the same network three ways on scikit-learn's digits, same seed and epochs.

    Args:
        epochs: Epochs of each run, at least 1.
        hidden: Width of each LIF layer, first to last; one number: of a single layer.
        lr: Learning rate of Adam.
        seed: Seed of weights, split and batches.

    Raises:
        MisconfigurationException: If there is no epoch to run or no layer to train.

    Returns:
        One row for surrogate gradients (SG) from default weights, one from calibrated weights, one for the callback.
    """
    if epochs < 1:
        raise MisconfigurationException(f"Invalid value epochs={epochs!r}. Expected an integer >= 1.")
    settings = DemoSettings(epochs, (hidden,) if isinstance(hidden, int) else tuple(hidden), lr, seed)
    with Progress(transient=True) as progress:
        run = partial(train, settings=settings, progress=progress)
        return [
            run("SG, default weights"),
            run("SG, calibrated weights", calibrated=True),
            run("SG + ConvexReconstruction()", callback=ConvexReconstruction()),
        ]


def show_demo(epochs: int = 20, hidden: int | tuple[int, ...] = (128, 128), lr: float = 1e-2, seed: int = 0) -> None:
    """Train a spiking network on real digits with and without convex reconstruction and print the comparison.

    Args:
        epochs: Epochs of each of the three runs, at least 1.
        hidden: Width of each LIF layer, first to last, such as [128,128]; one number: of a single layer.
        lr: Learning rate of Adam.
        seed: Seed of weights, split and batches.
    """
    rows = run_demo(epochs, hidden, lr, seed)
    early, widths = min(5, epochs), [hidden] if isinstance(hidden, int) else list(hidden)
    table = Table(
        title=f"scikit-learn digits, LIF layers {widths}, {epochs} epochs, seed {seed}",
        caption="Accuracies in %: validation before training (start) and after epochs (ep), test at the end. gap: "
        "largest certified gap of the run's solves, over their dictionaries. written: accepted solves, of all solves. "
        "seconds: wall clock of the run; solving: its part in pattern passes and solves.",
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("training", no_wrap=True)
    for column in ("start", f"ep {early}", f"ep {epochs}", "test", "gap", "written", "seconds", "solving"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name.removesuffix("()"),
            *(f"{100 * a:.1f}" for a in (row.start, row.validation[early - 1], row.validation[-1], row.test)),
            "-" if row.gap is None else f"{row.gap:.0e}",
            "-" if row.gap is None else f"{row.solves[0]}/{row.solves[1]}",
            f"{row.seconds:.1f}",
            f"{row.seconds_solves:.1f}",
        )
    Console().print(table)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's messages and all warnings in this context."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
