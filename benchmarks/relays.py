"""How many layers to train in front of relays: `python benchmarks/relays.py --data FOLDER` (ten minutes).

Deep networks of benchmarks/fair.py under `ConvexReconstruction()`, at 0.01 annealed to nothing, of which the first
one, two, three or four layers train, or all of them. Prints means over three seeds and writes results/relays.json,
where runs of other calls are kept.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from common import RESULTS, show, write
from fair import run
from fair_arms import OURS
from fair_choice import Cell
from fair_tasks import TASKS

from lightning_cvxsnn.reconstruction import holding

NETWORKS = ("mnist mean, 4 layers", "mnist1d_w5, 6 layers", "mnist mean, 9 layers", "mnist mean, 20 layers")
TRAINED = {"1": 1, "2": 2, "3": 3, "4": 4, "all": 1000}
SEEDS = (0, 1, 2)


def trained(task: str, layers: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy in % before training, after the first epoch and at the end, and CPU seconds."""
    cell = Cell(task, OURS, 0.01, "cosine", seed)
    with mock.patch.object(holding, "_TRAINED", TRAINED[layers]):
        points = run(cell, "default", min(TASKS[task].epochs, options.epochs), options)["points"]
    scores = {"start": points[0]["test"], "epoch 1": points[1]["test"], "end": points[-1]["test"]}
    return {"network": task, "trained": layers, "seed": seed} | scores | {"seconds": points[-1]["seconds"]}


def markdown(results: list[dict[str, Any]]) -> str:
    """Accuracy at the end and CPU seconds, means over seeds: a line for each network."""
    lines = [f"| network | {' | '.join(TRAINED)} |", "|---|" + "---|" * len(TRAINED)]
    for network in dict.fromkeys(row["network"] for row in results):
        cells = []
        for layers in TRAINED:
            runs = [row for row in results if (row["network"], row["trained"]) == (network, layers)]
            end, seconds = (mean(row[name] for row in runs) for name in ("end", "seconds"))
            cells.append(f"{end:.1f} ({seconds:.1f} s)")
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of mnist10k and series")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(TASKS), metavar="NETWORK")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=100, help="at most; for a quick look")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.output / "relays.json"
    results: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    for network in options.networks:
        for seed in options.seeds:
            for layers in TRAINED:
                if not any((row["network"], row["trained"], row["seed"]) == (network, layers, seed) for row in results):
                    results.append(trained(network, layers, seed, options))
                    write("relays", results, folder=options.output)
    show("test accuracy in %, by layers that train", results)
    print(markdown(results))


if __name__ == "__main__":
    main()
