"""The training rows, through a loader of our own: same data, same order, every time."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.network.batches import Held
from lightning_cvxsnn.network.loader import Epoch, seed_generators
from lightning_cvxsnn.network.sampling import sample_ids
from lightning_cvxsnn.runtime.ranks import Ranks

TRANSFER_HOOKS = "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"
PerOutput = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


class Batch(NamedTuple):
    """Inputs, targets and, where the user gives them, sample weights: a tensor, or one for each output."""

    x: Any
    y: PerOutput
    weight: PerOutput | None


class TrainingRows:
    """The rows that training reads in an epoch, the same in the same order each time, without touching the loader.

    What is read are copies: of the loader, its samplers and generators, its dataset (whose large arrays are shared).
    Every iteration seeds the global generators, so that augmentations repeat: iterate inside ``isolate_rng``.

    Rows that torch's own ``DataLoader`` composes to batches come in the dataset's order. Batches that come whole (of a
    batch sampler, a subclass that iterates by itself, a stream, any other iterable, a list) stay as they are; those of
    streams and iterables are read once and kept in memory.

    Args:
        module: The LightningModule; its ``convex_batch`` unpacks a batch where it defines one.
        dataloader: The loader that training uses, or a list of batches.
        transfer: Puts a batch where the network is.
        max_samples: Use this many rows, a random subset fixed by ``seed``, stratified where the dataset tells class
            labels without loading its rows. Of batches that come whole, so many of them. None: all.
        seed: Seed of the subset and of augmentations.
        ranks: The processes that train together; all see the same rows. None: this one alone.
        limit: Batches of an epoch, as the Trainer counts them (infinity: unknown). None: without a Trainer.

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
        limit: float | None = None,
    ) -> None:
        self.ranks = ranks or Ranks(alone=True)
        self._module = module
        self._transfer = transfer
        self._seed = seed
        self._first = 0
        self._unpacked = False
        epoch = Epoch(limit=limit, max_samples=max_samples, seed=seed, ranks=self.ranks, count=self._count)
        self._read = epoch.batches(dataloader)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._read)

    def samples(self, first: int) -> int:
        """Number of samples, where the first batch has ``first``; about, where batches come whole."""
        items = self._read.items
        return first * len(self) if items is None else len(items)

    def __iter__(self) -> Iterator[Batch]:
        """Unpacked batches on the network's device."""
        return self._batches(self._read)

    def share(self) -> "TrainingRows":
        """This process's part: consecutive whole batches, each composed as it would be in one process."""
        rank, size, batches = self.ranks.rank, self.ranks.size, len(self)
        own = range(batches)[batches * rank // size : batches * (rank + 1) // size]
        part = self._of(self._read.part(own.start, own.stop))
        part._first, part._seed = own.start, self._seed + own.start
        return part

    def sample_ids(self, count: int) -> Tensor:
        """Which row of the dataset each of ``count`` samples is, int64 from 0; a sampler may repeat some."""
        items = self._read.items
        if items is None or len(items) != count:  # batches that come whole, or are made of something else
            return torch.arange(count)
        return sample_ids(items)

    def subset(self, samples: Tensor) -> tuple["TrainingRows", Tensor]:
        """Rows that hold some samples, read without the others where batches are composed of rows.

        Args:
            samples: Bool ``[N]``, of all samples in their order.

        Returns:
            The rows, and which of theirs these are.
        """
        read, own = self._read.subset(samples)
        return self._of(read), own

    def widened(self, size: int) -> "TrainingRows":
        """The same rows in batches of at least ``size`` where torch composes them: fewer passes cost less."""
        return self._of(self._read.widened(size))

    def some(self, count: int) -> "TrainingRows":
        """At least ``count`` rows drawn at random by the seed (all if there are fewer), in memory, for this process.

        Of batches that a loader of one's own, a stream or a list gives, the first.
        """
        batches: list[Batch] = []
        for batch in self._batches(self._read.sample(count, self._seed)):
            batches.append(batch)
            if sum(map(count_rows, batches)) >= count:
                break
        some = self._of(Held(batches))
        some.ranks, some._unpacked = Ranks(alone=True), True
        return some

    def sample(self, count: int) -> list[Batch]:
        """The rows of `some`, as unpacked batches."""
        return list(self.some(count))

    def _of(self, read: Held) -> "TrainingRows":
        part = copy.copy(self)
        part._read = read
        return part

    def _count(self, batch: Any) -> int:
        return count_rows(unpack(self._module, self._transfer(batch)))

    def _batches(self, read: Held) -> Iterator[Batch]:
        seed_generators(self._seed)
        for index, batch in enumerate(read.read(self._seed), self._first):
            yield batch if self._unpacked else unpack(self._module, self._transfer(batch), index)

    def raw(self) -> Iterator[Any]:
        """The batches as ``training_step`` gets them."""
        seed_generators(self._seed)
        yield from map(self._transfer, self._read.read(self._seed))


def rows_of(model: nn.Module, dataloader: Any, *, max_samples: int | None = None, seed: int = 0) -> TrainingRows:
    """Training rows without a Trainer, on the device where the parameters are.

    Batches go through the hooks of a LightningModule that change them on their way; but if these ask for a Trainer, and
    there is none, they are left out.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    transfer: Callable[[Any], Any] = partial(move_data_to_device, device=device)
    if isinstance(model, pl.LightningModule):
        before, to_device, after = (getattr(model, hook) for hook in TRANSFER_HOOKS)
        plain = transfer

        def transfer(batch: Any) -> Any:
            try:
                return after(to_device(before(batch, 0), device, 0), 0)
            except RuntimeError as error:
                if "is not attached to a `Trainer`" not in str(error):
                    raise
                return plain(batch)

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


def count_rows(batch: Batch) -> int:
    """Samples of a batch."""
    return len(_tensors(batch.y)[0])


def _describe_batch(parts: Any) -> str:
    if isinstance(parts, (tuple, list)):
        return f"a {type(parts).__name__} of {[type(p).__name__ for p in parts]}"
    return f"a {type(parts).__name__}" + (f" with keys {list(parts)}" if isinstance(parts, dict) else "")
