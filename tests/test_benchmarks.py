import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def test_the_solver_benchmark_runs(tmp_path):
    pytest.importorskip("cvxpy")
    options = [
        "--quick",
        "--no-memory",
        "--parts",
        "table",
        "--problems",
        "xor-hinge-raw-0.1",
        "--solvers",
        "*Clarabel",
    ]
    command = [sys.executable, ROOT / "benchmarks/solvers.py", *options, "--output", tmp_path, "--mnist", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "MNIST rows are skipped" in result.stdout
    written = json.loads((tmp_path / "solvers.json").read_text())
    own, peer = written["results"]["table"]
    assert {own["solver"], peer["solver"]} == {"lightning_cvxsnn", "CVXPY+Clarabel"}
    assert own["suboptimality"] <= 1e-6
    assert "clarabel" in written["machine"]["versions"]


def test_the_pattern_benchmark_runs(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/patterns.py", "--quick", "--device", "cpu", "--output", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "patterns.json").read_text())
    assert "torch" in written["machine"]["versions"]
    assert written["results"]["copy_bandwidth"] > 0
    rows = written["results"]["rows"]
    assert {row["backend"] for row in rows} == {"torch", "spikingjelly"}
    assert all(row["seconds"] > 0 for row in rows)
    assert sum("scores" in row["what"] for row in rows) == 2


def test_the_witness_benchmark_runs(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 300).astype(np.uint8)
    images = np.zeros((300, 784), np.uint8)
    for label in range(10):
        images[labels == label, 70 * label : 70 * label + 70] = 150
    images += generator.integers(0, 99, images.shape).astype(np.uint8)
    for name, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + values.tobytes()))
    options = ["--mnist", tmp_path, "--rows", "300", "--seeds", "0", "--epochs", "1", "--output", tmp_path]
    kinds = ["--kinds", "SG, calibrated weights", "pairs"]
    command = [sys.executable, ROOT / "benchmarks/witnesses.py", *options, *kinds]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    trained, paired = json.loads((tmp_path / "witnesses-mnist-512.json").read_text())["results"]["results"]
    assert trained["witnesses"] == "SG, calibrated weights"
    assert paired["validation"]["0"] > 50 > trained["validation"]["0"]
    assert paired["runs"][0]["accepted"]
