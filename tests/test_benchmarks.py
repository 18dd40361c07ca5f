import gzip
import importlib
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent


def test_the_solver_benchmark_runs(tmp_path):
    """One row of the comparison, and the parts that a GPU is given, on the CPU."""
    pytest.importorskip("cvxpy")
    table = ["--problems", "xor-hinge-raw-0.1", "--solvers", "Clarabel"]
    options = ["--quick", "--device", "cpu", "--parts", "softmax_path,large,table", *table]
    command = [sys.executable, ROOT / "benchmarks/solvers.py", *options, "--output", tmp_path, "--mnist", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "MNIST rows are skipped" in result.stdout
    written = json.loads((tmp_path / "solvers.json").read_text())
    results = written["results"]
    assert results["device"] == "cpu"
    own, peer = results["table"]
    assert {own["solver"], peer["solver"]} == {"lightning_cvxsnn", "Clarabel"}
    assert own["suboptimality"] <= 1e-6
    if sys.platform == "linux":
        assert 0 <= own["peak MB"] < 500
        assert 0 <= peer["peak MB"] < 500
    first, second = results["large"]
    assert first["certified"]
    assert second["certified"]
    assert second["used"] > 0
    assert second["device"] == "cpu"
    assert second["objective"] < first["objective"]
    assert results["softmax_path"] == []
    assert "clarabel" in written["machine"]["versions"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are counted on Linux only")
def test_the_peak_of_memory_is_what_a_call_takes(tmp_path):
    pytest.importorskip("cvxpy")
    script = "import torch, solvers; print(solvers.grown(lambda: torch.ones(2**23, dtype=torch.float64)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(64, abs=2)


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
    assert sum("distinct" in row["what"] for row in rows) == 2


def test_what_a_gpu_would_show_runs_without_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = "kernels,patterns,solvers"  # the tests run anyway
    importlib.import_module("gpu").main(["--quick", "--device", "cpu", "--output", str(tmp_path), "--parts", parts])
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {row["backend"] for row in results["kernels"]} == {"torch"}
    assert all(row["right"] for part in ("kernels", "solvers") for row in results[part])
    assert {row["algorithm"] for row in results["solvers"]} > {"normal-equations", "ridge-newton", "working-set-newton"}
    assert len(results["patterns"]) > 10


@pytest.fixture
def mnist(tmp_path):
    """A folder of 300 images that tell their labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 300).astype(np.uint8)
    images = np.zeros((300, 784), np.uint8)
    for label in range(10):
        images[labels == label, 70 * label : 70 * label + 70] = 150
    images += generator.integers(0, 99, images.shape).astype(np.uint8)
    for name, shape, values in (("images-idx3", (300, 28, 28), images), ("labels-idx1", (300,), labels)):
        header = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return tmp_path


def test_the_layers_of_the_benchmarks_are_kept_and_the_same_each_time(mnist, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    layers = importlib.import_module("layers")
    one, other = (layers.Sources(mnist, mnist / name) for name in ("one", "other"))
    for make, sizes in (
        (layers.trained, (200, 16, 10)),
        (layers.random_layer, (200, 16)),
        (layers.random_layer, (400, 16)),
    ):
        dictionary, labels = make(one, *sizes)
        assert dictionary.shape == sizes[:2]
        assert len(labels) == sizes[0]
        assert 0.02 < dictionary.rate < 0.5
        for sources in (one, other):
            again, again_labels = make(sources, *sizes)
            assert again.counts.equal(dictionary.counts)
            assert again_labels.equal(labels)
    assert not layers.trained(one, 200, 16, 11)[0].counts.equal(layers.trained(one, 200, 16, 10)[0].counts)
    assert layers.regression(one, 200, 16, 3)[1].shape == (200, 3)


def test_the_benchmark_of_readouts_runs_and_keeps_what_is_there(mnist, monkeypatch):
    """A row of each loss."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    elastic_net = importlib.import_module("elastic_net")
    ours, chosen = (
        "lightning_cvxsnn",
        "ridge-60000,ridge-squared-ten-rhos,l1-random-0.03,l1-binary,l1-squared,hinge-0.1",
    )
    options = ["--quick", "--mnist", str(mnist), "--cache", str(mnist), "--output", str(mnist), "--repeats", "2"]
    options += ["--problems", chosen, "--no-memory"]
    options += ["--solvers", f"{ours},sklearn lbfgs,sklearn Ridge,sklearn Lasso,sklearn saga,celer*,HiGHS simplex"]

    def attempts():
        results = json.loads((mnist / "elastic_net_quick.json").read_text())["results"]
        found = {(row["problem"], row["solver"]): row["attempts"] for row in results["rows"] if row["attempts"]}
        return found, results["problems"]

    threads = torch.get_num_threads()
    try:
        elastic_net.main(options)
        found, problems = attempts()
        solved = {problem for problem, solver in found if solver == ours}
        assert solved == set(chosen.split(","))
        peers = {solver for _, solver in found} - {ours}
        assert {"sklearn lbfgs", "sklearn Ridge", "sklearn Lasso", "HiGHS simplex"} <= peers
        for (problem, solver), tried in found.items():
            assert -1e-9 <= elastic_net.error(tried[-1], problems[problem]) <= 1e-6, solver

        elastic_net.main(options)
        assert attempts()[0] == found
        elastic_net.main([*options, "--again", "--problems", "l1-binary"])
        new = attempts()[0]
        assert {key for key in found if new[key] != found[key]} == {key for key in found if key[0] == "l1-binary"}
    finally:
        torch.set_num_threads(threads)


def test_the_package_s_own_estimate_of_memory_is_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    elastic_net, problems = importlib.import_module("elastic_net"), importlib.import_module("problems")
    small, large = (
        elastic_net.estimate(problems.Problem("", torch.zeros(rows, 512), torch.arange(rows) % 10, "hinge", 0.1, True))
        for rows in (500, 5000)
    )
    assert 1 < small < large < 1000


@pytest.mark.slow
def test_two_checkouts_are_compared_in_pairs(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/pairs.py", ROOT, ROOT, "--quick", "--pairs", "1"]
    command += ["--mnist", tmp_path, "--output", tmp_path, "--problems", "xor-squared-raw-1,resolve-xor-squared-0.01"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not result.stderr, result.stderr
    rows = json.loads((tmp_path / "pairs.json").read_text())["results"]["rows"]
    assert [row["problem"] for row in rows] == ["xor-squared-raw-1", "resolve-xor-squared-0.01"]
    assert all(row["old"] > 0 and row["new"] > 0 for row in rows)


def test_the_solver_of_one_checkout_tells_its_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pairs = importlib.import_module("pairs")
    chosen = {"xor-squared-raw-1", "resolve-xor-squared-0.01", "path-xor-squared", "growth-200x16x4-hinge"}
    jobs = {name: job for name, job in pairs.jobs(tmp_path, quick=True) if name in chosen}
    assert jobs.keys() == chosen
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["where", *jobs])))
    pairs.serve(jobs)
    where, *seconds = capsys.readouterr().out.split()
    assert Path(where) == ROOT
    assert len(seconds) == len(chosen)
    assert all(float(each) > 0 for each in seconds)


def test_pairs_of_times_are_compared(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pairs = importlib.import_module("pairs")
    said = []

    class Fake:
        def __init__(self, factor):
            self.factor = factor

        def say(self, name):
            said.append(self.factor)
            return str(self.factor * len(said))

    row = pairs.compare([Fake(1.0), Fake(1.0)], "any", 4)
    assert row["pairs"] == 4
    assert 0.9 < row["new / old"] < 1.1
    assert pairs.compare([Fake(2.0), Fake(1.0)], "any", 5)["new / old"] < 0.6
    assert said[10:] != sorted(said[10:])


def test_the_benchmark_of_searches_runs(mnist):
    options = ["--mnist", mnist, "--rows", "300", "--seeds", "0", "--width", "32", "--betas", "0.01", "--output", mnist]
    command = [sys.executable, ROOT / "benchmarks/pricing.py", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    searches = {row["search"]: row for row in json.loads((mnist / "pricing.json").read_text())["results"]}
    assert set(searches) == {"priced", "priced, no ascent", "priced, no mutation", "pool"}
    assert searches["priced, no ascent"]["work"] < searches["priced"]["work"]
    assert searches["priced"]["accuracy"] > 50


def test_the_witness_benchmark_runs(mnist):
    options = ["--mnist", mnist, "--rows", "300", "--seeds", "0", "--epochs", "1", "--output", mnist]
    kinds = ["--kinds", "SG, calibrated weights", "pairs"]
    command = [sys.executable, ROOT / "benchmarks/witnesses.py", *options, *kinds]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    trained, paired = json.loads((mnist / "witnesses-mnist-512.json").read_text())["results"]["results"]
    assert trained["witnesses"] == "SG, calibrated weights"
    assert paired["validation"]["0"] > 50 > trained["validation"]["0"]
    assert paired["runs"][0]["accepted"]


def test_the_comparison_of_two_commits_tells_rounding_from_another_solution(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    same = importlib.import_module("same")
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    same.record(before, "solve, squared, no intercept")
    recorded = before.read_text()
    after.write_text(recorded)
    assert same.compare(before, after) == 0

    (case,) = json.loads(recorded).values()
    solution = case["steps"][0]
    primal = float.fromhex(solution["primal"])
    for field, value, failed in (
        ("primal", (primal * (1 + 1e-12)).hex(), 0),
        ("primal", (primal * (1 + 1e-8)).hex(), 1),
        ("active", solution["active"] + 1, 1),
    ):
        solution_changed = solution | {field: value}
        after.write_text(json.dumps({"case": case | {"steps": [solution_changed, *case["steps"][1:]]}}))
        before.write_text(json.dumps({"case": case}))
        assert same.compare(before, after) == failed
        assert f"solve 0: {field} " in capsys.readouterr().out

    after.write_text("{}")
    assert same.compare(before, after) == 1


def test_the_networks_benchmark_runs(tmp_path):
    """Some of the forty, of which one is refused; what is recorded is not run again."""
    chosen = ["speech_commands", "GRU", "Conv-BN", "Recurrent containers", "Parametric LIF"]
    command = [sys.executable, ROOT / "benchmarks/networks.py", "--output", tmp_path]
    for name in chosen:
        command += ["--only", name]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "networks.json").read_text())["results"]
    refused = [row["network"] for row in rows if row["verdict"] == "refused"]
    assert refused == ["Parametric LIF net, MNIST, batch 8"]
    assert [row["verdict"] for row in rows].count("works") == len(chosen) - 1
    assert all(bool(row["refusal"]) == (row["verdict"] == "refused") for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_of_small_networks_runs_and_draws(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("small_networks")
    for name, value in {"EPOCHS": 8, "WIDTH": 64, "BETAS": (0.1, 0.03), "STEPS": (2, 4)}.items():
        monkeypatch.setattr(module, name, value)
    results = {part.__name__: module.averages([part(0)]) for part in (module.sparse, module.converted, module.probe)}
    trained, ridge, few, more = results["sparse"]
    assert trained["units"] == ridge["units"] == 64 > more["units"] > few["units"]
    assert ridge["test"] > trained["test"]
    coarse, fine = results["converted"]
    assert coarse["reconstructed"] > coarse["converted"]
    assert fine["converted"] > coarse["converted"]
    assert results["probe"][2]["test"] > results["probe"][1]["test"]
    module.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_benchmark_of_relays_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("relays")
    asked = ["--networks", "digits, 9 layers", "--seeds", "0", "--epochs", "1", "--output", str(tmp_path)]
    trained, run = [], module.run
    monkeypatch.setattr(module, "run", lambda *a: trained.append(module.holding._TRAINED) or run(*a))
    module.main(asked)
    assert trained == [1, 2, 3, 4, 1000]
    results = json.loads((tmp_path / "relays.json").read_text())["results"]
    assert [row["trained"] for row in results] == list(module.TRAINED)
    assert len({row["start"] for row in results}) == 1
    assert module.markdown(results) in capsys.readouterr().out
    module.main(asked)  # nothing is run again
    assert json.loads((tmp_path / "relays.json").read_text())["results"] == results
