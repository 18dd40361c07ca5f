"""The paper's tasks from end to end: their configurations and their benchmark."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_cvxsnn.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.num_sanity_val_steps=0"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cvxsnn"])  # LightningCLI looks


def write_digits(folder):
    """MNIST's files, of 250 images in each of which a bar stands where its label says."""
    folder.mkdir()
    labels = np.arange(250, dtype=np.uint8) % 10
    images = np.zeros((250, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] = 200
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))


@pytest.mark.parametrize("task", ["xor", "addition", "mnist"])
def test_the_configuration_trains_and_tests(task, tmp_path, capsys):
    small = [*SMALL, "--data.sizes=[100, 50, 50]", "--model.width=20", "--model.last_width=40"]
    if task == "mnist":
        write_digits(tmp_path / "images")
        small.append("--data.folder=images")
    config = f"--config={ROOT}/examples/configs/paper/{task}.yaml"
    main(["fit", config, *small])
    (checkpoint,) = tmp_path.rglob("*epoch=0*.ckpt")
    capsys.readouterr()
    main(["test", config, *small, f"--ckpt_path={checkpoint}", "--trainer.default_root_dir=test"])
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    assert ("test_accuracy_50_digits" in printed) == (task == "addition")


def test_the_benchmark_runs(tmp_path):
    options = ["--sizes", "100", "50", "50", "--epochs", "1", "--output", tmp_path]
    for arguments in (
        ["xor", "--steps", "4", "--depths", "3", "--methods", "SG, calibrated"],
        ["addition", "--bases", "2", "--neurons", "leak 0.1", "--methods", "random CVX"],
    ):
        command = [sys.executable, ROOT / "benchmarks/tasks.py", *arguments, *options]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    xor, addition = json.loads((tmp_path / "tasks.json").read_text())["results"]
    assert 0.3 < xor["test"] <= 1
    assert addition["test"]["5"] > 0.9
    assert set(addition["test"]) == {"5", "10", "25", "50"}


def table_rows(cells):
    """The lines of the tables in docs/pages/tasks.md."""
    rows = []
    for cell in cells:
        if cell["task"] == "xor":
            words = [f"T = {cell['steps']}, L = {cell['depth']}", cell["method"], cell["epochs"]]
            words += [f"{100 * cell['test']:.1f}"]
        else:
            words = [f"base {cell['base']}, {cell['neuron']}", cell["method"], cell["epochs"]]
            words += [f"{100 * cell['test'][digits]:.2f}" for digits in ("5", "10", "25", "50")]
        rows.append("| " + " | ".join(map(str, [*words, f"{cell['cpu_seconds']:.0f}"])) + " |")
    return rows


def test_the_tables_of_the_docs_are_the_committed_results():
    cells = json.loads((ROOT / "benchmarks/results/tasks.json").read_text())["results"]
    lines = (ROOT / "docs/pages/tasks.md").read_text().splitlines()
    written = [line for line in lines if line.startswith(("| T = ", "| base "))]
    assert sorted(written) == sorted(table_rows(cells))
