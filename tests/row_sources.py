"""Sources of training rows that are numbered, and loaders that are no plain ones."""

import torch
from networks import Net
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
)

from lightning_cvxsnn.network.rows import TrainingRows


def training_rows(dataloader, module=None, max_samples=None, seed=0):
    return TrainingRows(module or Net(), dataloader, transfer=lambda b: b, max_samples=max_samples, seed=seed)


def numbered(n=20, kind=DataLoader, **kwargs):
    dataset = TensorDataset(torch.arange(n).float()[:, None], torch.arange(n))
    return kind(kwargs.pop("dataset", dataset), **{"batch_size": 1 if "batch_sampler" in kwargs else 6} | kwargs)


class Negative(DataLoader):
    """Changes what it gives after it was collated."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield -x, y


class Around:
    """No DataLoader, but what gives batches of its own, another first one in each pass."""

    def __init__(self, loader, length=True):
        self.loader, self.passes = loader, 0
        if not length:
            self.__class__ = Unsized

    def __iter__(self):
        self.passes += 1
        yield from list(self.loader)[self.passes - 1 :]

    def __len__(self):
        return len(self.loader)


class Unsized(Around):
    __len__ = None


def order(batches):
    return torch.cat([batch.y for batch in batches]).tolist()


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), torch.tensor(0)
