"""A fuzz of data loaders: with ``dry_run=True`` a fit is bit for bit the one without the callback, or it is refused.

``python benchmarks/loaders.py`` draws 200 combinations of dataset, sampler, batch sampler, collate function, workers,
``drop_last``, ``max_samples``, loader class, ``limit_train_batches`` and ``overfit_batches``, and fits each twice.
Compared are the batches that ``training_step`` received, the weights, the global random number generators, every
generator and counter of the loader, and what the loader gives next.
"""

import argparse
import logging
import random
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import common
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from loader_parts import (
    AROUND,
    CLASSES,
    COLLATES,
    DATASETS,
    FEATURES,
    LOADERS,
    OWN,
    ROWS,
    SAMPLERS,
    Buckets,
    OwnBatches,
    Permuting,
)
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.runtime.ranks import checksum

BATCH = 8


class Net(pl.LightningModule):
    """``Linear-LIF`` and a readout, and a checksum of each batch that it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(layer.Linear(FEATURES, 8, step_mode="m"), neuron.LIFNode(step_mode="m"))
        self.readout = layer.Linear(8, CLASSES, step_mode="m")
        self.batches: list[str] = []

    def forward(self, x):
        self.hidden[1].reset()
        return self.readout(self.hidden(x.expand(4, *x.shape) * 3)).mean(0)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.batches.append(checksum(x, y))
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


BATCH_SAMPLERS = ("none", "none", "none", "buckets", "own")
BOUNDS: tuple[dict[str, Any], ...] = ({}, {}, {"limit_train_batches": 3}, {"limit_train_batches": 0.5},
                                      {"overfit_batches": 2}, {"overfit_batches": 0.4})  # fmt: skip
PARTS = ("dataset", "sampler", "batch sampler", "collate", "workers", "drop_last", "max_samples", "loader", "bound")


def draw(rng: random.Random) -> dict[str, Any]:
    """One combination."""
    dataset = rng.choice(["Plain", "Plain", *DATASETS])
    workers = rng.choice([0] * 8 + [1, 2])
    return {
        "dataset": dataset,
        "sampler": rng.choice(SAMPLERS),
        "batch sampler": rng.choice(BATCH_SAMPLERS),
        "collate": rng.choice(list(COLLATES)),
        "workers": workers,
        "persistent": bool(workers) and rng.random() < 0.5,
        "drop_last": rng.random() < 0.3,
        "max_samples": rng.choice([None, None, 30]),
        "loader": rng.choice(["DataLoader", "DataLoader", *LOADERS, *AROUND]),
        "bound": rng.choice(BOUNDS),
    }


def make(spec: dict[str, Any]) -> Any:
    """The loader of a combination; what a kind of dataset does not allow is left out."""
    dataset = DATASETS[spec["dataset"]]()
    options: dict[str, Any] = {"num_workers": spec["workers"], "persistent_workers": spec["persistent"]}
    options["prefetch_factor"] = 3 if spec["persistent"] else None
    if spec["dataset"] == "Whole":
        options |= {"batch_size": None, "shuffle": spec["sampler"] != "none"}
    else:
        options |= {"batch_size": BATCH, "drop_last": spec["drop_last"], "collate_fn": COLLATES[spec["collate"]]()}
        if not isinstance(dataset, IterableDataset):
            options |= sampling(spec)
    loader = LOADERS.get(spec["loader"], DataLoader)(dataset, **options)
    return AROUND[spec["loader"]](loader) if spec["loader"] in AROUND else loader


def sampling(spec: dict[str, Any]) -> dict[str, Any]:
    """The sampler, or the batch sampler, of a map-style dataset."""
    kind = spec["sampler"]
    if spec["batch sampler"] == "buckets":
        return {"batch_sampler": Buckets(), "batch_size": 1, "drop_last": False}
    if spec["batch sampler"] == "own":
        inner = RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(7))
        return {"batch_sampler": OwnBatches(inner, BATCH, spec["drop_last"]), "batch_size": 1, "drop_last": False}
    if kind.startswith("shuffle"):
        generator = torch.Generator().manual_seed(8) if kind != "shuffle" else None
        return {"shuffle": True, "generator": generator}
    if kind == "weighted":
        return {"sampler": WeightedRandomSampler(torch.arange(1.0, ROWS + 1), 50)}
    if kind == "subset":
        return {"sampler": SubsetRandomSampler(range(0, ROWS, 2), generator=torch.Generator().manual_seed(9))}
    return {} if kind == "none" else {"sampler": OWN.get(kind, Permuting)("numpy" if kind in OWN else kind)}


def state(thing: Any, seen: dict[int, Any] | None = None) -> Any:
    """Every generator, counter and array that a loader holds, in closures too."""
    seen = {} if seen is None else seen
    if id(thing) in seen:
        return None
    seen[id(thing)] = thing
    if isinstance(thing, torch.Generator):
        return checksum(thing.get_state())
    if isinstance(thing, np.random.Generator):
        return str(thing.bit_generator.state)
    if isinstance(thing, np.random.RandomState):
        return str(thing.get_state())
    if isinstance(thing, random.Random):
        return hash(thing.getstate())
    if isinstance(thing, torch.Tensor):
        return checksum(thing)
    if isinstance(thing, dict):
        return {str(key): state(value, seen) for key, value in thing.items() if key != "_iterator"}
    if isinstance(thing, (list, tuple)):
        return [state(value, seen) for value in thing]
    if isinstance(thing, (int, float, str, type(None))):
        return thing
    if hasattr(thing, "__closure__"):
        return [state(cell.cell_contents, seen) for cell in thing.__closure__ or ()]
    return state(vars(thing), seen) if type(thing).__module__ != "builtins" and hasattr(thing, "__dict__") else None


def next_batches(loader: Any) -> list[str]:
    """What the loader gives next."""
    if isinstance(loader, CombinedLoader):
        loader = loader.iterables
    return [checksum(x, y) for x, y in islice(loader, 4)]


def fit(spec: dict[str, Any], callbacks: list[pl.Callback]) -> dict[str, Any]:
    """One epoch, and all that it left."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    net, loader = Net(), make(spec)
    endless = spec["bound"] == {} and (spec["dataset"] == "EndlessStream" or spec["loader"] == "Lasting")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=12 if endless or spec["sampler"] == "endless" else -1,
        callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **spec["bound"],
    )  # fmt: skip
    trainer.fit(net, loader)
    return {
        "batches": net.batches,
        "weights": checksum(*net.parameters()),
        "global": [checksum(torch.get_rng_state()), str(np.random.get_state()), hash(random.getstate())],
        "loader": state(loader),
        # Persistent workers that a limit stops give what is ready: not the same in two runs without the callback.
        "next": [] if spec["persistent"] else next_batches(loader),
    }


def compare(spec: dict[str, Any]) -> dict[str, Any] | None:
    """What became of a combination; None where Lightning does not train on it."""
    try:
        without = fit(spec, [])
    except Exception:  # whatever Lightning and torch say about a combination
        return None
    callback = ConvexReconstruction(
        beta=0.05, dry_run=True, max_overhead=None, witnesses="keep", max_samples=spec["max_samples"]
    )
    try:
        found = fit(spec, [callback])
    except MisconfigurationException as error:
        return {**spec, "outcome": "refused", "why": str(error)}
    differ = [part for part in without if without[part] != found[part]]
    solved = [report.rows for report in callback.reports]
    return {**spec, "outcome": "different" if differ else "same", "why": ", ".join(differ), "solved": solved}


def fuzz(count: int, seed: int) -> list[dict[str, Any]]:
    """The first ``count`` combinations that Lightning trains on."""
    rng, results = random.Random(seed), []
    while len(results) < count:
        if result := compare(draw(rng)):
            results.append(result)
            print(len(results), result["outcome"], result["why"], flush=True)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """How many combinations of each kind ran, and why others were refused."""
    lines = ["| part | kind | ran | refused | different |", "|---|---|---|---|---|"]
    for part in PARTS:
        for kind in sorted({str(result[part]) for result in results}):
            found = Counter(result["outcome"] for result in results if str(result[part]) == kind)
            lines.append(f"| {part} | {kind} | {found['same']} | {found['refused']} | {found['different']} |")
    lines += [f"{count} x {why}" for why, count in Counter(r["why"] for r in results if r["why"]).most_common()]
    return "\n".join(lines)


def main() -> None:
    """Fuzz, print the table, and write ``loaders.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=common.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results = fuzz(arguments.count, arguments.seed)
    print(table(results))
    outcomes = Counter(result["outcome"] for result in results)
    print(dict(outcomes))
    common.write("loaders", {"seed": arguments.seed, **outcomes, "combinations": results}, folder=arguments.output)
    if outcomes["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
