"""Witness kinds against surrogate gradients (SG) from default and from calibrated weights, on sequential MNIST.

Each network is trained for 40 epochs (Adam, learning rate 1e-3, batch 128) after one warm start with the kind of
witnesses named, and without further solves; the two SG rows have no warm start. Prints validation accuracies, medians
over seeds, and writes results/witnesses.json. The 10,000 MNIST test images are cut into 6000 for training, 2000 for
validation and 2000 for testing by a permutation of each seed.
"""

import argparse
import gzip
import logging
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import torch
from machine import RESULTS, write
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, calibrate
from lightning_cvxsnn.models import LitSNN
from lightning_cvxsnn.pricing import Pricer

STEPS, PIXELS = 4, 196
EPOCHS = (5, 12, 20, 40)
NETWORKS = {"one layer": [512], "two layers": [256, 512]}
SG = ("SG, default weights", "SG, calibrated weights")
ABLATIONS = {"priced, no ascent": {"ascend": False}, "priced, no mutation": {"mutate": False}}
KINDS = (
    "auto", "calibrated", "gaussian_standard", "gaussian_normalized", "gaussian_orthogonal", "pairs", "pool", "priced",
)  # fmt: skip


def sequential_mnist(folder: Path, seed: int, rows: int) -> list[TensorDataset]:
    """Training, validation and test rows ``(x [T, F] in [0, 1], y)``; ``rows`` of them in all."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset)
        for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    x = torch.tensor(images).reshape(-1, STEPS, PIXELS).float() / 255
    y = torch.tensor(labels).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:rows]
    cuts = order.split([rows - 2 * (rows // 5), rows // 5, rows // 5])
    return [TensorDataset(x[cut], y[cut]) for cut in cuts]


def accuracy(net: pl.LightningModule, data: TensorDataset) -> float:
    x, y = data.tensors
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's messages out of the table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Record(pl.Callback):
    """Validation accuracy at the start of training and after some epochs."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.validation: dict[int, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation[0] = accuracy(pl_module, self.data)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in EPOCHS:
            self.validation[trainer.current_epoch + 1] = accuracy(pl_module, self.data)


def train(name: str, hidden: list[int], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network, one way to start."""
    train_rows, validation, test = sequential_mnist(options.mnist, seed, options.rows)
    pl.seed_everything(seed, verbose=False)
    net, loader = LitSNN(PIXELS, hidden, lr=1e-3), DataLoader(train_rows, 128, shuffle=True)
    record, callbacks = Record(validation), []
    if name == SG[1]:
        calibrate(net, loader)
    elif name not in SG:
        kind: Any = name.split(",")[0]
        callbacks = [
            ConvexReconstruction(witnesses=kind, beta=options.beta, every_n_epochs=0, final_solve=False, seed=seed)
        ]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        callbacks=[*callbacks, record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started, processor = time.perf_counter(), time.process_time()
    work: list[int] = []
    run = Pricer.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        priced = run(*args, **(kwargs | ABLATIONS.get(name, {})))
        work.append(priced.work)
        return priced

    with mock.patch.object(Pricer, "run", counted), quiet():
        trainer.fit(net, loader)
    result: dict[str, Any] = {"validation": record.validation, "test": accuracy(net, test), "work": sum(work)}
    result |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - processor}
    for report in callbacks[0].reports if callbacks else []:
        result |= {"objective": report.primal, "accepted": report.accepted, "active": report.active}
        result |= {"seconds_patterns": report.seconds_patterns, "seconds_solve": report.seconds_solve}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of t10k-images-idx3-ubyte.gz and -labels-")
    parser.add_argument("--networks", nargs="+", default=["one layer"], choices=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", default=[*SG, *KINDS, *ABLATIONS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=max(EPOCHS))
    parser.add_argument("--rows", type=int, default=10_000, help="rows in all, for a quick look")
    parser.add_argument("--beta", type=float, default=0.015, help="one penalty for all, so that objectives compare")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; with more than one, times mean little")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"))
    futures = {
        (network, kind, seed): pool.submit(train, kind, NETWORKS[network], seed, options)
        for network in options.networks
        for kind in options.kinds
        for seed in options.seeds
    }
    settings = {"seeds": options.seeds, "beta": options.beta, "learning_rate": 1e-3, "batch": 128, "rows": options.rows}
    results: list[dict[str, Any]] = []
    epochs = [0, *(e for e in EPOCHS if e <= options.epochs)]
    table = Table(title=f"sequential MNIST, median of seeds {options.seeds}; validation accuracy in %")
    columns = [
        "network",
        "witnesses",
        *(f"ep {e}" for e in epochs),
        "test",
        "objective",
        "active",
        "work",
        "warm start",
    ]
    for column in columns:
        table.add_column(column, no_wrap=True)
    for network in options.networks:
        for kind in options.kinds:
            runs = [futures[network, kind, seed].result() for seed in options.seeds]
            validation = {e: round(100 * median(run["validation"][e] for run in runs), 1) for e in epochs}
            row: dict[str, Any] = {
                "network": network,
                "witnesses": kind,
                "validation": validation,
                "test": round(100 * median(run["test"] for run in runs), 1),
            }
            if kind not in SG:
                row |= {key: median(run[key] for run in runs) for key in ("objective", "active", "work")}
                row["warm_start"] = median(run["seconds_patterns"] + run["seconds_solve"] for run in runs)
            results.append({**row, "runs": runs})
            table.add_row(
                network,
                kind,
                *(str(a) for a in validation.values()),
                str(row["test"]),
                *(f"{row[k]:.3g}" if k in row else "-" for k in ("objective", "active", "work", "warm_start")),
            )
            print(f"{network}, {kind}: {validation}", flush=True)
            write("witnesses", settings | {"results": results}, folder=options.output)
    Console().print(table)


if __name__ == "__main__":
    main()
