"""Searches for witnesses at equal work: column generation, without its parts, and the best of a pool.

One hidden layer, one certified solve, no training. For each penalty `priced` is run first; `pool` then gets as many
candidates as its work pays for. Prints means over seeds and writes results/pricing.json: accuracy of validation and
test rows together, the certified objective on the training rows, units in use, and work (candidates times samples run
forward; a step of the ascent counts three). `beta auto` chooses its own penalty, so its objectives do not compare. The
data is that of witnesses.py: 10,000 MNIST images, 6000 of them for training.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from common import RESULTS, accuracy, quiet, sequential_mnist, write
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_cvxsnn import reconstruct
from lightning_cvxsnn.tasks.models import LitSNN
from lightning_cvxsnn.witnesses import kinds as hidden
from lightning_cvxsnn.witnesses.column_generation import POOL, Priced, Pricer

SEARCHES: dict[str, dict[str, bool]] = {
    "priced": {},
    "priced, no ascent": {"ascend": False},
    "priced, no mutation": {"mutate": False},
    "pool": {},
}


def start(name: str, beta: Any, pool: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The network that one search leaves, after its solve."""
    train, *others = sequential_mnist(options.mnist, seed, options.rows)
    pl.seed_everything(seed, verbose=False)
    net = LitSNN(train.tensors[0].shape[2], [options.width])
    found: list[Priced] = []
    run = Pricer.run

    def noted(*args: Any, **kwargs: Any) -> Priced:
        found.append(run(*args, **(kwargs | SEARCHES[name])))
        return found[-1]

    kind: Any = name.split(",")[0]
    with quiet(), mock.patch.object(Pricer, "run", noted), mock.patch.object(hidden, "POOL", pool):
        report = reconstruct(net, DataLoader(train, 128), witnesses=kind, beta=beta, seed=seed)
    right = [accuracy(net, rows) for rows in others]
    return {"accuracy": 100 * mean(right), "objective": report.primal, "active": report.active, "work": found[0].work}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mnist", type=Path, required=True, help="folder of t10k-images-idx3-ubyte.gz and t10k-labels-"
    )
    parser.add_argument("--betas", nargs="+", default=["0.01", "0.03", "0.1", "auto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=512, help="units of the hidden layer")
    parser.add_argument("--rows", type=int, default=10_000, help="MNIST rows in all, for a quick look")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    training = options.rows - 2 * (options.rows // 5)
    table = Table("beta", "search", "accuracy", "objective", "active", "work, millions", title="means over seeds")
    results = []
    for text in options.betas:
        beta: Any = text if text == "auto" else float(text)
        priced = [start("priced", beta, POOL, seed, options) for seed in options.seeds]
        pool = round(mean(run["work"] for run in priced) / training / options.width)
        for name in SEARCHES:
            runs = priced if name == "priced" else [start(name, beta, pool, seed, options) for seed in options.seeds]
            row = {key: mean(run[key] for run in runs) for key in runs[0]}
            results.append({"beta": text, "search": name, **row, "runs": runs})
            cells = (
                f"{row['accuracy']:.1f}",
                f"{row['objective']:.3f}",
                f"{row['active']:.0f}",
                f"{row['work'] / 1e6:.0f}",
            )
            table.add_row(text, name, *cells)
            write("pricing", results, folder=options.output)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
