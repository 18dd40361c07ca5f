"""Small networks from big ones: `python benchmarks/small_networks.py` (under a minute).

On scikit-learn's digits, means over three seeds. *Sparse*: the readout of a trained network is solved anew with L1 for
several penalties, and the units that it leaves out are pruned. *Converted*: an ANN turned into a spiking network by
spikingjelly, before and after `reconstruct`. *Probe*: hidden layers trained to tell even digits from odd ones, and a
new readout for the ten digits. Writes results/small_networks.json; with `--plot` also a picture.
"""

import argparse
import copy
import time
from pathlib import Path
from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from common import Row, accuracy, digits, show, trainer, write
from spikingjelly.activation_based import ann2snn, functional
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import LitSNN, prune, reconstruct
from lightning_cvxsnn.demo import quiet

SEEDS = (0, 1, 2)
WIDTH, EPOCHS = 256, 10
BETAS = (0.1, 0.03, 0.01, 0.003)
STEPS = (1, 2, 4, 8, 16)


def loader(part: TensorDataset) -> DataLoader:
    return DataLoader(part, batch_size=64, shuffle=True)


def trained(part: TensorDataset, classes: int = 10) -> LitSNN:
    """One hidden layer, trained with surrogate gradients."""
    net = LitSNN(hidden=[WIDTH], num_classes=classes)
    trainer(EPOCHS, []).fit(net, loader(part))
    return net


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def sparse(seed: int) -> list[Row]:
    """The trained readout, then solutions from ridge to a strong L1, pruned."""
    train, val, test = digits(seed)
    pl.seed_everything(seed, verbose=False)
    net = trained(train)
    rows = [{"readout": "trained", "units": WIDTH, "parameters": size(net), "test": 100 * accuracy(net, test)}]
    for ratio, beta in ((0.0, "auto"), *((1.0, beta) for beta in BETAS)):
        solved = copy.deepcopy(net)
        solved.readout.reset_parameters()  # a start that every solution is better than
        report = reconstruct(solved, loader(train), loader(val), l1_ratio=ratio, beta=beta, witnesses="keep")
        small = prune(solved, test.tensors[0][:8]) if ratio else solved
        name = f"L1, beta {beta}" if ratio else "ridge"
        row = {"readout": name, "units": small.readout.in_features, "parameters": size(small)}
        rows.append(row | {"test": 100 * accuracy(small, test), "gap": report.gap})
    return rows


class Converted(nn.Module):
    """A converted network, shown the image for some steps."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        return sum(self.net(x) for _ in range(self.steps)) / self.steps  # type: ignore[return-value]


def converted(seed: int) -> list[Row]:
    """An ANN of one hidden layer and the spiking networks that it becomes."""
    train, val, test = digits(seed)
    pl.seed_everything(seed, verbose=False)
    x, y = train.tensors
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(ann.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ann(x), y).backward()
        optimizer.step()
    recipe = ann2snn.RateCodingRecipe(dataloader=loader(train), mode="Max")
    snn = ann2snn.Converter(recipe).convert(ann.eval())
    rows = []
    for steps in STEPS:
        net = Converted(copy.deepcopy(snn), steps)
        before = 100 * accuracy(net, test)
        report = reconstruct(net, loader(train), loader(val), witnesses="keep")
        rows.append({"steps": steps, "converted": before, "reconstructed": 100 * accuracy(net, test)})
        rows[-1] |= {"ANN": 100 * accuracy(ann, test), "gap": report.gap}
    return rows


def probe(seed: int) -> list[Row]:
    """A new readout over hidden layers that were trained for another question."""
    train, val, test = digits(seed)
    pl.seed_everything(seed, verbose=False)
    parity = trained(TensorDataset(train.tensors[0], train.tensors[1] % 2), classes=2)
    net = LitSNN(hidden=[WIDTH])
    net.layers.load_state_dict(parity.layers.state_dict())
    for parameter in net.layers.parameters():
        parameter.requires_grad_(False)
    rows = [{"readout": "as constructed", "test": 100 * accuracy(net, test), "CPU seconds": 0.0}]
    adam, solved = copy.deepcopy(net), copy.deepcopy(net)
    started = time.process_time()
    trainer(EPOCHS, []).fit(adam, loader(train))
    seconds = time.process_time() - started
    rows.append({"readout": f"Adam, {EPOCHS} epochs", "test": 100 * accuracy(adam, test), "CPU seconds": seconds})
    started = time.process_time()
    report = reconstruct(solved, loader(train), loader(val), witnesses="keep")
    seconds = time.process_time() - started
    rows.append({"readout": "reconstruct", "test": 100 * accuracy(solved, test), "CPU seconds": seconds})
    return [*rows[:2], rows[2] | {"gap": report.gap}]


def averages(runs: list[list[Row]]) -> list[Row]:
    """Means over seeds of what is a number; of gaps the largest."""
    rows = []
    for same in zip(*runs, strict=True):
        values: Row = {}
        for key, first in same[0].items():
            each: list[Any] = [row[key] for row in same]
            if isinstance(first, str):
                values[key] = first
            else:
                values[key] = max(each) if key == "gap" else round(mean(each), 1)
        rows.append(values)
    return rows


def draw(results: dict[str, list[Row]], path: Path) -> None:
    """Accuracy over units left, and over time steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = results["sparse"]
    left.plot([r["units"] for r in rows[2:]], [r["test"] for r in rows[2:]], "o-", color="#0072b2", label="L1, pruned")
    left.plot(rows[1]["units"], rows[1]["test"], "s", color="#009e73", label="ridge, all units")
    left.plot(rows[0]["units"], rows[0]["test"], "x", color="#d55e00", label="trained readout")
    left.set(xlabel="hidden units left", ylabel="test accuracy, %", title="A sparse readout, pruned")
    left.set_xscale("log", base=2)
    steps = [r["steps"] for r in results["converted"]]
    for key, style in (("ANN", "k:"), ("converted", "x--"), ("reconstructed", "o-")):
        right.plot(steps, [r[key] for r in results["converted"]], style, label=key)
    right.set(xlabel="time steps", title="A converted network")
    right.set_xscale("log", base=2)
    right.set_xticks(steps, steps)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    print(f"drawn: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="draw into this file")
    options = parser.parse_args()
    with quiet():
        results = {part.__name__: averages([part(seed) for seed in SEEDS]) for part in (sparse, converted, probe)}
    for name, rows in results.items():
        show(f"{name}; means over {len(SEEDS)} seeds, accuracies in %", rows)
    write("small_networks", results)
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
