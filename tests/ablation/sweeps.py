"""Small sweeps run by the command, and what they leave."""

import json
from pathlib import Path

import yaml

from lightning_cvxsnn.cli import main

ROOT = Path(__file__).parents[2]
LR = "model.init_args.lr"
BASE = {
    "model": {"class_path": "LitSNN", "init_args": {"hidden": [8]}},
    "data": "DigitsDataModule",
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 2, "limit_val_batches": 2},
}
MINE = """
import os
import signal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_cvxsnn import DigitsDataModule


class Broken(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("broken\\non purpose")


class Killed(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        import time
        time.sleep(2)


class Workers(DigitsDataModule):
    def train_dataloader(self):
        print("threads", torch.get_num_threads())
        return DataLoader(self.train, batch_size=64, num_workers=2)
"""


def write(**keys):
    Path("sweep.yaml").write_text(yaml.safe_dump({"base": BASE, "methods": ["sg"], **keys}, sort_keys=False))


def ablate(*arguments):
    """The exit status of the command."""
    try:
        main(["ablate", "-c", "sweep.yaml", "--output=run", "--jobs=2", *arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


def cells(run="run"):
    return {path.name: path for path in Path(run, "cells").iterdir()}


def states(run="run"):
    return {name: read(path, "state.json") for name, path in cells(run).items()}


def results(run="run"):
    """What does not depend on when and where a sweep ran."""
    found = {name: read(path, "result.json") for name, path in cells(run).items()}
    return {name: {k: v for k, v in result.items() if k != "cpu_seconds"} for name, result in found.items()}


def written(run="run"):
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(run).glob("cells/*/result.json")}


# -- one sweep --------------------------------------------------------------------------------------------------------
