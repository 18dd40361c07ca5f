"""The user's targets and weights as the convex programme takes them."""

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F

from lightning_cvxsnn.convex import Loss
from lightning_cvxsnn.convex.losses import loss_named
from lightning_cvxsnn.network.reduction import TimeReduction

_IGNORED = (
    "; give rows that the loss ignores (such as -100) any of these and weight 0: define `convex_batch(self, batch)` "
    "that returns (x, y, weight)."
)


def row_targets(y: Tensor, reduction: TimeReduction, *, loss: Loss, num_outputs: int) -> Tensor:
    """Targets of one batch, one per dictionary row.

    Args:
        y: Class indices ``[N]`` (or ``[N, 1]``), for ``cross_entropy`` also probabilities ``[N, C]``, for ``squared``
            also values ``[N, C]``; for per-step outputs with the two leading axes of the network's output, such as
            ``[T, N]``.
        reduction: How the network's outputs are laid out.
        loss: Loss of the programme.
        num_outputs: C, the readout's ``out_features``.

    Returns:
        int64 ``[rows]``, or float64 ``[rows, C]`` for ``squared`` and for probabilities; class indices become one-hot
        rows for ``squared``, as spikingjelly's examples train them.

    Raises:
        MisconfigurationException: If the targets' shape or type does not fit the outputs or the loss.
    """
    y, function = y.detach().cpu(), loss_named(loss)
    if reduction.kind == "all":
        if y.dim() < 2:
            raise MisconfigurationException(
                f"The network returns one output per time step ({reduction.steps} of them) and the targets have shape "
                f"{list(y.shape)}, one per sample. Expected a target per step; where training reduces the outputs over "
                "time, define `convex_forward(self, x)` that returns the reduced logits."
            )
        y = reduction.flatten_rows(y)
    are_probabilities = function.takes_probabilities and num_outputs > 1 and y.is_floating_point()
    if are_probabilities and y.shape[1:] == (num_outputs,):
        try:
            return function.encode(y, num_outputs)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
    if y.dim() == 2 and (y.shape[1] == 1 or function.decides):
        if y.shape[1] != 1:
            raise MisconfigurationException(
                f"loss={loss!r} needs class indices and the targets have shape {list(y.shape)} and type {y.dtype}. "
                "Expected one class index per row, or for cross_entropy probabilities as floats; define "
                "`convex_batch(self, batch)` that returns them."
            )
        y = y.squeeze(1)
    if not function.decides:
        if y.is_floating_point():
            values = y.double().reshape(len(y), -1)
        else:
            values = y.double().unsqueeze(1) if num_outputs == 1 else _one_hot(y, num_outputs)
        if values.shape[1] != num_outputs:
            raise MisconfigurationException(
                f"The targets have {values.shape[1]} value(s) per row and the readout {num_outputs} output(s). "
                "Expected as many."
            )
        return values
    if y.is_floating_point() and not torch.equal(y, y.round()):
        raise MisconfigurationException(
            f"loss={loss!r} needs class indices and the targets hold fractions such as "
            f"{float(y[y != y.round()][0]):g}. Expected integers; use loss='squared' for real values."
        )
    classes = max(num_outputs, 2)
    y = y.long()
    if y.numel() and (y.min() < 0 or y.max() >= classes):
        raise MisconfigurationException(
            f"The targets range from {int(y.min())} to {int(y.max())} and the readout has {num_outputs} output(s). "
            f"Expected class indices from 0 to {classes - 1}{_IGNORED if y.min() < 0 else '.'}"
        )
    return y


def _one_hot(y: Tensor, num_outputs: int) -> Tensor:
    if y.min() < 0 or y.max() >= num_outputs:
        raise MisconfigurationException(
            f"The targets range from {int(y.min())} to {int(y.max())} and the readout has {num_outputs} outputs. "
            f"Expected class indices from 0 to {num_outputs - 1}, or float targets of shape [N, {num_outputs}]."
        )
    return F.one_hot(y.long(), num_outputs).double()


def row_weights(weight: Tensor | None, rows: int, reduction: TimeReduction) -> Tensor:
    """Sample weights of one batch as float64 ``[rows]``: given per sample or per row, ones where None.

    Raises:
        MisconfigurationException: If their number fits neither.
    """
    if weight is None:
        return torch.ones(rows, dtype=torch.float64)
    weight = weight.detach().double().cpu()
    if reduction.kind == "all" and weight.dim() == 2:
        weight = reduction.flatten_rows(weight)
    elif reduction.kind == "all" and len(weight) * reduction.rows_per_sample == rows:
        weight = weight.repeat_interleave(reduction.rows_per_sample)
    if weight.shape != (rows,) or bool((weight < 0).any()):
        raise MisconfigurationException(
            f"`convex_batch` returned weights of shape {list(weight.shape)} for {rows} rows. Expected one non-negative "
            "weight per sample."
        )
    return weight
