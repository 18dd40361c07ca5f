"""The training rows, through a loader of our own: same data, same order, every time."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_cvxsnn.runtime.ranks import Ranks

PerOutput = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


class Batch(NamedTuple):
    """Inputs, targets and, where the user gives them, sample weights: a tensor, or one for each output."""

    x: Any
    y: PerOutput
    weight: PerOutput | None


class TrainingRows:
    """The rows a ``DataLoader`` trains on, without shuffling and without touching the loader or its generators.

    Every iteration seeds the global generators, so that augmentations repeat: iterate inside ``isolate_rng``. Of an
    ``IterableDataset`` a copy is read once, and the first batches that hold ``max_samples`` rows are kept in memory.

    Args:
        module: The LightningModule; its ``convex_batch`` unpacks a batch where it defines one.
        dataloader: The loader that training uses, or a list of batches.
        transfer: Puts a batch where the network is.
        max_samples: Use this many rows, a random subset fixed by ``seed``, stratified where the dataset tells class
            labels without loading its rows; None: all.
        seed: Seed of the subset and of augmentations.
        ranks: The processes that train together; all see the same rows. None: this one alone.

    Attributes:
        ranks: As given.

    Raises:
        MisconfigurationException: If ``dataloader`` cannot be read a second time without disturbing training.
    """

    def __init__(
        self,
        module: nn.Module,
        dataloader: Any,
        *,
        transfer: Callable[[Any], Any],
        max_samples: int | None,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks(alone=True)
        self._module = module
        self._transfer = transfer
        self._seed = seed
        self._first = 0
        self._loader = dataloader
        if isinstance(dataloader, DataLoader) and isinstance(dataloader.dataset, IterableDataset):
            self._loader = self._head(dataloader, max_samples)
        elif isinstance(dataloader, DataLoader):
            indices = self.ranks.exchange(_indices(dataloader, self.ranks.size))[0]
            if max_samples is not None and len(indices) > max_samples:
                if _unbatched(dataloader):
                    raise _no_rows_to_count("DataLoader with batch_size=None")
                by_position = all(isinstance(index, (int, np.integer)) for index in indices)
                labels = _labels(dataloader.dataset) if by_position else None
                indices = sorted(_subset(indices, max_samples, seed, labels))
            self._indices = indices
            self._loader = _loader(dataloader, indices, seed)
        elif not isinstance(dataloader, (list, tuple)) or not dataloader or isinstance(dataloader[0], DataLoader):
            raise MisconfigurationException(
                f"The training data comes from {_describe(dataloader)}. Expected one torch DataLoader over a dataset "
                "with a length, or a non-empty list of batches, which can be read again without disturbing training."
            )
        elif max_samples is not None:
            raise _no_rows_to_count("list of batches")

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def samples(self, first: int) -> int:
        """Number of samples, where the first batch has ``first``; about, where batches come whole."""
        return len(self._indices) if self._composed else first * len(self)

    @property
    def _composed(self) -> bool:
        """Whether batches are composed of rows; else they come whole."""
        return isinstance(self._loader, DataLoader) and not _unbatched(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Unpacked batches on the network's device."""
        return self._batches(self._loader)

    def share(self) -> "TrainingRows":
        """This process's part: consecutive whole batches, each composed as it would be in one process."""
        rank, size, batches = self.ranks.rank, self.ranks.size, len(self)
        own = range(batches)[batches * rank // size : batches * (rank + 1) // size]
        part = copy.copy(self)
        part._first, part._seed = own.start, self._seed + own.start
        if isinstance(self._loader, DataLoader):
            rows = self._loader.batch_size or 1
            part._indices = self._indices[own.start * rows : own.stop * rows]
            part._loader = _loader(self._loader, part._indices, part._seed)
        else:
            part._loader = self._loader[own.start : own.stop]
        return part

    def sample_ids(self, count: int) -> Tensor:
        """Which row of the dataset each of ``count`` samples is, int64 from 0; a sampler may repeat some."""
        if not self._composed or len(self._indices) != count:  # batches that come whole, or are made of something else
            return torch.arange(count)
        new = [a != b for a, b in pairwise(self._indices)]  # they are sorted
        return torch.tensor([False, *new]).cumsum(0)

    def subset(self, samples: Tensor) -> tuple["TrainingRows", Tensor]:
        """Rows that hold some samples, read without the others where batches are composed of rows.

        Args:
            samples: Bool ``[N]``, of all samples in their order.

        Returns:
            The rows, and which of theirs these are.
        """
        if not self._composed:
            return self, samples
        part = copy.copy(self)
        part._indices = [self._indices[k] for k in samples.nonzero()[:, 0].tolist()]
        part._loader = _loader(self._loader, part._indices, self._seed)
        return part, torch.ones(len(part._indices), dtype=torch.bool)

    def sample(self, count: int) -> list[Batch]:
        """At least ``count`` rows drawn at random by the seed (all if there are fewer), as batches."""
        if isinstance(self._loader, DataLoader):
            return list(self._batches(_loader(self._loader, _subset(self._indices, count, self._seed), self._seed)))
        batches, rows = [], 0
        for batch in self:
            batches.append(batch)
            rows += len(_tensors(batch.y)[0])
            if rows >= count:
                break
        return batches

    def _head(self, loader: DataLoader, max_samples: int | None) -> list[Any]:
        """The first batches of an ``IterableDataset`` that hold ``max_samples`` rows, read from a copy of it."""
        name = type(loader.dataset).__name__
        if max_samples is None:
            raise MisconfigurationException(
                f"The training data is an IterableDataset ({name}), which may have no end. Set max_samples, such as "
                "max_samples=10000: so many rows from the start of a pass are held in memory at each solve."
            )
        if self.ranks.size > 1:
            raise MisconfigurationException(
                f"The training data is an IterableDataset ({name}), of which each of {self.ranks.size} processes reads "
                "a part of its own. Expected a dataset with a length and items by index, or Trainer(devices=1)."
            )
        try:
            dataset = copy.deepcopy(loader.dataset)
        except Exception as error:  # whatever the user's class does
            raise MisconfigurationException(
                f"The training data is an IterableDataset ({name}) that cannot be copied ({error}), so it cannot be "
                "read without disturbing training. Open files, connections and generators in its `__iter__`, not in "
                "its constructor."
            ) from error
        head, rows = [], 0
        with isolate_rng():
            self._seed_everything()
            for batch in DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn):
                head.append(batch)
                rows += loader.batch_size or len(unpack(self._module, batch).y)
                if rows >= max_samples:
                    break
        return head

    def _seed_everything(self) -> None:
        torch.manual_seed(self._seed)
        random.seed(self._seed)
        np.random.seed(self._seed)

    def _batches(self, loader: Any) -> Iterator[Batch]:
        self._seed_everything()
        if isinstance(loader, DataLoader):
            loader.generator.manual_seed(self._seed)  # workers are seeded from it
        for index, batch in enumerate(loader, self._first):
            yield unpack(self._module, self._transfer(batch), index)


def rows_of(model: nn.Module, dataloader: Any, *, max_samples: int | None = None, seed: int = 0) -> TrainingRows:
    """Training rows without a Trainer, on the device where the model's parameters are."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    transfer = partial(move_data_to_device, device=device)
    return TrainingRows(model, dataloader, transfer=transfer, max_samples=max_samples, seed=seed)


def unpack(module: nn.Module, batch: Any, index: int = 0) -> Batch:
    """Split a batch by the module's ``convex_batch``, or as ``(x, y)``.

    Raises:
        MisconfigurationException: If the batch is neither.
        ValueError: If inputs or targets hold NaN or infinity.
    """
    convex_batch = getattr(module, "convex_batch", None)
    parts = batch if convex_batch is None else convex_batch(batch)
    source = "The training batch" if convex_batch is None else f"{type(module).__name__}.convex_batch"
    sizes = (2,) if convex_batch is None else (2, 3)
    if not isinstance(parts, (tuple, list)) or len(parts) not in sizes or not _tensors(parts[1]):
        raise MisconfigurationException(
            f"{source} is {_describe_batch(parts)}. Expected (x, y) with y a tensor of targets (or, for several "
            "outputs, a dict or tuple of them); define `convex_batch(self, batch)` on the LightningModule that returns "
            "(x, y) or (x, y, weight)."
        )
    for name, part in zip(("inputs", "targets", "weights"), parts, strict=False):
        for value in [part] if name == "inputs" else _tensors(part):
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(
                    f"The {name} of training batch {index} hold {int((~value.isfinite()).sum())} NaN or infinite "
                    "values. Expected finite numbers; clean the dataset, nothing was written."
                )
    return Batch(parts[0], parts[1], parts[2] if len(parts) == 3 else None)


def _tensors(part: Any) -> list[Tensor]:
    """The tensors of one part of a batch; none where it is of another kind."""
    values = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else [part]
    return list(values) if all(isinstance(value, Tensor) for value in values) else []


def _describe_batch(parts: Any) -> str:
    if isinstance(parts, (tuple, list)):
        return f"a {type(parts).__name__} of {[type(p).__name__ for p in parts]}"
    return f"a {type(parts).__name__}" + (f" with keys {list(parts)}" if isinstance(parts, dict) else "")


def _describe(dataloader: Any) -> str:
    if isinstance(dataloader, dict):
        return f"a dict of {len(dataloader)} loaders"
    if isinstance(dataloader, (list, tuple)):
        return f"a {type(dataloader).__name__} of {len(dataloader)} loaders"
    return f"a {type(dataloader).__name__}"


def _indices(loader: DataLoader, processes: int) -> list[Any]:
    """What one epoch of the loader's sampler visits, sorted; the user's generators are not advanced."""
    sampler = loader.sampler
    if isinstance(sampler, DistributedSamplerWrapper):  # Lightning's, around the user's own
        sampler = sampler.dataset._sampler  # type: ignore[attr-defined]
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not torch.utils.data.BatchSampler:
        if processes > 1:
            raise MisconfigurationException(
                f"The training data comes by a {type(loader.batch_sampler).__name__}, of which each of {processes} "
                "processes sees a part of its own. Expected a DataLoader with a sampler, or Trainer(devices=1)."
            )
        return sorted(chain.from_iterable(_undisturbed(loader.batch_sampler)))
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(sampler.indices)
    if isinstance(sampler, (SequentialSampler, DistributedSampler)) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples >= len(loader.dataset)  # type: ignore[arg-type]
    ):
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    return sorted(_undisturbed(sampler))


def _undisturbed(sampler: Any) -> list[Any]:
    twin = copy.copy(sampler)
    if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
        twin.generator = torch.Generator().set_state(generator.get_state())
    with isolate_rng():  # a sampler without a generator draws from the global one
        return list(twin)


def _subset(indices: list[Any], count: int, seed: int, labels: Tensor | None = None) -> list[Any]:
    """``count`` of ``indices`` at random; with ``labels`` of all rows, each class in proportion, to within one row."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    if labels is not None:  # every (n / count)-th row of the shuffled rows, sorted by class in order of appearance
        found = labels[torch.tensor(indices)[order]]
        _, group = found.unique(return_inverse=True)
        first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(
            0, group, torch.arange(len(group)), "amin"
        )
        order = order[first[group].argsort(stable=True)]
        order = order[torch.arange(count) * len(indices) // count]
    return [indices[i] for i in order[:count].tolist()]


def _labels(dataset: Any) -> Tensor | None:
    """Class labels ``[n]`` of a dataset that tells them without loading a row; None where it does not.

    They are the last tensor of a ``TensorDataset`` or an attribute ``targets`` or ``labels``, as torchvision has it;
    also through ``Subset`` and ``ConcatDataset``.
    """
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]
    told: Any = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(dataset, TensorDataset):
        told = dataset.tensors[-1]
    try:
        classes = torch.as_tensor(told).cpu()
    except (TypeError, ValueError, RuntimeError):  # anything may be called so
        return None
    fits = classes.dim() == 1 and len(classes) == len(dataset) and not classes.is_floating_point()
    return classes if fits else None


def _unbatched(loader: DataLoader) -> bool:
    return loader.batch_size is None and loader.batch_sampler is None


def _no_rows_to_count(what: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"max_samples counts rows and the training data is a {what}, whose batches come whole. Expected a DataLoader "
        "that composes its batches of rows; or leave max_samples=None and give fewer batches."
    )


def _loader(loader: DataLoader, indices: list[Any], seed: int) -> DataLoader:
    batched = not _unbatched(loader)
    return DataLoader(
        loader.dataset,
        batch_size=(loader.batch_size or 256) if batched else None,
        sampler=indices,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(seed),
    )
