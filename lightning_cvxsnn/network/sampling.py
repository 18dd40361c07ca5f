"""Which samples of a dataset are used: random subsets, with each class in proportion where labels are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset


def random_subset(items: Sequence[Any], count: int, seed: int, labels: Tensor | None = None) -> list[Any]:
    """``count`` of ``items`` at random; with ``labels`` of all rows, each class in proportion, to within one row."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    if labels is not None:  # every (n / count)-th row of the shuffled rows, sorted by class in order of appearance
        found = labels[torch.tensor(items)[order]]
        _, group = found.unique(return_inverse=True)
        first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(
            0, group, torch.arange(len(group)), "amin"
        )
        order = order[first[group].argsort(stable=True)]
        order = order[torch.arange(count) * len(items) // count]
    return [items[i] for i in order[:count].tolist()]


def in_order(items: list[Any]) -> list[Any]:
    """The items sorted, or as they are where they have no order."""
    try:
        return sorted(items)
    except (TypeError, ValueError, RuntimeError):  # dicts, or tuples that hold tensors
        return items


def class_labels(dataset: Any, items: list[Any]) -> Tensor | None:
    """Class labels ``[n]`` of a dataset that tells them without loading a row; None where it does not.

    They are the last tensor of a ``TensorDataset`` or an attribute ``targets`` or ``labels``, as torchvision has it;
    also through ``Subset`` and ``ConcatDataset``.

    Args:
        dataset: The dataset.
        items: What it is asked for; labels belong to positions only.
    """
    return _labels(dataset) if all(isinstance(item, (int, np.integer)) for item in items) else None


def _labels(dataset: Any) -> Tensor | None:
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


def sample_ids(items: list[Any]) -> Tensor:
    """Which different sample each of ``items`` is, int64 from 0 in order of appearance."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(_key(item), len(numbers)) for item in items], dtype=torch.int64)


def _key(item: Any) -> Any:
    """Equal for equal items, and hashable."""
    if isinstance(item, (Tensor, np.ndarray)):
        return _key(item.tolist())
    if isinstance(item, dict):
        return frozenset((key, _key(value)) for key, value in item.items())
    return tuple(map(_key, item)) if isinstance(item, (list, tuple)) else item
