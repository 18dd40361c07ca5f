"""What only a GPU can show, in one command of at most eight minutes: `python benchmarks/gpu.py`.

    tests       the tests that need a CUDA device
    kernels     CuPy's patterns against torch's, bit for bit, over neurons, reductions and awkward sizes
    patterns    patterns per second (benchmarks/patterns.py)
    solvers     programmes from ridge to L1 on the device, certified there, and on the CPU for comparison

results/gpu.json is written after every row. `--device cpu --quick` is the same on tiny sizes without a GPU: kernels are
then torch's alone, and tests are skipped.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import patterns
import torch
from common import PACKAGES, RESULTS, Row, show, write
from problems import mixture

from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import resolve_backend, spike_patterns

ROOT = Path(__file__).parents[1]
WITH_GPU = ("tests/patterns/test_kernels.py", "tests/convex/test_cuda.py", "tests/training/test_cuda.py")
MINUTES = 8.0
TESTS = 200.0  # seconds that the tests may take of it
AWKWARD = [(1, 1, 1), (3, 5, 7), (4, 33, 65), (9, 1000, 129), (2, 7, 70_001)]  # steps, rows, columns
LIKE = {"cross_entropy": (1.0, 0.1, 0.0), "squared": (1.0, 0.0), "squared_hinge": (1.0, 0.0), "hinge": (1.0,)}
SIZES = [(2000, 256, 10), (6000, 1024, 10), (20_000, 4096, 10)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--device", default="cuda", help="'cpu': the same without a GPU")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for gpu.json")
    options = parser.parse_args(arguments)
    options.deadline = time.perf_counter() + 60 * MINUTES
    on_gpu = options.device != "cpu"
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(options.device) if on_gpu else "cpu"}
    for part in options.parts.split(","):
        results[part] = []
        for row in PARTS[part](options):
            results[part].append(row)
            write("gpu", results, (*PACKAGES, "cupy-cuda12x", "cupy-cuda13x"), options.output)
            if time.perf_counter() > options.deadline:
                break
        show(part, results[part])
    wrong = [row for part in ("tests", "kernels", "solvers") for row in results.get(part, []) if not row["right"]]
    if wrong:
        raise SystemExit(f"wrong: {json.dumps(wrong)}")


def tests(options: argparse.Namespace) -> Iterator[Row]:
    """All tests marked `gpu`; 5 is pytest's word for none."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *WITH_GPU]
    started = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS)
    if run.returncode not in (0, 5):
        print(run.stdout[-6000:])
    last = run.stdout.strip().splitlines()[-1]
    yield {"tests": last, "seconds": time.perf_counter() - started, "right": run.returncode in (0, 5)}


def kernels(options: argparse.Namespace) -> Iterator[Row]:
    """Patterns of the device's own backend against torch's on the CPU."""
    backend = resolve_backend("auto", options.device)
    for (name, make), kind in product(patterns.NEURONS.items(), patterns.KINDS):
        neuron, wrong = neuron_of(make()), 0
        for size in AWKWARD[:3] if options.quick else AWKWARD:
            currents = torch.randn(size, generator=torch.Generator().manual_seed(0))
            currents[..., 0] = 1.0  # ties
            expected = spike_patterns(neuron, currents, kind, "torch")
            found = spike_patterns(neuron, currents.to(options.device), kind, backend)
            wrong += int((found.to_dense() != expected.to_dense().to(options.device)).sum())
        yield {"neuron": name, "kind": kind, "backend": backend, "entries that differ": wrong, "right": wrong == 0}


def patterns_per_second(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of benchmarks/patterns.py."""
    device = torch.device(options.device)
    copied = patterns.copy_bandwidth(device, 2**20 if options.quick else 2**28, 3)
    for size in patterns.QUICK if options.quick else patterns.SIZES[device.type]:
        yield from patterns.compare(size, device, copied, 3)


def solvers(options: argparse.Namespace) -> Iterator[Row]:
    """Solutions on the device against those on the CPU, which are left out where they would take minutes."""
    for rows, columns, classes in [(200, 32, 3)] if options.quick else SIZES:
        dictionary, labels = mixture(rows, columns, classes, options.device)
        labels = labels.to(options.device)
        small = rows * columns <= 2**23
        for loss, ratios in LIKE.items():
            targets = torch.nn.functional.one_hot(labels).double() if loss == "squared" else labels
            for ratio in ratios:
                if loss == "hinge" and not small:
                    continue
                arguments: dict[str, Any] = {"loss": loss, "rho": 0.05 / columns**0.5, "l1_ratio": ratio}
                arguments |= {"fit_intercept": True, "max_seconds": 60.0}
                seconds, found = timed(partial(solve, dictionary, targets, **arguments), options.device)
                row: Row = {"loss": loss, "l1_ratio": ratio, "n, P, C": f"{rows}, {columns}, {classes}"}
                row |= {"algorithm": found.algorithm, "seconds": seconds, "gap": found.gap, "seconds on the CPU": None}
                row |= {"device": found.device, "right": found.converged}
                if small:
                    there = on_cpu(dictionary), targets.cpu()
                    row["seconds on the CPU"], same = timed(partial(solve, *there, **arguments), "cpu")
                    row["right"] &= abs(same.primal - found.primal) <= 2e-6 * max(same.primal, 1.0)
                yield row


def on_cpu(dictionary: Any) -> Any:
    """The same counts in the CPU's memory."""
    return type(dictionary)(dictionary.counts.cpu(), dictionary.scale, dictionary.packed_columns)


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall seconds of the second run."""
    run()
    patterns.synchronise(torch.device(device))
    started = time.perf_counter()
    result = run()
    patterns.synchronise(torch.device(device))
    return time.perf_counter() - started, result


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "tests": tests,
    "kernels": kernels,
    "patterns": patterns_per_second,
    "solvers": solvers,
}


if __name__ == "__main__":
    main()
