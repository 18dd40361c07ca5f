"""What the callback says: to loggers, progress bars and the log."""

import csv
import logging

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from networks import fitted

from lightning_cvxsnn import ConvexReconstruction


def test_loggers_get_every_numeric_field(tmp_path):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    loggers = [CSVLogger(tmp_path / "csv", version="v"), TensorBoardLogger(tmp_path / "tb")]
    fitted(callback, max_epochs=2, logger=loggers)
    with open(tmp_path / "csv/lightning_logs/v/metrics.csv") as file:
        logged = [row for row in csv.DictReader(file) if row.get("convex/gap")]
    assert len(logged) == len(callback.reports) == 3
    for row, report in zip(logged, callback.reports, strict=True):
        for name, value in report.state().items():
            if isinstance(value, (bool, int, float)):
                assert float(row[f"convex/{name}"]) == pytest.approx(float(value)), name


def test_progress_below_tqdm(capsys):
    fitted([ConvexReconstruction(beta=0.02), TQDMProgressBar(refresh_rate=1)], max_epochs=1, enable_progress_bar=True)
    captured = capsys.readouterr()
    assert "Convex: patterns" in captured.err + captured.out
    assert "Convex: solve" in captured.err + captured.out


def test_progress_in_rich():
    class Watch(RichProgressBar):
        def refresh(self, hard=False):
            super().refresh(hard)
            if self.progress is not None:
                shown.extend((t.description, int(t.completed)) for t in self.progress.tasks if t.visible)
                counts.append(len(self.progress.tasks))

    shown, counts = [], []
    fitted([ConvexReconstruction(beta=0.02), Watch()], max_epochs=5, enable_progress_bar=True)
    assert ("Convex: patterns", 4) in shown
    assert ("Convex: solve", 0) in shown
    assert any("Epoch" in description for description, _ in shown)
    assert max(counts) <= 3


def test_no_bar_no_output(capsys):
    fitted(ConvexReconstruction(beta=0.02), max_epochs=1)
    captured = capsys.readouterr()
    assert "Convex:" not in captured.out + captured.err


def test_one_line_for_each_solve(caplog):
    callback = ConvexReconstruction(beta=0.02, max_overhead=None, witnesses="keep")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fitted(callback, max_epochs=2)
    lines = [r.message for r in caplog.records if r.message.startswith("ConvexReconstruction ")]
    assert len(lines) == 3
    assert "warm start: accepted; cross_entropy on held-out training rows" in lines[0]
    assert "gap" in lines[0]
