import json
import subprocess
import sys
from pathlib import Path

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
