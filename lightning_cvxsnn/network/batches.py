"""Batches that can be read again and again: in memory, from a copy of a loader, or by what a dataset is asked for."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cvxsnn.network.copies import Original
from lightning_cvxsnn.network.sampling import class_labels, in_order, random_subset


class Held:
    """Batches in memory."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def items(self) -> list[Any] | None:
        """What the dataset is asked for, one for each sample; None where samples are not known."""
        return None

    def part(self, start: int, stop: int) -> "Held":
        """Some consecutive batches."""
        return Held(self._batches[start:stop])

    def subset(self, samples: Tensor) -> tuple[Any, Tensor]:
        """Batches that hold the samples of a bool mask, and which of theirs these are."""
        return self, samples

    def widened(self, size: int) -> Any:
        """The same samples in batches of at least ``size`` where batches are composed here."""
        return self

    def sample(self, count: int, seed: int) -> Any:
        """Batches of which the first hold ``count`` samples, drawn at random by ``seed`` where that is possible."""
        return self

    def read(self, seed: int) -> Iterator[Any]:
        """One pass over the batches."""
        return iter(self._batches)


class Followed(Held):
    """The batches that an iterable gives, from a copy of it in each pass.

    Args:
        original: The iterable.
        start: First batch.
        stop: Batch to stop before.
    """

    def __init__(self, original: Original, start: int, stop: float) -> None:
        self._original, self._start, self._stop = original, start, stop

    def __len__(self) -> int:
        return int(self._stop - self._start)

    def part(self, start: int, stop: int) -> "Followed":
        """Some consecutive batches; those before them are read too."""
        return Followed(self._original, self._start + start, self._start + stop)

    def read(self, seed: int) -> Iterator[Any]:
        """One pass over the batches."""
        with self._original.reading() as iterable:
            yield from islice(iterable, self._start, None if self._stop == inf else int(self._stop))


class Chosen(Held):
    """Batches of a map-style dataset as a batch sampler, or a loader with ``batch_size=None``, composed them.

    Args:
        original: The loader.
        batches: What the dataset is asked for: a sequence for each batch, or where it batches itself one thing.
        itself: Whether the dataset batches itself.
    """

    def __init__(self, original: Original, batches: Sequence[Any], *, itself: bool) -> None:
        super().__init__(batches)
        self._original, self._itself = original, itself

    @property
    def items(self) -> list[Any] | None:
        """What the dataset is asked for, one for each sample; None where samples are not known."""
        return None if self._itself else list(chain.from_iterable(self._batches))

    def part(self, start: int, stop: int) -> "Chosen":
        """Some consecutive batches."""
        return self._of(self._batches[start:stop])

    def subset(self, samples: Tensor) -> tuple["Chosen", Tensor]:
        """Batches that hold the samples of a bool mask, and which of theirs these are."""
        if self._itself or sum(map(len, self._batches)) != len(samples):
            return self, samples
        parts = samples.split([len(batch) for batch in self._batches])
        kept = [(batch, part) for batch, part in zip(self._batches, parts, strict=True) if part.any()]
        return self._of([batch for batch, _ in kept]), torch.cat([samples[:0], *(part for _, part in kept)])

    def sample(self, count: int, seed: int) -> "Chosen":
        """All batches in an order drawn by ``seed``."""
        return self._of(random_subset(self._batches, len(self._batches), seed))

    def limited(self, count: int, seed: int) -> "Chosen":
        """Batches at random that hold at most ``count`` samples, but for one that alone holds more."""
        kept: list[int] = []
        rows = 0
        for index in random_subset(range(len(self._batches)), len(self._batches), seed):
            if not kept or rows + len(self._batches[index]) <= count:
                kept.append(index)
                rows += len(self._batches[index])
        return self._of([self._batches[index] for index in sorted(kept)])

    def read(self, seed: int) -> Iterator[Any]:
        """One pass over the batches."""
        how = {"batch_size": None, "sampler": self._batches} if self._itself else {"batch_sampler": self._batches}
        return _read(self._original, seed, how)

    def _of(self, batches: Sequence[Any]) -> "Chosen":
        return Chosen(self._original, batches, itself=self._itself)


class Composed(Held):
    """Rows of a map-style dataset in the dataset's order, composed to batches.

    Args:
        original: The loader.
        items: What the dataset is asked for, one for each row.
        size: Rows of a batch.
        whole: Whether every batch must have that many; their number is then a multiple of it.
    """

    def __init__(self, original: Original, items: list[Any], size: int, *, whole: bool) -> None:
        self._original, self._items, self._size, self._whole = original, items, size, whole

    def __len__(self) -> int:
        return -(-len(self._items) // self._size)

    @property
    def items(self) -> list[Any]:
        """What the dataset is asked for, one for each row."""
        return self._items

    def part(self, start: int, stop: int) -> "Composed":
        """Some consecutive batches."""
        return self._of(self._items[start * self._size : stop * self._size])

    def subset(self, samples: Tensor) -> tuple["Composed", Tensor]:
        """The rows of a bool mask, with others where batches must be whole; and which of theirs these are."""
        if len(samples) != len(self._items):
            return self, samples
        read = samples.clone()
        if self._whole:
            read[(~samples).nonzero()[: -int(samples.sum()) % self._size, 0]] = True
        return self._of([self._items[k] for k in read.nonzero()[:, 0].tolist()]), samples[read]

    def widened(self, size: int) -> "Composed":
        """The same rows in batches of at least ``size``, unless batches must be whole."""
        return self if self._whole else Composed(self._original, self._items, max(size, self._size), whole=False)

    def sample(self, count: int, seed: int) -> "Composed":
        """``count`` rows at random, or the next number that makes whole batches."""
        if self._whole:
            count += -count % self._size
        return self._of(random_subset(self._items, count, seed))

    def limited(self, count: int, seed: int, dataset: Any) -> "Composed":
        """At most ``count`` rows at random, classes in proportion; one batch at least where batches must be whole."""
        if self._whole:
            count = max(count - count % self._size, self._size)
        if len(self._items) <= count:
            return self
        return self._of(in_order(random_subset(self._items, count, seed, class_labels(dataset, self._items))))

    def read(self, seed: int) -> Iterator[Any]:
        """One pass over the batches."""
        return _read(self._original, seed, {"batch_size": self._size, "sampler": self._items})

    def _of(self, items: list[Any]) -> "Composed":
        return Composed(self._original, items, self._size, whole=self._whole)


def _read(original: Original, seed: int, how: dict[str, Any]) -> Iterator[Any]:
    """Batches of a loader's dataset, loaded and collated as the loader does it."""
    with original.reading() as loader:
        yield from DataLoader(
            loader.dataset,
            **how,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            generator=torch.Generator().manual_seed(seed),  # workers are seeded from it
        )
