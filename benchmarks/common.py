"""What the benchmarks share: results with the machine they come from, tables, data, training without messages."""

import importlib.metadata
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from lightning_cvxsnn import DigitsDataModule, SequentialMNISTDataModule

PACKAGES = ("torch", "lightning", "spikingjelly", "numpy", "scipy", "scikit-learn", "cvxpy")
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def describe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Processor, GPU, cores, threads, Python and the versions of the packages that are installed."""
    installed = {d.name.lower() for d in importlib.metadata.distributions()}
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return {
        "date": date.today().isoformat(),
        "processor": model,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }


def write(name: str, results: Any, packages: tuple[str, ...] = PACKAGES, folder: Path = RESULTS) -> None:
    """Write ``<folder>/<name>.json``."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(packages), "results": results}, indent=2) + "\n")
    print(f"written: {path}")


def show(title: str, rows: list[Row], width: int = 150) -> None:
    """Print rows of equal keys as one table: a column a key, floats with three digits, None as an empty cell."""
    if not rows:
        return
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=max(Console().width, width)).print(table)


def digits(seed: int) -> list[TensorDataset]:
    """Training, validation and test rows ``(x [8, 8] in [0, 1], y)`` of scikit-learn's digits."""
    data = DigitsDataModule(seed=seed)
    data.setup("fit")
    return [TensorDataset(*default_collate(list(part))) for part in (data.train, data.val, data.test)]


def sequential_mnist(folder: Path, seed: int, rows: int) -> list[TensorDataset]:
    """Training, validation and test rows ``(x [4, 196] in [0, 1], y)`` of MNIST; ``rows`` of them in all."""
    fifth = rows // 5
    data: Any = SequentialMNISTDataModule(str(folder), sizes=(rows - 2 * fifth, fifth, fifth), seed=seed)
    data.setup("fit")
    return [data.train, data.val, data.test]


def trainer(epochs: int, callbacks: list[Any], **arguments: Any) -> pl.Trainer:
    """A Trainer on the CPU that writes and shows nothing."""
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def accuracy(net: pl.LightningModule, *parts: TensorDataset) -> float:
    """Share of the rows of all parts together whose class has the largest output; the network's mode is kept."""
    mode = net.training
    net.eval()
    with torch.no_grad():
        right: list[Tensor] = [net(x).argmax(-1) == y for x, y in (part.tensors for part in parts)]
    net.train(mode)
    return float(torch.cat(right).float().mean())
