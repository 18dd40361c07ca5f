"""What a person sees during a fit: steps advance under Rich and tqdm, and lines appear above the bars."""

import io
import logging
import sys
import time
from itertools import count

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from networks import Net, loader, trainer
from tqdm.auto import tqdm

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.runtime.progress import progress_step, report_progress
from lightning_cvxsnn.training.progress_bars import above_progress_bar, trainer_progress


class Loud(ConvexReconstruction):
    """Before the first epoch, runs a stage of three rounds of two steps, and speaks in the middle of it."""

    def on_train_start(self, trainer, pl_module):
        with above_progress_bar(trainer), trainer_progress(trainer, "witnesses", None):
            for index in range(3):
                with progress_step(index, 3):
                    for done in (1, 2):
                        report_progress(done, 2, f"gap 1e-{done}")
                rank_zero_info(f"logged in round {index}")
                rank_zero_warn(f"warned in round {index}")


@pytest.fixture
def fit(monkeypatch):
    """Fits before a console and returns what was written there; Lightning's handler holds it by its old name."""

    def run(*callbacks, **arguments):
        console = io.StringIO()
        monkeypatch.setattr(sys, "__stderr__", console)
        monkeypatch.setattr(sys, "stderr", console)
        (handler,) = handlers = [logging.StreamHandler(console)]
        monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", handlers)
        trainer(*callbacks, max_epochs=1, **arguments).fit(Net(), loader())
        assert sys.stderr is handler.stream is console
        return console.getvalue().splitlines()

    return run


def watched(shown):
    """A bar of Rich that keeps what it shows of our stages."""

    class Watch(RichProgressBar):
        def refresh(self, hard=False):
            super().refresh(hard)
            for task in self.progress.tasks if self.progress else ():
                if task.visible and task.fields.get("convex"):
                    shown.append((task.description, round(task.completed, 2), task.total, task.time_remaining))

    return Watch()


@pytest.mark.filterwarnings("ignore:warned")
def test_rounds_advance_rich_and_its_time_left(fit):
    shown = []
    fit(Loud(), watched(shown), enable_progress_bar=True)
    assert shown[0][:3] == ("Convex: witnesses", 0, 1)
    done = [step for name, step, total, _ in shown[1:] if name.startswith("Convex: witnesses") and total == 3]
    assert done == sorted(done)
    assert done[-1] == 3
    assert len(set(done)) > 1
    assert "Convex: witnesses, gap 1e-2" in [name for name, *_ in shown]


def test_rounds_advance_tqdm_and_lines_leave_it_whole(fit, monkeypatch):
    bars = []
    monkeypatch.setattr(tqdm, "clear", lambda self, *a, **k: bars.append(self.desc))
    with pytest.warns(UserWarning, match="warned in round"):
        lines = fit(Loud(), TQDMProgressBar(), enable_progress_bar=True)
    assert [f"logged in round {index}" in lines for index in range(3)] == [True] * 3
    assert bars.count("Convex: witnesses") >= 3  # taken away for each line


def test_without_a_bar_nothing_is_led_elsewhere(fit):
    with pytest.warns(UserWarning, match="warned in round"):
        lines = fit(Loud())
    assert "logged in round 2" in lines


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_a_search_and_a_solve_advance(fit, monkeypatch, loss):
    monkeypatch.setattr(time, "monotonic", count().__next__)  # no report is too soon after another
    shown = []
    callback = ConvexReconstruction(loss=loss, witnesses="priced", final_solve=False, every_n_epochs=0)
    fit(callback, watched(shown), enable_progress_bar=True)
    search = [step for name, step, total, _ in shown if name.startswith("Convex: witnesses, gap") and total == 5]
    assert search == sorted(search)
    assert len({int(step) for step in search}) > 1
    assert any(step != int(step) for step in search)  # within rounds too
    solve = [step / total for name, step, total, _ in shown if name.startswith("Convex: solve, gap")]
    assert max(solve) == pytest.approx(1, abs=0.02)
