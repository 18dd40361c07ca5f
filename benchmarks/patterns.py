"""Spike patterns per second: `python benchmarks/patterns.py` (some minutes; `--quick` a few seconds).

For given input currents of M candidates on N rows and T steps: the kernels (on a CUDA device, with CuPy), the torch
path and spikingjelly's module followed by the reduction, as 0/1 bits (`last`, `membrane`) and counts (`mean`); then the
distinct columns of the dictionary. Bytes moved are those that must be: currents in, patterns out; they are compared
with what a copy of a large tensor moves on the same device. All backends must give the same patterns. Medians of
`--repeats` runs after one to warm up; results/patterns.json.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import PACKAGES, RESULTS, show, write
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import PatternKind, SpikeDictionary, resolve_backend, spike_patterns

KINDS: tuple[PatternKind, ...] = ("last", "membrane", "mean")
NEURONS = {
    "LIF tau 2, hard reset": lambda: neuron.LIFNode(2.0, step_mode="m"),
    "LIF tau 100, soft reset": lambda: neuron.LIFNode(100.0, decay_input=False, v_reset=None, step_mode="m"),
}
SIZES = {"cuda": [(4, 6000, 100_000), (8, 8192, 32_768)], "cpu": [(4, 6000, 2048), (8, 2000, 4096)]}
QUICK = [(4, 64, 100)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, two repeats")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for patterns.json")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.quick:
        options.repeats = min(options.repeats, 2)
    copied = copy_bandwidth(device, 2**20 if options.quick else 2**28, options.repeats)
    print(f"a copy moves {copied / 1e9:.1f} GB/s on {device}")
    rows = []
    for size in QUICK if options.quick else SIZES[device.type]:
        rows += compare(size, device, copied, options.repeats)
    show("spike patterns", rows)
    command = "python benchmarks/patterns.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    results = {"command": command, "load": os.getloadavg(), "device": str(device), "copy_bandwidth": copied}
    write("patterns", {**results, "rows": rows}, (*PACKAGES, "cupy-cuda12x", "cupy-cuda13x"), options.output)


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall time, the device's work included."""
    seconds = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, entries: int, repeats: int) -> float:
    """Bytes per second read and written by a copy of float32 ``entries``."""
    source = torch.zeros(entries, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, repeats)


def compare(size: tuple[int, int, int], device: torch.device, copied: float, repeats: int) -> list[dict[str, Any]]:
    """Every backend on currents of one size ``(T, N, M)``."""
    currents = torch.randn(size, device=device)
    backends = ["torch", "cupy"] if resolve_backend("auto", device) == "cupy" else ["torch"]
    rows = []
    for name, make in NEURONS.items():
        module = make()
        described = neuron_of(module)
        for kind in KINDS:
            expected = spike_patterns(described, currents, kind, "torch")
            moved = currents.nbytes + expected.counts.nbytes
            runs = {backend: partial(spike_patterns, described, currents, kind, backend) for backend in backends}
            if kind != "membrane":  # the module does not tell its voltage before the reset
                runs["spikingjelly"] = partial(of_module, module, currents, kind)
            if device.type == "cpu":  # on a GPU spikingjelly rounds by its own kernels
                for run in runs.values():
                    assert torch.equal(run().counts, expected.counts)
            elif "cupy" in runs:
                assert torch.equal(runs["cupy"]().counts, expected.counts)
            rows += rows_of(f"{kind}, {name}", size, runs, moved, device, copied, repeats)
    bits = SpikeDictionary((expected.counts > 0).to(torch.uint8)).packed()
    for storage, found in (("bits", bits), ("uint8", expected)):
        distinct = {"torch": found.distinct_columns}
        rows += rows_of(f"distinct columns of {storage}", size, distinct, found.counts.nbytes, device, copied, repeats)
    return rows


@torch.no_grad()
def of_module(module: torch.nn.Module, currents: Tensor, kind: PatternKind) -> SpikeDictionary:
    """What a user has without the scan: all spikes, then the reduction."""
    functional.reset_net(module)
    spikes = module(currents)
    if kind == "last":
        return SpikeDictionary(spikes[-1].to(torch.uint8)).packed()
    return SpikeDictionary(spikes.sum(0).to(torch.uint8), 1 / len(spikes))


def rows_of(
    what: str,
    size: tuple[int, int, int],
    runs: dict[str, Callable[[], Any]],
    moved: int,
    device: torch.device,
    copied: float,
    repeats: int,
) -> list[dict[str, Any]]:
    seconds = {name: seconds_of(run, device, repeats) for name, run in runs.items()}
    return [
        {
            "T, N, M": "{}, {}, {}".format(*size),
            "what": what,
            "backend": name,
            "seconds": taken,
            "candidates/s": size[2] / taken,
            "GB/s": moved / taken / 1e9,
            "of a copy": moved / taken / copied,
            "times torch": seconds["torch"] / taken if "torch" in seconds else None,
        }
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
