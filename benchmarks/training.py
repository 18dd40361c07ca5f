"""What to do with solutions: policies of the callback against surrogate gradients (SG), epoch- and time-matched.

Every run has one process and one thread; time is CPU time since before calibration or the fit, less that of
evaluation. Accuracies are those of the weights a checkpoint would hold after an epoch, over validation and test rows
together: no run looks at them. Runs are kept in results/training.json and not repeated: delete the file to begin anew.
Prints, as means over seeds: accuracy before training, after some epochs (ep), and at the CPU time at which SG from
calibrated weights finished those epochs (t); the mean accuracy over that time (area); CPU seconds to 95 % of that SG's
final accuracy, in all, and of the warm start; solves; what the periodic ones took of training's work (overhead); and
how much CPU time a unit of the solves' work takes compared with a unit of training's (pace): 1 if counting is fair.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, accuracy, digits, sequential_mnist, show, trainer, write
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, LitSNN, calibrate
from lightning_cvxsnn.demo import quiet

MATCHED = (5, 10, 20, 40)  # epochs at which runs are compared
LOOKS = (*range(1, 8), *range(10, 41, 5))  # epochs after which runs are evaluated
CALIBRATED = "SG, calibrated weights"
# name: data, hidden layers, what the readout sees, learning rate, batch, epochs
TASKS: dict[str, tuple[str, list[int], Any, float, int, int]] = {
    "digits, one layer": ("digits", [128], "mean", 1e-2, 64, 20),
    "digits, two layers": ("digits", [128, 128], "mean", 1e-2, 64, 20),
    "digits, nine layers": ("digits", [128] * 9, "mean", 1e-2, 64, 20),
    "mnist, mean, one layer": ("mnist", [512], "mean", 1e-3, 128, 40),
    "mnist, mean, two layers": ("mnist", [256, 512], "mean", 1e-3, 128, 20),
    "mnist, mean, nine layers": ("mnist", [256] * 9, "mean", 1e-3, 128, 20),
    "mnist, last, one layer": ("mnist", [512], "last", 1e-3, 128, 20),
    "mnist, last, two layers": ("mnist", [256, 512], "last", 1e-3, 128, 20),
    "mnist, last, nine layers": ("mnist", [256] * 9, "last", 1e-3, 128, 20),
}
WARM = {"witnesses": "calibrated", "every_n_epochs": 0, "final_solve": False}
ALWAYS = {"witnesses": "calibrated", "max_overhead": None}
POLICIES: dict[str, dict[str, Any] | None] = {
    "SG, default weights": None,
    CALIBRATED: None,
    "replace every epoch, scale 1": ALWAYS | {"apply": "replace", "scale": 1.0},
    "replace every epoch, scale 0.3": ALWAYS | {"apply": "replace", "scale": 0.3},
    "replace every fifth, scale 0.3": ALWAYS | {"apply": "replace", "scale": 0.3, "every_n_epochs": 5},
    "warm start, scale 1": WARM | {"scale": 1.0},
    "warm start, scale 0.7": WARM,
    "warm start, scale 0.3": WARM | {"scale": 0.3},
    "warm start, scale 0.1": WARM | {"scale": 0.1},
    "shadow every epoch": ALWAYS | {"apply": "shadow"},
    "warm start, shadow every epoch": ALWAYS,
    "auto, calibrated": {"witnesses": "calibrated"},
    "auto, pairs": {"witnesses": "pairs"},
    "auto, priced": {"witnesses": "priced"},
    "replace, priced": {"witnesses": "priced", "apply": "replace"},
    "ConvexReconstruction()": {},
}


class Timed(ConvexReconstruction):
    """The callback, and the CPU seconds of each of its solves."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.cpu_seconds: list[float] = []

    def time(self, hook: Callable[..., None], *arguments: Any) -> None:
        solves, started = len(self.reports), time.process_time()
        hook(*arguments)
        if len(self.reports) > solves:
            self.cpu_seconds.append(time.process_time() - started)

    def on_train_start(self, *arguments: Any) -> None:
        self.time(super().on_train_start, *arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.time(super().on_train_batch_end, *arguments)

    def on_train_end(self, *arguments: Any) -> None:
        self.time(super().on_train_end, *arguments)

    def told(self) -> list[dict[str, Any]]:
        """The reports, with their CPU seconds and the work of an epoch that they are held against."""
        epoch = {"epoch_work": self.state_dict()["reconstructor"]["budget"]["epoch"]}
        pairs = zip(self.reports, self.cpu_seconds, strict=True)
        return [report.state() | {"cpu_seconds": seconds} | epoch for report, seconds in pairs]


class Curve(pl.Callback):
    """Accuracy over CPU time; put it after the callback that solves."""

    def __init__(self, *data: TensorDataset) -> None:
        self.data, self.looking = data, 0.0
        self.points: list[tuple[int, float, float]] = []
        self.started = time.process_time()

    def look(self, net: pl.LightningModule, epoch: int) -> None:
        now = time.process_time()
        self.points.append((epoch, now - self.started - self.looking, 100 * accuracy(net, *self.data)))
        self.looking += time.process_time() - now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in (*LOOKS, trainer.max_epochs):
            self.look(pl_module, trainer.current_epoch + 1)


def train(task: str, policy: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network, one policy."""
    data, hidden, reduction, lr, batch, epochs = TASKS[task]
    parts = digits(seed) if data == "digits" else sequential_mnist(options.mnist, seed, options.rows)
    rows, *others = parts
    pl.seed_everything(seed, verbose=False)
    net = LitSNN(rows.tensors[0].shape[-1], hidden, lr=lr, reduction=reduction)
    loader = DataLoader(rows, batch, shuffle=True)
    arguments = POLICIES[policy]
    ours = [] if arguments is None else [Timed(**arguments)]
    curve = Curve(*others)
    with quiet():
        if policy == CALIBRATED:
            calibrate(net, loader)
        trainer(min(epochs, options.epochs), [*ours, curve]).fit(net, loader)
    reports = [report for callback in ours for report in callback.told()]
    return {"task": task, "policy": policy, "seed": seed, "points": curve.points, "reports": reports}


def at(points: list[list[float]], when: float, axis: int) -> float | None:
    """Accuracy at an epoch (axis 0) or CPU time (axis 1), between evaluations on a line; None after the end."""
    if when < points[0][axis]:
        return 10.0  # nothing is there yet: chance
    for one, two in pairwise(points):
        if one[axis] <= when <= two[axis]:
            part = (when - one[axis]) / max(two[axis] - one[axis], 1e-9)
            return one[2] + part * (two[2] - one[2])
    return None


def figures(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, float | None]:
    """What the table shows of a run, next to that of SG from calibrated weights with the same seed."""
    points, theirs = run["points"], reference["points"]
    end, goal = theirs[-1][1], 0.95 * theirs[-1][2]
    # A run that ends before SG does keeps its last accuracy: it could have stopped there.
    timely = {e: at([*points, [0, 1e9, points[-1][2]]], at_time(theirs, e), 1) for e in MATCHED if e <= theirs[-1][0]}
    shown: dict[str, float | None] = {"start": points[0][2]}
    shown |= {f"ep {e}": at(points, e, 0) for e in MATCHED if e <= points[-1][0]}
    shown |= {f"t {e}": value for e, value in timely.items()}
    grid = [end * (k + 0.5) / 200 for k in range(200)]
    shown["area"] = mean(at([*points, [0, 1e9, points[-1][2]]], when, 1) or 0.0 for when in grid)
    shown["to 95 %"] = next((when for when in grid if (at(points, when, 1) or 0.0) >= goal), None)
    warm = [r["cpu_seconds"] for r in run["reports"] if r["reason"].startswith("warm")]
    solving = sum(r["cpu_seconds"] for r in run["reports"])
    shown["CPU s"] = points[-1][1]
    shown["warm start"] = sum(warm)
    shown["solves"] = float(len(run["reports"]))
    shown["overhead"] = run["reports"][-1]["overhead"] if run["reports"] else 0.0
    shown["pace"] = None
    if run["reports"]:
        work = sum(r["work"] for r in run["reports"]) / run["reports"][0]["epoch_work"]
        shown["pace"] = (solving / work) / ((points[-1][1] - solving) / points[-1][0])
    return shown


def at_time(points: list[list[float]], epoch: int) -> float:
    """CPU time at the end of an epoch."""
    return next(seconds for e, seconds, _ in points if e == epoch)


def table_rows(task: str, runs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Names of the figures, and for each policy its name, the number of seeds and their means.

    Only seeds that SG from calibrated weights has too are counted.
    """
    reference = {run["seed"]: run for run in runs if run["task"] == task and run["policy"] == CALIBRATED}
    names: list[str] = []
    rows = []
    for policy in POLICIES:
        own = [r for r in runs if r["task"] == task and r["policy"] == policy and r["seed"] in reference]
        found = [figures(run, reference[run["seed"]]) for run in own]
        if found:
            names = list(found[0])
            rows.append([policy, str(len(own)), *(_mean([f[name] for f in found], name) for name in names)])
    return names, rows


def _mean(values: list[float | None], name: str) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.{2 if name in ('overhead', 'pace') else 1}f}" if len(known) == len(values) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder of t10k-images-idx3-ubyte.gz and -labels-; for mnist tasks")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none: only print what is there")
    parser.add_argument("--epochs", type=int, default=40, help="at most; for a quick look")
    parser.add_argument("--rows", type=int, default=10_000, help="of MNIST in all, for a quick look")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    path = options.output / "training.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    done = {(run["task"], run["policy"], run["seed"]) for run in runs}
    for seed in options.seeds:
        for task in options.tasks:
            for policy in options.policies:
                if (task, policy, seed) not in done:
                    runs.append(train(task, policy, seed, options))
                    write("training", runs, folder=options.output)
    for task in TASKS:
        names, rows = table_rows(task, runs)
        show(
            f"{task}: means over seeds", [dict(zip(("policy", "seeds", *names), row, strict=True)) for row in rows], 220
        )


if __name__ == "__main__":
    main()
