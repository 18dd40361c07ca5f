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
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.runtime.ranks import checksum

ROWS, BATCH, FEATURES, CLASSES = 60, 8, 6, 3


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


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(ROWS, FEATURES, generator=torch.Generator().manual_seed(0))
    return x, x[:, :CLASSES].argmax(1)


# -- datasets -----------------------------------------------------------------------------------------------------


class Plain(Dataset):
    """Rows by index; a tuple or a dict that a sampler gives holds the index."""

    def __init__(self) -> None:
        self.x, self.y = rows()

    def __len__(self):
        return ROWS

    def __getitem__(self, item):
        index = item["row"] if isinstance(item, dict) else item[0] if isinstance(item, tuple) else item
        return self.change(self.x[index]), self.y[index]

    def change(self, x):
        return x


class Counting(Plain):
    """Gives other rows the more often it was asked."""

    reads = 0

    def change(self, x):
        self.reads += 1
        return x + self.reads / 1000


class Augmented(Plain):
    """Draws from the three global generators."""

    def change(self, x):
        return x + 0.01 * (torch.rand(1) + np.random.rand() + random.random())


class OwnGenerators(Plain):
    """Draws from generators of its own, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = {"torch": torch.Generator().manual_seed(1), "numpy": [np.random.default_rng(2)]}

    def change(self, x):
        noise = torch.rand(1, generator=self.generators["torch"])
        return x + 0.01 * (noise + self.generators["numpy"][0].random())


class Whole(Plain):
    """Batches of five rows, made by the dataset."""

    def __len__(self):
        return ROWS // 5

    def __getitem__(self, index):
        return self.x[5 * index : 5 * index + 5], self.y[5 * index : 5 * index + 5]


class Stream(IterableDataset):
    """A stream that its workers share among them, with a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        x, y = rows()
        for index in range(first, ROWS, step):
            yield x[index] + 0.01 * torch.rand(1, generator=self.generator), y[index]


class SizedStream(Stream):
    """A stream that tells its length."""

    def __len__(self):
        return ROWS


class EndlessStream(Stream):
    """A stream without an end."""

    def __iter__(self):
        while True:
            yield from super().__iter__()


# -- samplers -----------------------------------------------------------------------------------------------------


class Permuting(Sampler):
    """A permutation by a generator that is held somewhere."""

    def __init__(self, how: str) -> None:
        self.held: Any = {
            "numpy": np.random.default_rng(4),
            "old numpy": np.random.RandomState(4),
            "python in a list": [random.Random(4)],
            "torch in a dict": {"inner": torch.Generator().manual_seed(4)},
            "nested": RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(4)),
        }[how]
        self.how, self.passes, self.epoch = how, 0, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def order(self):
        if self.how == "nested":
            return list(self.held)
        if self.how == "python in a list":
            return self.held[0].sample(range(ROWS), ROWS)
        if self.how == "torch in a dict":
            return torch.randperm(ROWS, generator=self.held["inner"]).tolist()
        return self.held.permutation(ROWS).tolist()

    def __iter__(self):
        self.passes += 1
        order = self.order()
        yield from order[self.passes + self.epoch :] + order[: self.passes + self.epoch]

    def __len__(self):
        return ROWS


class Endless(Permuting):
    """Permutations without end or length."""

    __len__ = None  # type: ignore[assignment]

    def __iter__(self):
        while True:
            yield from super().__iter__()


class Unsized(Permuting):
    """One permutation, without a length."""

    __len__ = None  # type: ignore[assignment]


class Tuples(Permuting):
    """Indices beside a size that is drawn."""

    def __iter__(self):
        yield from ((index, index % 3) for index in super().__iter__())


class Dicts(Permuting):
    """Items that have no order."""

    def __iter__(self):
        yield from ({"row": index} for index in super().__iter__())


class Buckets(Sampler):
    """Batches of different sizes, in another order at each pass, in one list that is used again."""

    def __init__(self) -> None:
        self.generator, self.passes = np.random.default_rng(5), 0

    def __iter__(self):
        self.passes += 1
        batch: list[int] = []
        for index in self.generator.permutation(ROWS).tolist():
            batch.append(index)
            if len(batch) == 5 + (index + self.passes) % 4:
                yield batch
                batch.clear()

    def __len__(self):
        return ROWS // 8


class OwnBatches(BatchSampler):
    """torch's, and a count of its passes that decides what comes first."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        batches = list(super().__iter__())
        yield from batches[self.passes :] + batches[: self.passes]


# -- collate functions and loaders --------------------------------------------------------------------------------


class CountingCollate:
    """Changes what it collates with each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, items):
        self.calls += 1
        x, y = default_collate(items)
        return x + self.calls / 1000, y


def drawing_collate():
    """A function with a generator, a count and a list in its closure."""
    generator, calls, sizes = np.random.default_rng(6), 0, []

    def collate(items):
        nonlocal calls
        calls += 1
        sizes.append(len(items))
        x, y = default_collate(items)
        return x + 0.01 * float(generator.random()) + calls / 1000 + sum(sizes) / 1e5, y

    return collate


def noisy_collate(items):
    """Draws from the global generators."""
    x, y = default_collate(items)
    return x + 0.01 * (torch.rand_like(x) + np.random.rand()), y


class Subclass(DataLoader):
    """A subclass that iterates as torch's does."""


class Scaled(DataLoader):
    """Changes batches after they were collated, more with each pass."""

    def __iter__(self):
        self.passes = getattr(self, "passes", 0) + 1
        for x, y in super().__iter__():
            yield x.flip(-1) * 2 - 0.1 * self.passes, y


class Short(DataLoader):
    """Says that an epoch has three batches."""

    def __len__(self):
        return 3


class Lasting(DataLoader):
    """Goes on after a pass, without an end or a length."""

    __len__ = None  # type: ignore[assignment]

    def __iter__(self):
        while True:
            yield from super().__iter__()


class Wrapper:
    """No DataLoader: an iterable around one."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.passes = loader, 0

    def __iter__(self):
        self.passes += 1
        for x, y in self.loader:
            yield x + self.passes / 1000, y

    def __len__(self):
        return len(self.loader)


# -- one combination ----------------------------------------------------------------------------------------------

DATASETS = {
    c.__name__: c for c in (Plain, Counting, Augmented, OwnGenerators, Whole, Stream, SizedStream, EndlessStream)
}
SAMPLERS = ("none", "shuffle", "shuffle by a generator", "weighted", "subset", "numpy", "old numpy", "python in a list",
            "torch in a dict", "nested", "endless", "unsized", "tuples", "dicts")  # fmt: skip
OWN = {"endless": Endless, "unsized": Unsized, "tuples": Tuples, "dicts": Dicts}
BATCH_SAMPLERS = ("none", "none", "none", "buckets", "own")
COLLATES = {"default": lambda: None, "counting": CountingCollate, "drawing": drawing_collate,
            "noisy": lambda: noisy_collate}  # fmt: skip
LOADERS = {c.__name__: c for c in (DataLoader, Subclass, Scaled, Short, Lasting)}
AROUND = {"Wrapper": Wrapper, "CombinedLoader": CombinedLoader}
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
