"""Training on one of several disjoint parts of the training rows."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)


def see_part(data: "pl.LightningDataModule | None", number: int, parts: int, seed: int) -> None:
    """Let ``train_dataloader`` of a data module read one part of its rows, the same in each call.

    Args:
        data: The data module; its method is replaced.
        number: Which part, from 1.
        parts: How many there are; each row is in one of them.
        seed: Of the permutation that is cut.

    Raises:
        MisconfigurationException: If there is no data module; when the loader is made, if it is not a torch DataLoader
            over a dataset with a length, of fixed batches, that reads each of its rows once, shuffled or in order.
    """
    if data is None:
        raise MisconfigurationException("Found 'part' without data. Expected a LightningDataModule under 'data'.")
    original = data.train_dataloader

    def train_dataloader() -> DataLoader:
        loader: Any = original()
        indexed = type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset)
        if not indexed or loader.batch_size is None:
            raise MisconfigurationException(
                f"Found 'part' with training data from a {type(loader).__name__}. Expected a torch DataLoader over a "
                "dataset with a length, with a batch_size."
            )
        rows = _rows_of(loader.sampler)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return DataLoader(
            Subset(loader.dataset, [rows[k] for k in order[number - 1 :: parts].sort().values.tolist()]),
            batch_size=loader.batch_size,
            shuffle=not isinstance(loader.sampler, SequentialSampler),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            worker_init_fn=loader.worker_init_fn,
            generator=loader.generator,
        )

    vars(data)["train_dataloader"] = train_dataloader


def _rows_of(sampler: Any) -> Sequence[int]:
    """The rows that a sampler reads, each once."""
    kind = type(sampler)
    if kind is SubsetRandomSampler:
        return list(sampler.indices)
    count = len(sampler.data_source) if kind in (SequentialSampler, RandomSampler) else 0
    if kind is SequentialSampler or (count and not sampler.replacement and sampler.num_samples == count):
        return range(count)
    raise MisconfigurationException(
        f"Found 'part' with training rows from a {kind.__name__}. Expected each row once: shuffle=True or False, or a "
        "SubsetRandomSampler."
    )
