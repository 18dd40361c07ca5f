"""The paper's tasks on its own network, `ParallelSNN`: FIRST-LAST-XOR and addition (arXiv 2605.08022).

Prints one line per cell and writes results/tasks.json, where cells of other runs are kept. XOR: 2000 rows to train,
2000 to validate, 4000 to test; training ends after 40 epochs, or when every validation row is right. Addition: training
on 5 digits, testing on more with the network's own carry fed back; the figure is the share of digits that are right.
Times are CPU seconds of one process.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, accuracy, trainer, write
from lightning.pytorch.callbacks import EarlyStopping

from lightning_cvxsnn import (
    AdditionDataModule,
    AdditionSNN,
    ConvexReconstruction,
    ParallelSNN,
    XORDataModule,
    calibrate,
    reconstruct,
)
from lightning_cvxsnn.demo import quiet

XOR_METHODS = ("random CVX", "SG, default weights", "SG, calibrated", "defaults")
ADDITION_METHODS = ("random CVX", "SG + CVX", "priced branches")
NEURONS = {
    "paper": {"branches": 1, "tau": 100.0, "reset": "soft"},
    "leak 0.1": {"branches": 1, "tau": 1 / 0.9, "reset": "soft"},
    "drawn": {"branches": 4, "tau": (1.05, 100.0), "reset": "mixed"},
    "thresholds drawn": {"branches": 20, "tau": 1.01, "v_threshold": (0.02, 1.0), "reset": "soft"},
}
RATE = 0.2  # spikes per unit and step, of calibrated weights for XOR


def fit(net: pl.LightningModule, data: pl.LightningDataModule, epochs: int, callbacks: list[pl.Callback]) -> int:
    """Train until every validation row is right; the number of epochs that took."""
    stop = EarlyStopping("val_accuracy", mode="max", patience=epochs, stopping_threshold=1 - 1e-6)
    run = trainer(epochs, [*callbacks, stop], num_sanity_val_steps=0)
    run.fit(net, datamodule=data)
    return run.current_epoch


class Annealed(ParallelSNN):
    """The network, trained at a learning rate that falls to zero along a cosine."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def xor(steps: int, depth: int, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of one network."""
    pl.seed_everything(seed, verbose=False)
    data = XORDataModule(steps, options.sizes, options.batch, seed)
    data.setup("fit")
    settings = {name: getattr(options, name) for name in ("width", "last_width", "tau", "reset", "lr")}
    net = (Annealed if options.anneal else ParallelSNN)(depth=depth, branches=1, **settings)
    started, epochs, callbacks = time.process_time(), 0, []
    if method == "random CVX":
        reconstruct(net, data.train_dataloader(), witnesses="gaussian_normalized", seed=seed)
    else:
        if method == "SG, calibrated":
            calibrate(net, data.train_dataloader(), rate=RATE)
            callbacks = [ConvexReconstruction(witnesses="keep", warm_start=False, every_n_epochs=0, seed=seed)]
        elif method == "defaults":
            callbacks = [ConvexReconstruction()]
        epochs = fit(net, data, options.epochs, callbacks)
    seconds = time.process_time() - started
    settings |= {"batch_size": options.batch, "anneal": options.anneal, "epochs": epochs}
    return settings | {"test": accuracy(net, data.test), "cpu_seconds": seconds}


def addition(base: int, neuron: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of one network at each number of digits, its own carry fed back."""
    pl.seed_everything(seed, verbose=False)
    data = AdditionDataModule(base, sizes=options.sizes, seed=seed)
    data.setup("fit")
    net = AdditionSNN(base, lr=3e-3, **NEURONS[neuron])
    started, epochs = time.process_time(), 0
    solve: dict[str, Any] = {"beta": options.beta, "max_samples": options.numbers, "gap_tolerance": 1e-2, "seed": seed}
    solve["witnesses"] = "priced" if method == "priced branches" else "gaussian_standard"
    if method == "SG + CVX":
        epochs = fit(net, data, options.epochs, [ConvexReconstruction(every_n_epochs=0, **solve)])
    else:
        reconstruct(net, data.train_dataloader(), **solve)
    seconds = time.process_time() - started
    tests = {}
    for digits, dataset in zip(data.test_digits, data.tests, strict=True):
        x, y = dataset.tensors
        sums = net.add((x[..., :2] * (base - 1)).round().long())
        tests[str(digits)] = float((sums % base == y % base).float().mean())
    return {
        "beta": options.beta,
        "rows": 6 * min(options.numbers, options.sizes[0]),
        "epochs": epochs,
        "test": tests,
        "cpu_seconds": seconds,
    }


def record(cell: dict[str, Any], folder: Path) -> None:
    """Add one cell to the results, in place of an earlier one of the same settings."""
    path = folder / "tasks.json"
    cells = json.loads(path.read_text())["results"] if path.exists() else []
    settings = ("task", "steps", "depth", "base", "neuron", "method", "seed")
    key = [cell.get(name) for name in settings]
    cells = [c for c in cells if [c.get(name) for name in settings] != key]
    write("tasks", [*cells, cell], folder=folder)
    print(cell, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["xor", "addition"])
    parser.add_argument("--steps", nargs="+", type=int, default=[6, 8, 11, 14])
    parser.add_argument("--depths", nargs="+", type=int, default=[5, 15])
    parser.add_argument("--bases", nargs="+", type=int, default=[2, 3, 5, 7, 10])
    parser.add_argument("--neurons", nargs="+", choices=list(NEURONS), default=list(NEURONS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sizes", nargs=3, type=int, default=[2000, 2000, 4000])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--width", type=int, default=250, help="units of the hidden layers for XOR")
    parser.add_argument("--last-width", type=int, default=500, help="units of the last one")
    parser.add_argument(
        "--tau", type=float, default=100.0, help="membrane time constant for XOR; the paper's by default"
    )
    parser.add_argument("--reset", choices=["soft", "hard"], default="soft", help="for XOR; the paper's by default")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate for XOR")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step for XOR")
    parser.add_argument("--anneal", action="store_true", help="let the learning rate for XOR fall along a cosine")
    parser.add_argument("--beta", type=float, default=1e-3, help="penalty of the solves for addition")
    parser.add_argument("--numbers", type=int, default=2000, help="numbers (six rows each) in a solve, at most")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        run(options)


def run(options: argparse.Namespace) -> None:
    """All cells that were asked for."""
    for seed in options.seeds:
        if options.task == "xor":
            for method in options.methods or XOR_METHODS:
                for depth in options.depths:
                    for steps in options.steps:
                        cell = {"task": "xor", "steps": steps, "depth": depth, "method": method, "seed": seed}
                        record(cell | xor(steps, depth, method, seed, options), options.output)
        else:
            for method in options.methods or ADDITION_METHODS:
                for neuron in options.neurons:
                    for base in options.bases:
                        cell = {"task": "addition", "base": base, "neuron": neuron, "method": method, "seed": seed}
                        record(cell | addition(base, neuron, method, seed, options), options.output)


if __name__ == "__main__":
    main()
