"""Ahead of surrogate gradients (SG) at their best rate? `python benchmarks/fair.py --data FOLDER`.

For each task and arm: four learning rates with cosine annealing, and the best of them held constant; the best of these
five on validation rows, of seeds that serve nothing else, is run with paired seeds, and so is 1e-3 held constant, the
rate of nobody's choice. Only these are scored on test rows. SG is the better of default and calibrated weights, again
on validation rows. Where these are fewer than 100, three seeds choose, each with validation rows of its own.

Scores are percentages of right answers, for a regression 100 (1 - NRMSE), of the weights that a user is shown after an
epoch. Time is CPU time since before calibration or the fit, without evaluations and Lightning's validations, of one
process with one thread. One arm is the callback for fewer epochs, one at least, so that all of it takes about as long
as SG. Work is counted in multiply-adds, of SG's steps and of the callback's solves; scikit-learn's is not. Runs are
kept in results/fair.json and not repeated, also where code has changed: delete the file to begin anew. `--minutes`
ends early, and a later call goes on.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, describe, trainer
from fair_arms import ARMS, RAW, Weights, flat, prepare, raw, with_norm
from fair_choice import RATES, Cell, Run, cells, epochs_in_time, weights_of
from fair_summary import Summary
from fair_tasks import TASKS, Task
from fair_unseen import EVERY, UNSEEN
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.demo import quiet
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.reconstruction.budget import measure


class Curve(pl.Callback):
    """Scores over CPU time; put it last.

    It looks while Lightning validates, which is after the last batch of an epoch, with what other callbacks show then.
    """

    def __init__(self, task: Task, epochs: int, parts: dict[str, TensorDataset]) -> None:
        self.parts, self.squared = parts, task.loss == "squared"
        self.looks = {1, 2, 3, 5, epochs // 2, 3 * epochs // 4} - {epochs}  # the last one is looked at after the fit
        self.points: list[dict[str, float]] = []
        self.started, self.paused = time.process_time(), 0.0

    def pause(self) -> None:
        self.left = time.process_time()

    def resume(self) -> None:
        self.paused += time.process_time() - self.left

    def look(self, net: pl.LightningModule, epoch: int) -> None:
        """Score all parts; the clock is paused."""
        scores = {name: score(net, part, self.squared) for name, part in self.parts.items()}
        self.points.append({"epoch": epoch, "seconds": round(self.left - self.started - self.paused, 4)} | scores)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause()
        self.look(pl_module, 0)
        self.resume()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in self.looks:
            self.look(pl_module, trainer.current_epoch + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resume()


@torch.no_grad()
def score(net: pl.LightningModule, part: TensorDataset, squared: bool) -> float:
    """Of a network, whose mode is kept."""
    mode, (x, y) = net.training, part.tensors
    net.eval()
    outputs = torch.cat([net(batch) for batch in x.split(500)])
    net.train(mode)
    if squared:
        return round(100 * (1 - float((outputs - y).square().mean().sqrt() / y.std())), 4)
    return round(100 * float((outputs.argmax(-1) == y).float().mean()), 4)


class Cosine(pl.Callback):
    """Anneals the learning rate to nothing, step by step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizers[0], self.steps)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.schedule.step()


def run(cell: Cell, weights: Weights, epochs: int, options: argparse.Namespace) -> Run:
    """Train one network, or fit the linear model; a refusal is a result."""
    started, task = time.process_time(), EVERY[cell.task]
    parts = task.cut(options.data, cell.seed)
    scored = dict(zip(("validation",) if cell.selects else ("validation", "test"), parts[1:], strict=False))
    pl.seed_everything(cell.seed, verbose=False)
    try:
        with quiet():
            result = fit_raw(parts, scored) if cell.arm == RAW else fit(cell, weights, parts[0], scored, epochs)
    except (ValueError, MisconfigurationException) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    return {"epochs": epochs, "cost": time.process_time() - started} | result


def fit(cell: Cell, weights: Weights, rows: TensorDataset, scored: dict[str, TensorDataset], epochs: int) -> Run:
    task, arm = EVERY[cell.task], ARMS[cell.arm]
    net: Any = task.network()
    net.lr = cell.rate
    if arm.norm:
        with_norm(net)
    loader = DataLoader(rows, task.batch, shuffle=True)
    with undisturbed(net):
        net.eval()
        epoch_work = measure(net, net.readout, rows.tensors[0][: task.batch]).epoch(len(loader))
    callbacks: list[pl.Callback] = [Cosine(epochs * len(loader))] if cell.schedule == "cosine" else []
    curve = Curve(task, epochs, scored)
    prepare(net, weights, rows, loader)
    callbacks += [arm.callback(rows, len(loader))] if arm.callback else []
    fitted = trainer(epochs, [*callbacks, curve], num_sanity_val_steps=0)
    fitted.fit(net, loader, DataLoader(scored["validation"], 500))
    curve.pause()
    curve.look(net, epochs)
    reports = [r for c in callbacks if isinstance(c, ConvexReconstruction) for r in c.reports]
    solves = [{"epoch": r.epoch, "accepted": r.accepted, "work": r.work} for r in reports]
    return {"weights": weights, "points": curve.points, "epoch_work": epoch_work, "solves": solves}


def fit_raw(parts: list[TensorDataset], scored: dict[str, TensorDataset]) -> Run:
    started = time.process_time()
    model = raw(parts)
    point = {"epoch": 0, "seconds": time.process_time() - started}
    for name, part in scored.items():
        x, y = (values.numpy() for values in flat(part))
        value = model.score(x, y)  # the share of right answers, or R squared
        point[name] = 100 * (1 - (1 - value) ** 0.5 if y.dtype.kind == "f" else value)
    return {"points": [point]}


def save(path: Path, machine: dict[str, Any], runs: dict[str, Run]) -> None:
    """A line a run; all or nothing, as we may be stopped at any time."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(each)}" for key, each in runs.items())
    part = path.with_suffix(".part")
    part.write_text(f'{{"machine": {json.dumps(machine)},\n"runs": {{\n{lines}\n}}}}\n')
    os.replace(part, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of all data, see fair_tasks and fair_unseen")
    parser.add_argument("--tasks", nargs="+", choices=list(EVERY), metavar="TASK")
    parser.add_argument("--unseen", action="store_true", help="the tasks that nothing was chosen by")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds at most; 0: only choose")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="fewer for a quick look")
    parser.add_argument("--epochs", type=int, default=100, help="at most; for a quick look")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="of CPU, after which no run begins; 0: none"
    )
    parser.add_argument("--output", type=Path, help="results/fair.json, or fair_unseen.json")
    parser.add_argument("--plot", type=Path, help="file of a picture of all tasks, .svg or .png")
    parser.add_argument("--markdown", action="store_true", help="print the callback beside SG as the docs have it")
    parser.add_argument("--list", action="store_true", help="print the names of tasks and arms")
    options = parser.parse_args(arguments)
    options.tasks = options.tasks or list(UNSEEN if options.unseen else TASKS)
    options.output = options.output or RESULTS / f"fair{'_unseen' if options.unseen else ''}.json"
    if options.list:
        print("Tasks:", *TASKS, "Unseen:", *UNSEEN, "Arms:", *ARMS, sep="\n  ")
        return
    torch.set_num_threads(1)
    runs: dict[str, Run] = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    complete(runs, options)
    summary = Summary(runs, options.rates)
    summary.print(options.tasks)
    if options.markdown:
        print(summary.markdown(options.tasks, "ConvexReconstruction()"))
        print(summary.arms([task for task in options.tasks if EVERY[task].loss != "squared"], "ConvexReconstruction()"))
    if options.plot:
        summary.plot(options.tasks, options.arms).savefig(options.plot)


def complete(runs: dict[str, Run], options: argparse.Namespace) -> None:
    """Run what is wanted and not there, until the time is up."""
    machine = describe()
    for task in options.tasks:
        for arm in (arm for arm in options.arms if ARMS[arm].suits(EVERY[task])):
            for cell in cells(task, arm, runs, options.rates, options.seeds):
                if cell.key in runs:
                    continue
                if time.process_time() > 60 * options.minutes:
                    return
                epochs = min(EVERY[task].epochs, options.epochs)
                if long := ARMS[cell.arm].shortened:
                    seeds = min(options.seeds, EVERY[task].seeds)
                    epochs = epochs_in_time(task, long, runs, options.rates, seeds)
                runs[cell.key] = run(cell, weights_of(cell, runs, options.rates), epochs, options)
                save(options.output, machine, runs)
                print(f"{cell.key}: {runs[cell.key]['cost']:.1f} s {runs[cell.key].get('error', '')}", flush=True)


if __name__ == "__main__":
    main()
