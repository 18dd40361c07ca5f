"""Accuracy of tokens and of whole sequences."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.metrics.base import SpikingMetric


class _Accuracy(SpikingMetric):
    """Share of hits among the entries that count, in integer sums."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    total: Tensor

    def __init__(self, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise ValueError(f"ignore_index is {ignore_index!r}; expected an integer, or None.")
        self.ignore_index = ignore_index
        for name in ("hits", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def _right_and_counted(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Bool ``[N, L]`` twice: which tokens are right, and which count."""
        if preds.dim() == target.dim() + 1 and preds.is_floating_point():
            preds = preds.argmax(-1)
        if target.dim() != 2 or preds.shape != target.shape or preds.is_floating_point() or target.is_floating_point():
            raise ValueError(
                f"preds has shape {list(preds.shape)}, {preds.dtype}, and target {list(target.shape)}, {target.dtype}; "
                "expected integer tokens [N, L] or float scores [N, L, C], and integer targets [N, L]. Time-first "
                "scores [L, N, C] need transpose(0, 1)."
            )
        counted = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = target != self.ignore_index
        return preds == target, counted

    @override
    def compute(self) -> Tensor:
        """Share of hits."""
        return self.hits / self.total


class TokenAccuracy(_Accuracy):
    """Share of tokens that are right, over all sequences; micro-averaged.

    ``update(preds, target)`` takes tokens ``[N, L]`` or scores ``[N, L, C]`` (their largest decides), and targets
    ``[N, L]``. Several outputs per step, such as digit and carry, take a metric each. NaN if nothing counts.

    Args:
        ignore_index: Targets that do not count, such as padding.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For an ``ignore_index`` that is no integer. In ``update``, for other shapes or types.

    Example:
        >>> accuracy = TokenAccuracy(ignore_index=-1)
        >>> accuracy.update(torch.tensor([[1, 2, 0], [0, 1, 1]]), torch.tensor([[1, 2, -1], [0, 0, 1]]))
        >>> accuracy.compute()
        tensor(0.8000)
    """

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the tokens of one batch."""
        right, counted = self._right_and_counted(preds, target)
        self.hits += (right & counted).sum()
        self.total += counted.sum()


class SequenceAccuracy(_Accuracy):
    """Share of sequences of which every token that counts is right.

    Takes what `TokenAccuracy` takes. Sequences of which no token counts are left out (torchmetrics'
    ``MulticlassExactMatch`` takes them for right). NaN if nothing counts.

    Args:
        ignore_index: Targets that do not count, such as padding.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: For an ``ignore_index`` that is no integer. In ``update``, for other shapes or types.

    Example:
        >>> accuracy = SequenceAccuracy(ignore_index=-1)
        >>> accuracy.update(torch.tensor([[1, 2, 0], [0, 1, 1]]), torch.tensor([[1, 2, -1], [0, 0, 1]]))
        >>> accuracy.compute()
        tensor(0.5000)
    """

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the sequences of one batch."""
        right, counted = self._right_and_counted(preds, target)
        some = counted.any(1)
        self.hits += ((right | ~counted).all(1) & some).sum()
        self.total += some.sum()
