"""Which batches one epoch of a data loader reads, found without moving the loader."""

import copy
import random
from collections.abc import Callable
from itertools import chain, islice
from math import inf
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from lightning_cvxsnn.network.batches import Chosen, Composed, Followed, Held
from lightning_cvxsnn.network.copies import Original
from lightning_cvxsnn.network.sampling import in_order, random_subset
from lightning_cvxsnn.runtime.memory import available_memory
from lightning_cvxsnn.runtime.ranks import Ranks
from lightning_cvxsnn.runtime.rng import isolate_rng

_ITERATION = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")  # of a DataLoader
_PASSES = 10  # of the dataset, after which a sampler without a length is taken to have no end


class Epoch:
    """What is read of a loader.

    Args:
        limit: Batches of an epoch, as the Trainer counts them; None: there is no Trainer.
        max_samples: Rows to use; None: all.
        seed: Seed of the rows that are chosen, and of what reading draws.
        ranks: The processes that train together.
        count: Rows of a batch as the loader gives it.
    """

    def __init__(
        self, *, limit: float | None, max_samples: int | None, seed: int, ranks: Ranks, count: Callable[[Any], int]
    ) -> None:
        self.limit, self.max_samples, self.seed, self.ranks, self.count = limit, max_samples, seed, ranks, count

    def batches(self, dataloader: Any) -> Held:
        """The batches of one epoch, of at most ``max_samples`` rows.

        Raises:
            MisconfigurationException: If they cannot be read without disturbing training, or may have no end.
        """
        if isinstance(dataloader, CombinedLoader):
            dataloader = dataloader.iterables
        if isinstance(dataloader, DataLoader) and _torchs_own(dataloader):
            return self._indexed(dataloader)
        if isinstance(dataloader, (list, tuple)) and dataloader and self.limit is None:
            if not any(isinstance(batch, DataLoader) for batch in dataloader):
                if self.max_samples is None:
                    return Held(dataloader)
                return Held(self._first(Held(random_subset(dataloader, len(dataloader), self.seed))))
        elif not isinstance(dataloader, (list, tuple, dict)):
            return self._followed(dataloader)
        raise MisconfigurationException(
            f"The training data comes from {_describe(dataloader)}. Expected one torch DataLoader over a dataset "
            "with a length, or a non-empty list of batches, which can be read again without disturbing training."
        )

    def _first(self, batches: Held) -> list[Any]:
        """The first batches that hold ``max_samples`` rows, in memory; all where there is no such bound."""
        first: list[Any] = []
        rows = 0
        with isolate_rng():
            seed_generators(self.seed)
            for batch in batches.read(self.seed):
                first.append(batch)
                if self.max_samples is not None:
                    rows += self.count(batch)
                    if rows >= self.max_samples:
                        break
                elif len(first) == 1:
                    _check_held(batch, len(batches))
        return first

    def _followed(self, iterable: Any) -> Held:
        """Batches of a stream, of a subclass of DataLoader that iterates by itself, or of any other iterable."""
        stream = isinstance(iterable, DataLoader) and isinstance(iterable.dataset, IterableDataset)
        what = f"an IterableDataset ({type(iterable.dataset).__name__})" if stream else f"a {type(iterable).__name__}"
        if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
            raise MisconfigurationException(f"The training data is {what}. Expected a torch DataLoader.")
        original = Original(iterable, what)
        stop = self._stop(original)
        if stop == inf and self.max_samples is None:
            raise MisconfigurationException(
                f"The training data is {what}, which may have no end. Set max_samples, such as max_samples=10000 (so "
                "many rows from the start of a pass are held in memory at each solve), or an integer "
                "Trainer(limit_train_batches=...)."
            )
        if self.ranks.size > 1:
            raise MisconfigurationException(
                f"The training data is {what}, of which each of {self.ranks.size} processes reads a part of its own. "
                "Expected a torch DataLoader that does not iterate by itself, over a dataset with a length and items "
                "by index; or Trainer(devices=1)."
            )
        batches = Followed(original, 0, stop)
        if isinstance(iterable, DataLoader) and not stream and self.max_samples is None:
            return batches
        return Held(self._first(batches))

    def _stop(self, original: Original) -> float:
        """Batches of an epoch; infinity where nothing tells."""
        with original.reading() as loader:
            length = sized_len(loader)
        return min(inf if self.limit is None else self.limit, inf if length is None else length)

    def _indexed(self, loader: DataLoader) -> Held:
        """Batches of a map-style dataset that torch's own DataLoader makes of what a sampler gives."""
        original = Original(loader, f"a {type(loader).__name__}")
        stop = self._stop(original)
        if loader.batch_sampler is None:
            items = self._items(loader.sampler, original, stop, 1)
            itself = Chosen(original, items, itself=True)
            if self.max_samples is None:
                return itself
            return Held(self._first(itself.sample(len(items), self.seed)))
        if type(loader.batch_sampler) is not BatchSampler:
            kind = type(loader.batch_sampler).__name__
            if self.ranks.size > 1:
                raise MisconfigurationException(
                    f"The training data comes by a {kind}, of which each of {self.ranks.size} processes sees a part of "
                    "its own. Expected a DataLoader with a sampler, or Trainer(devices=1)."
                )
            batches = self._drawn(original, lambda loader: loader.batch_sampler, stop)
            chosen = Chosen(original, batches, itself=False)
            return chosen if self.max_samples is None else chosen.limited(self.max_samples, self.seed)
        own = loader.batch_sampler  # around a sampler that may be another one than the loader's
        items = self._items(own.sampler, original, stop, own.batch_size)
        composed = Composed(original, items, own.batch_size, whole=own.drop_last)
        return composed if self.max_samples is None else composed.limited(self.max_samples, self.seed, loader.dataset)

    def _items(self, sampler: Any, original: Original, stop: float, size: int) -> list[Any]:
        """What the sampler gives in the batches of an epoch, sorted; the same in all processes."""
        several = self.ranks.size > 1
        length = sized_len(sampler)
        if length is None or stop * size < length:  # a part of a pass, another part in each process
            drawn = self._drawn(original, _sampler, stop * size)
            return in_order(list(chain.from_iterable(self.ranks.exchange(drawn))))
        inside = several and isinstance(sampler, DistributedSamplerWrapper)  # Lightning's, around the user's own
        if inside:
            sampler = sampler.dataset._sampler
        kind = type(sampler)
        permutes = kind is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
        if kind is SubsetRandomSampler:
            items = list(sampler.indices)
        elif kind is SequentialSampler or permutes:
            items = list(range(len(sampler.data_source)))
        elif several and kind is DistributedSampler:
            items = list(range(len(sampler.dataset)))
        elif inside:
            items = self._drawn(
                original, lambda loader: _sampler(loader).dataset._sampler, stop * size * self.ranks.size
            )
        else:
            items = self._drawn(original, _sampler, stop * size)
        return in_order(self.ranks.exchange(items)[0])

    def _drawn(self, original: Original, sampler: Callable[[Any], Any], most: float) -> list[Any]:
        """The first ``most`` that a sampler gives, drawn as the epoch to come would draw them."""
        with isolate_rng(), original.reading() as loader:  # a sampler without a generator draws from the global one
            kind, longest = type(sampler(loader)).__name__, _PASSES * (sized_len(loader.dataset) or 10**6)
            drawn = (copy.copy(item) for item in sampler(loader))  # a sampler may give one list again and again
            items = list(islice(drawn, longest + 1 if most == inf else int(most)))
        if most < inf or len(items) <= longest:
            return items
        if self.max_samples is None:
            raise MisconfigurationException(
                f"The training data comes by a {kind} without a length, which gave {longest} and goes on. Expected a "
                "sampler with a length or an end, Trainer(limit_train_batches=100) or max_samples=10000."
            )
        return items[: self.max_samples]


def seed_generators(seed: int) -> None:
    """Seed the global generators that `isolate_rng` puts back: of torch on the CPU and CUDA, Python and numpy."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed)


def _sampler(loader: DataLoader) -> Any:
    """What gives the loader its items."""
    batch_sampler: Any = loader.batch_sampler
    return loader.sampler if batch_sampler is None else batch_sampler.sampler


def _torchs_own(loader: DataLoader) -> bool:
    """Whether batches are what torch's DataLoader makes of a map-style dataset, whatever else a subclass adds."""
    itself = any(getattr(type(loader), name) is not getattr(DataLoader, name) for name in _ITERATION)
    return not itself and not isinstance(loader.dataset, IterableDataset)


def _check_held(batch: Any, batches: int) -> None:
    """Refuse to hold more batches like this one than half the memory takes."""
    size, parts = 0, [batch]
    for part in parts:
        if isinstance(part, Tensor):
            size += part.nbytes
        elif isinstance(part, (list, tuple)):
            parts += part
        elif isinstance(part, dict):
            parts += part.values()
    available = available_memory()
    if available is not None and size * batches > available / 2:
        raise MisconfigurationException(
            f"The training data is read once and held in memory: {batches} batches of {size / 2**20:.1f} MiB, and "
            f"{available / 2**20:.1f} MiB are available. Set max_samples or a smaller Trainer(limit_train_batches=...)."
        )


def _describe(dataloader: Any) -> str:
    if isinstance(dataloader, (dict, list, tuple)):
        return f"a {type(dataloader).__name__} of {len(dataloader)} loaders"
    return f"a {type(dataloader).__name__}"
