"""What people make loaders of: datasets, samplers, collate functions and loader classes with state of their own."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    default_collate,
    get_worker_info,
)

ROWS, FEATURES, CLASSES = 60, 6, 3


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


# -- by name ------------------------------------------------------------------------------------------------------

DATASETS = {
    c.__name__: c for c in (Plain, Counting, Augmented, OwnGenerators, Whole, Stream, SizedStream, EndlessStream)
}
SAMPLERS = ("none", "shuffle", "shuffle by a generator", "weighted", "subset", "numpy", "old numpy", "python in a list",
            "torch in a dict", "nested", "endless", "unsized", "tuples", "dicts")  # fmt: skip
OWN = {"endless": Endless, "unsized": Unsized, "tuples": Tuples, "dicts": Dicts}
COLLATES = {"default": lambda: None, "counting": CountingCollate, "drawing": drawing_collate,
            "noisy": lambda: noisy_collate}  # fmt: skip
LOADERS = {c.__name__: c for c in (DataLoader, Subclass, Scaled, Short, Lasting)}
AROUND = {"Wrapper": Wrapper, "CombinedLoader": CombinedLoader}
