"""Checks of targets that several losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cvxsnn.convex.arguments import real_tensor, whole_number

__all__ = ["check_targets", "encode_labels", "encode_signs", "encode_values"]

_MOST_CLASSES = 1024  # that labels may ask for by their size alone, or as many as there are labels


def check_targets(targets: Tensor, num_outputs: int | None) -> Tensor:
    """The targets, detached; refuses what is no tensor, and a number of outputs that is not positive."""
    if num_outputs is not None and whole_number(num_outputs, "num_outputs") < 1:
        raise ValueError(f"num_outputs is {num_outputs}; expected a positive integer or None.")
    return real_tensor(targets, "targets")


def encode_labels(targets: Tensor, loss: str, num_outputs: int | None, *, one_for_two: bool = False) -> Tensor:
    """Class labels ``[n]`` as one-hot rows ``[n, C]``, or as the class itself, 0 or 1, for one output.

    Args:
        targets: Integers ``[n]``.
        loss: Name of the loss, for messages.
        num_outputs: ``C``; ``None``: the number of classes (largest label + 1).
        one_for_two: Whether two classes are one output by default.
    """
    if targets.is_floating_point():
        raise ValueError(
            f"targets has dtype {targets.dtype} and shape {tuple(targets.shape)}; loss {loss!r} expects integer class "
            "labels [n] (cross_entropy also probabilities [n, C]). Use targets.long(), or loss='squared' for "
            "real-valued targets."
        )
    if targets.ndim != 1:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; loss {loss!r} expects class labels of shape [n].")
    if targets.numel() == 0:
        raise ValueError("targets is empty; expected at least one label.")
    labels = targets.long()
    smallest, largest = int(labels.min()), int(labels.max())
    if num_outputs is None:
        if largest >= max(_MOST_CLASSES, labels.numel()):
            raise ValueError(
                f"targets holds {largest} among {labels.numel()} labels, which asks for {largest + 1} outputs; "
                "expected labels from 0 to the number of classes - 1. Renumber them with torch.unique(targets, "
                "return_inverse=True)[1], or pass num_outputs if there are so many classes."
            )
        num_outputs = 1 if one_for_two and largest <= 1 else largest + 1
    classes = max(num_outputs, 2)
    if smallest < 0 or largest >= classes:
        raise ValueError(
            f"targets holds labels from {smallest} to {largest}; expected 0 to {classes - 1} for num_outputs="
            f"{num_outputs}. Drop ignored rows (or give them weight 0 and a valid label), or raise num_outputs."
        )
    if num_outputs == 1:
        return labels[:, None].double()
    return torch.nn.functional.one_hot(labels, num_outputs).double()


def encode_signs(targets: Tensor, loss: str, num_outputs: int | None) -> Tensor:
    r"""Class labels ``[n]`` as signs :math:`\pm 1`, one class against the rest; two classes are one output."""
    return 2 * encode_labels(targets, loss, num_outputs, one_for_two=True) - 1


def encode_values(targets: Tensor, num_outputs: int | None) -> Tensor:
    """Real targets ``[n, C]``, checked."""
    if not targets.is_floating_point():
        raise ValueError(
            f"targets has dtype {targets.dtype}; loss 'squared' expects floats [n, C]. For class labels use "
            "torch.nn.functional.one_hot(targets).double(), or another loss."
        )
    if targets.ndim != 2:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}; loss 'squared' expects [n, C]. For one output use "
            "targets[:, None]."
        )
    if targets.numel() == 0:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; expected at least one row and one column.")
    if num_outputs is not None and num_outputs != targets.shape[1]:
        raise ValueError(f"targets has {targets.shape[1]} columns; expected num_outputs={num_outputs}.")
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets holds NaN or infinite entries; expected finite numbers.")
    return targets.double()
