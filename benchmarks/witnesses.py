"""Witness kinds against surrogate gradients (SG) from default and from calibrated weights, during training.

Each network is trained by Adam after one warm start with the kind of witnesses named and without further solves; the
two SG rows have no warm start. Validation accuracies are recorded on the way. Every run goes into
results/witnesses-<data>-<widths>.json as soon as it ends; runs found there, of the same settings, are kept.
`mnist`: the 10,000 MNIST test images as four steps of 196 pixels, cut into 6000 for training, 2000 for validation and
2000 for testing by a permutation of each seed; learning rate 1e-3, batch 128. With `--channels C` a convolution sees
the whole image in each of four steps instead: `Conv2d(1, C, 5, stride=2)`, LIF, `MaxPool2d(2)`, `Linear`; `--norm`
puts a batch norm between the first two. `digits`: scikit-learn's, eight steps of eight pixels; learning rate 1e-2,
batch 64.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, Row, accuracy, digits, sequential_mnist, show, trainer, write
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, LitSNN, calibrate
from lightning_cvxsnn.demo import quiet

FIGURES = ("test", "objective", "active", "candidates")
EPOCHS = (0, 5, 10, 12, 20, 40)
TRAINING = {"mnist": {"learning_rate": 1e-3, "batch": 128}, "digits": {"learning_rate": 1e-2, "batch": 64}}
SG = ("SG, default weights", "SG, calibrated weights")
KINDS = (
    "auto", "calibrated", "gaussian_standard", "gaussian_normalized", "gaussian_orthogonal", "pairs", "pool", "priced",
)  # fmt: skip


class Convolutional(pl.LightningModule):
    """One convolution, and the rows of an image put together again: ``[N, T, F]`` to ``[T, N, 1, 28, 28]``."""

    def __init__(self, channels: int, norm: bool, lr: float) -> None:
        super().__init__()
        self.lr = lr
        norms = [layer.BatchNorm2d(channels)] if norm else []
        self.net = nn.Sequential(
            layer.Conv2d(1, channels, 5, stride=2), *norms, neuron.LIFNode(surrogate_function=surrogate.ATan()),
            layer.MaxPool2d(2), layer.Flatten(), layer.Linear(36 * channels, 10),
        )  # fmt: skip
        functional.set_step_mode(self.net, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        image = x.reshape(1, len(x), 1, 28, 28)
        return self.net(image.expand(x.shape[1], -1, -1, -1, -1)).mean(0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Record(pl.Callback):
    """Validation accuracy and CPU seconds at the start of training and after some epochs."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.validation: dict[str, float] = {}
        self.started = time.process_time()
        self.cpu_seconds: dict[str, float] = {}

    def note(self, net: pl.LightningModule, epoch: int) -> None:
        if epoch in EPOCHS:
            self.cpu_seconds[str(epoch)] = time.process_time() - self.started
            self.validation[str(epoch)] = accuracy(net, self.data)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module, trainer.current_epoch + 1)


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network, one way to start."""
    if options.data == "mnist":
        train_rows, validation, test = sequential_mnist(options.mnist, seed, options.rows)
    else:
        train_rows, validation, test = digits(seed)
    training = TRAINING[options.data]
    pl.seed_everything(seed, verbose=False)
    net: pl.LightningModule = (
        Convolutional(options.channels, options.norm, training["learning_rate"])
        if options.channels
        else LitSNN(train_rows.tensors[0].shape[2], options.hidden, lr=training["learning_rate"])
    )
    loader = DataLoader(train_rows, int(training["batch"]), shuffle=True)
    callbacks: list[Any] = []
    record = Record(validation)
    if name == SG[1]:
        calibrate(net, loader)
    elif name not in SG:
        kind: Any = name
        callbacks = [
            ConvexReconstruction(witnesses=kind, beta=options.beta, every_n_epochs=0, final_solve=False, seed=seed)
        ]
    with quiet():
        trainer(options.epochs, [*callbacks, record]).fit(net, loader)
    result: dict[str, Any] = {"seed": seed, "epochs": options.epochs, "validation": record.validation}
    result |= {"test": accuracy(net, test), "cpu_seconds": record.cpu_seconds}
    for report in callbacks[0].reports if callbacks else []:
        result |= {"objective": report.primal, "accepted": report.accepted, "active": report.active}
        result |= {"candidates": report.candidates}
    return result


def summary(kind: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one kind's runs."""
    shared = [epoch for epoch in map(str, EPOCHS) if all(epoch in run["validation"] for run in runs)]
    row: dict[str, Any] = {
        "witnesses": kind,
        "validation": {epoch: round(100 * median(run["validation"][epoch] for run in runs), 1) for epoch in shared},
        "test": round(100 * median(run["test"] for run in runs), 1),
        "cpu_seconds": {
            epoch: round(median(run["cpu_seconds"][epoch] for run in runs), 1)
            for epoch in shared
            if all(epoch in run["cpu_seconds"] for run in runs)
        },
    }
    for key in FIGURES[1:]:
        if all(key in run for run in runs):
            row[key] = median(run[key] for run in runs)
    return {**row, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(TRAINING), default="mnist")
    parser.add_argument("--mnist", type=Path, help="folder of t10k-images-idx3-ubyte.gz and t10k-labels-")
    parser.add_argument("--hidden", nargs="+", type=int, default=[512], help="width of each hidden layer")
    parser.add_argument("--channels", type=int, help="of a convolution, instead of --hidden; mnist only")
    parser.add_argument("--norm", action="store_true", help="a batch norm behind the convolution")
    parser.add_argument("--kinds", nargs="+", default=[*SG, *KINDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=max(EPOCHS))
    parser.add_argument("--rows", type=int, default=10_000, help="MNIST rows in all, for a quick look")
    parser.add_argument("--beta", type=float, default=0.015, help="one penalty for all, so that objectives compare")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data == "mnist" and options.mnist is None:
        parser.error("--data mnist wants --mnist FOLDER")
    if options.data != "mnist" and options.channels:
        parser.error("--channels goes with --data mnist")
    if options.norm and not options.channels:
        parser.error("--norm goes with --channels")

    hidden = [f"conv{options.channels}" + "-norm" * options.norm] if options.channels else options.hidden
    name = "-".join(["witnesses", options.data, *map(str, hidden)])
    settings = {"hidden": hidden, "beta": options.beta, "rows": options.rows} | TRAINING[options.data]
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    path = options.output / f"{name}.json"
    if path.exists():
        earlier = json.loads(path.read_text())["results"]
        if all(earlier[key] == value for key, value in settings.items()):
            runs = {row["witnesses"]: {run["seed"]: run for run in row["runs"]} for row in earlier["results"]}
    for seed in options.seeds:
        for kind in options.kinds:
            runs.setdefault(kind, {})[seed] = train(kind, seed, options)
            rows = [summary(k, list(runs[k].values())) for k in sorted(runs, key=[*SG, *KINDS].index)]
            write(name, settings | {"results": rows}, folder=options.output)
    show(f"{options.data}, hidden {hidden}: medians over seeds; validation accuracy in %", list(map(shown, rows)), 200)


def shown(row: Row) -> Row:
    """A line of the table."""
    accuracies = {f"ep {epoch}": row["validation"].get(str(epoch)) for epoch in EPOCHS}
    spent = list(row["cpu_seconds"].values())
    seconds = {"CPU s, warm start": row["cpu_seconds"].get("0"), "CPU s": spent[-1] if spent else None}
    return {"witnesses": row["witnesses"]} | accuracies | {key: row.get(key) for key in FIGURES} | seconds


if __name__ == "__main__":
    main()
