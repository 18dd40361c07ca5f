"""What becomes of a network that nobody tuned? `python benchmarks/random_configurations.py --data FOLDER`.

Thirty configurations are drawn, once and for all: learning rate, membrane time constant, threshold, reset, depth, width
and biases, half of them for scikit-learn's digits and half for 3000 rows of MNIST. Each is trained by surrogate
gradients (SG) from default and from calibrated weights, and with `ConvexReconstruction()`, from one seed for all three
and at the rate that was drawn. What counts is the worst tenth of the ends: those three networks of each arm that did
worst, which need not be the same.

Scores are percentages of test rows. results/random_configurations.json is written after every run; what is there is
not run again.
"""

import argparse
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning.pytorch as pl
import torch
from common import PACKAGES, RESULTS, Row, show, trainer, write
from fair import Curve
from fair_arms import ARMS, CALIBRATED, OURS, SG, prepare
from fair_tasks import Task, digits, sequential_mnist, stack
from spikingjelly.activation_based import neuron
from torch.utils.data import DataLoader

from lightning_cvxsnn.demo import quiet

COUNT = 30
WORST = 3  # a tenth of them
NAME = "random_configurations"
SIZES = {"digits": (1097, 350, 15, 64), "MNIST": (3000, 500, 8, 64)}  # rows to train and validate on, epochs, batch


def drawn(number: int) -> Row:
    """A configuration: even numbers are digits."""
    dice = random.Random(number)

    def between(low: float, high: float) -> float:
        return low * (high / low) ** dice.random()

    return {
        "data": ("digits", "MNIST")[number % 2],
        "rate": between(3e-4, 3e-2),
        "tau": between(1.2, 20),
        "threshold": between(0.3, 3),
        "reset": dice.choice(("hard", "soft")),
        "depth": dice.randint(1, 12),
        "width": round(between(32, 256)),
        "biases": dice.random() < 0.5,
    }


def network(inputs: int, chosen: Row) -> Any:
    """The network of a configuration."""
    net = stack(inputs, [chosen["width"]] * chosen["depth"], biases=chosen["biases"])
    for part in net.layers:
        if isinstance(part, neuron.LIFNode):
            part.tau, part.v_threshold = chosen["tau"], chosen["threshold"]
            part.v_reset = 0.0 if chosen["reset"] == "hard" else None
    net.lr = chosen["rate"]
    return net


def task(chosen: Row) -> Task:
    """Its rows, its network and how long it trains."""
    pool, inputs = (digits, 8) if chosen["data"] == "digits" else (sequential_mnist, 196)
    training, validation, epochs, batch = SIZES[chosen["data"]]
    return Task(pool, (training, validation), partial(network, inputs, chosen), epochs, batch)


def run(number: int, name: str, folder: Path, longest: int) -> Row:
    """Train a configuration in an arm; test scores before training and at the end."""
    chosen, arm = drawn(number), ARMS[name]
    what, seed = task(chosen), number
    training, validation, test = what.cut(folder, seed)
    pl.seed_everything(seed, verbose=False)
    net, loader = what.network(), DataLoader(training, what.batch, shuffle=True)
    epochs = min(what.epochs, longest)
    curve = Curve(what, epochs, {"test": test})
    curve.looks.clear()
    with quiet():
        prepare(net, "calibrated" if name == CALIBRATED else "default", training, loader)
        callbacks = [arm.callback(training, len(loader))] if arm.callback else []
        trainer(epochs, [*callbacks, curve], num_sanity_val_steps=0).fit(net, loader, DataLoader(validation, 500))
    curve.pause()
    curve.look(net, epochs)
    start, end = curve.points
    return {"number": number, "arm": name, "start": start["test"], "end": end["test"], "seconds": end["seconds"]}


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line for each arm, of the configurations that all arms have run."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    every = [{row["number"] for row in rows if row["arm"] == arm} for arm in arms]
    both = set.intersection(*every) if every else set()
    lines: list[Row] = []
    for arm in arms:
        ends = sorted(row["end"] for row in rows if row["arm"] == arm and row["number"] in both)
        if ends:
            figures = {"worst tenth": mean(ends[:WORST]), "worst": ends[0], "median": median(ends), "mean": mean(ends)}
            lines.append({"training": arm, "networks": len(ends)} | figures)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of mnist10k")
    parser.add_argument("--count", type=int, default=COUNT, help="so many of the configurations")
    parser.add_argument("--epochs", type=int, default=100, help="at most; for a quick look")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.output / f"{NAME}.json"
    rows: list[Row] = json.loads(path.read_text())["results"] if path.exists() else []
    known = {(row["number"], row["arm"]) for row in rows}
    for number in range(options.count):
        for arm in (SG, CALIBRATED, OURS):
            if (number, arm) not in known:
                rows.append(run(number, arm, options.data, options.epochs))
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
                write(NAME, rows, PACKAGES, options.output)
    show("test accuracy at the end, %", summary(rows))


if __name__ == "__main__":
    main()
