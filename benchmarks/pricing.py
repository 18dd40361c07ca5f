"""Searches for witnesses at equal work: column generation, without its parts, and the best of a pool.

One hidden layer, one certified solve, no training. For each penalty `priced` is run first; `pool` then gets as many
candidates as its work pays for. Prints means over seeds and writes results/pricing.json: accuracy of validation and
test rows together, the certified objective on the training rows, units in use, and work (candidates times samples run
forward; a step of the ascent counts three). `beta auto` chooses its own penalty, so its objectives do not compare. The
data is that of witnesses.py: 10,000 MNIST images, 6000 of them for training.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, accuracy, sequential_mnist, write
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_cvxsnn import LitSNN, reconstruct
from lightning_cvxsnn.demo import quiet
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import capture_programme
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.column_generation import ColumnGeneration
from lightning_cvxsnn.witnesses.kinds import WitnessOptions
from lightning_cvxsnn.witnesses.layer_search import LayerSearchSettings
from lightning_cvxsnn.witnesses.proposers import propose_units
from lightning_cvxsnn.witnesses.search import SearchResult
from lightning_cvxsnn.witnesses.units import Units

SEARCHES = {
    "priced": LayerSearchSettings(),
    "priced, no ascent": LayerSearchSettings(ascent_steps=0),
    "priced, no mutation": LayerSearchSettings(mutated=0.0),
}


def search(net: LitSNN, loader: DataLoader, settings: LayerSearchSettings, beta: Any, seed: int) -> SearchResult[Units]:
    """Write the units that a search finds into the network's hidden layer."""
    network = Network(net, rows_of(net, loader, seed=seed))
    with isolate_rng(), undisturbed(net):
        net.eval()
        programme = capture_programme(
            network, loss="cross_entropy", seed=seed, progress=no_progress, stage="patterns as found"
        )
        assert programme is not None
        proposer = propose_units(network, programme, WitnessOptions("priced", seed, "auto", "cross_entropy"), settings)
        found = ColumnGeneration(proposer).search(None if beta == "auto" else beta / proposer.width**0.5)
        proposer.write(network, found)
    return found


def start(settings: LayerSearchSettings, beta: Any, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The network that one search leaves, after its solve."""
    train, *others = sequential_mnist(options.mnist, seed, options.rows)
    pl.seed_everything(seed, verbose=False)
    net = LitSNN(train.tensors[0].shape[2], [options.width])
    loader = DataLoader(train, 128)
    with quiet():
        found = search(net, loader, settings, beta, seed)
        report = reconstruct(net, loader, witnesses="keep", beta=found.rho * options.width**0.5, seed=seed)
    right = mean(accuracy(net, rows) for rows in others)
    work = found.candidate_passes
    return {"accuracy": 100 * right, "objective": report.primal, "active": report.active, "work": work}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mnist", type=Path, required=True, help="folder of t10k-images-idx3-ubyte.gz and t10k-labels-"
    )
    parser.add_argument("--betas", nargs="+", default=["0.01", "0.03", "0.1", "auto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=512, help="units of the hidden layer")
    parser.add_argument("--rows", type=int, default=10_000, help="MNIST rows in all, for a quick look")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    training = options.rows - 2 * (options.rows // 5)
    table = Table("beta", "search", "accuracy", "objective", "active", "work, millions", title="means over seeds")
    results = []
    for text in options.betas:
        beta: Any = text if text == "auto" else float(text)
        searches = {
            name: [start(settings, beta, seed, options) for seed in options.seeds]
            for name, settings in SEARCHES.items()
        }
        pool = round(mean(run["work"] for run in searches["priced"]) / training / options.width) * options.width
        searches["pool"] = [start(LayerSearchSettings(pool=pool), beta, seed, options) for seed in options.seeds]
        for name, runs in searches.items():
            row = {key: mean(run[key] for run in runs) for key in runs[0]}
            results.append({"beta": text, "search": name, **row, "runs": runs})
            cells = (
                f"{row['accuracy']:.1f}",
                f"{row['objective']:.3f}",
                f"{row['active']:.0f}",
                f"{row['work'] / 1e6:.0f}",
            )
            table.add_row(text, name, *cells)
            write("pricing", results, folder=options.output)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
