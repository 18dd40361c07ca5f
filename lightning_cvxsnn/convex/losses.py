r"""The three losses of the programmes, as functions of the outputs ``z`` and of encoded targets.

Encoded targets are float64 ``[n, C]``: one-hot rows or other probabilities for cross-entropy (the class itself, 0 or 1,
for one output), signs :math:`\pm 1` one against the rest for hinge, the targets themselves for squared.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = [
    "Loss",
    "check_loss",
    "check_weights",
    "constant_outputs",
    "encode_targets",
    "mean_loss",
    "output_gradient",
    "row_losses",
]

_SIMPLEX = 1e-3  # probabilities in half precision sum to 1 but for this

Loss = Literal["cross_entropy", "hinge", "squared"]


def check_loss(loss: str) -> None:
    """Refuse any name that is not one of the three losses."""
    if loss not in get_args(Loss):
        raise ValueError(f"loss is {loss!r}; expected one of {', '.join(map(repr, get_args(Loss)))}.")


def encode_targets(targets: Tensor, *, loss: Loss, num_outputs: int | None = None) -> Tensor:
    """Check targets and encode them for ``loss``.

    Args:
        targets: Integer class labels ``[n]`` for cross-entropy and hinge; for cross-entropy also probabilities, floats
            ``[n, C]`` with C > 1; floats ``[n, C]`` for squared.
        loss: Name of the loss.
        num_outputs: Number of outputs ``C``. ``None``: the number of classes (largest label + 1), and 1 for hinge with
            labels 0 and 1; the number of target columns for squared. With one output, labels 0 and 1 are two classes.

    Returns:
        Float64 ``[n, C]``: one-hot rows (or 0/1 for one output), signs, or the targets.

    Raises:
        ValueError: Unknown loss, wrong shape or dtype, labels out of range, NaN or infinity.

    Example:
        >>> encode_targets(torch.tensor([0, 1]), loss="hinge")
        tensor([[-1.],
                [ 1.]], dtype=torch.float64)
    """
    check_loss(loss)
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets is a {type(targets).__name__}; expected a torch.Tensor.")
    if num_outputs is not None and num_outputs < 1:
        raise ValueError(f"num_outputs is {num_outputs}; expected a positive integer or None.")
    targets = targets.detach()
    if loss == "squared" or (loss == "cross_entropy" and targets.is_floating_point() and targets.ndim == 2):
        values = _check_real_targets(targets, num_outputs)
        return values if loss == "squared" else _normalised(values)
    if targets.is_floating_point() or targets.is_complex():
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
        num_outputs = 1 if loss == "hinge" and largest <= 1 else largest + 1
    classes = max(num_outputs, 2)
    if smallest < 0 or largest >= classes:
        raise ValueError(
            f"targets holds labels from {smallest} to {largest}; expected 0 to {classes - 1} for num_outputs="
            f"{num_outputs}. Drop ignored rows (or give them weight 0 and a valid label), or raise num_outputs."
        )
    if num_outputs == 1:
        encoded = labels[:, None].double()
    else:
        encoded = torch.nn.functional.one_hot(labels, num_outputs).double()
    return 2 * encoded - 1 if loss == "hinge" else encoded


def _check_real_targets(targets: Tensor, num_outputs: int | None) -> Tensor:
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


def _normalised(probabilities: Tensor) -> Tensor:
    """Rows of probabilities, exactly on the simplex."""
    total = probabilities.sum(1)
    if probabilities.shape[1] < 2 or bool((probabilities < 0).any()) or bool(((total - 1).abs() > _SIMPLEX).any()):
        worst = int((total - 1).abs().argmax())
        raise ValueError(
            f"targets of shape {tuple(probabilities.shape)} hold {float(probabilities.min()):g} and a row of sum "
            f"{float(total[worst]):g} (row {worst}); loss 'cross_entropy' expects labels [n], or probabilities [n, C] "
            "with C > 1 that are not negative and sum to 1. Several labels per row are no such thing."
        )
    return probabilities / total[:, None]


def check_weights(sample_weight: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Sample weights as float64 ``[n]``; ones when ``None``. Never renormalised.

    Raises:
        ValueError: Wrong shape, NaN, infinite or negative entries.
    """
    if sample_weight is None:
        return torch.ones(rows, dtype=torch.float64, device=device)
    weight = torch.as_tensor(sample_weight, device=device).detach()
    if tuple(weight.shape) != (rows,):
        raise ValueError(
            f"sample_weight has shape {tuple(weight.shape)}; expected ({rows},), one weight for each dictionary row."
        )
    weight = weight.to(torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("sample_weight holds NaN or infinite entries; expected finite numbers >= 0.")
    if bool((weight < 0).any()):
        raise ValueError(
            f"sample_weight has a negative entry ({float(weight.min())}); expected numbers >= 0. Use 0 to drop a row."
        )
    return weight


def row_losses(outputs: Tensor, encoded: Tensor, loss: Loss) -> Tensor:
    """Loss of each row, ``[n]``, for outputs and encoded targets ``[n, C]``."""
    if loss == "squared":
        return 0.5 * (outputs - encoded).square().sum(1)
    if loss == "hinge":
        return (1 - encoded * outputs).clamp_min(0).sum(1)
    if outputs.shape[1] == 1:
        return softplus((1 - 2 * encoded) * outputs)[:, 0]
    return torch.logsumexp(outputs, 1) - (encoded * outputs).sum(1)


def output_gradient(outputs: Tensor, encoded: Tensor, loss: Loss) -> Tensor:
    """Gradient of each row's loss in its outputs, ``[n, C]``; a subgradient for hinge (0 on the margin)."""
    if loss == "squared":
        return outputs - encoded
    if loss == "hinge":
        return torch.where(encoded * outputs < 1, -encoded, torch.zeros_like(outputs))
    probabilities = torch.sigmoid(outputs) if outputs.shape[1] == 1 else torch.softmax(outputs, 1)
    return probabilities - encoded


def constant_outputs(encoded: Tensor, weight: Tensor, loss: Loss) -> Tensor:
    """Outputs ``[C]`` of the best constant predictor; a class without weight gets the log of a tiny probability."""
    total = weight.sum().clamp_min(torch.finfo(torch.float64).tiny)
    mean = weight @ encoded / total
    if loss == "squared":
        return mean
    if loss == "hinge":
        return torch.where(mean >= 0, 1.0, -1.0).to(mean)
    tiny = 1e-12
    if encoded.shape[1] == 1:
        return torch.logit(mean.clamp(tiny, 1 - tiny))
    return mean.clamp_min(tiny).log()


def mean_loss(outputs: Tensor, targets: Tensor, *, loss: Loss, sample_weight: Tensor | None = None) -> float:
    r"""The data term of the programme at given outputs, without the penalty.

    :math:`\frac1n \sum_i s_i\,\ell(z_i, y_i)` in float64; natural logarithm; weights are not renormalised.

    Args:
        outputs: ``[n, C]``, any float dtype.
        targets: As for `encode_targets`. With one output, labels are 0 and 1.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        sample_weight: ``[n]``, ones by default.

    Raises:
        ValueError: Shapes that disagree, labels out of range, NaN or infinity.

    Example:
        >>> mean_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), loss="cross_entropy")
        0.6931471805599453
    """
    check_loss(loss)
    if outputs.ndim != 2 or outputs.numel() == 0:
        raise ValueError(f"outputs has shape {tuple(outputs.shape)}; expected a non-empty [n, C].")
    outputs = outputs.detach().double()
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("outputs holds NaN or infinite entries; expected finite numbers.")
    encoded = encode_targets(targets, loss=loss, num_outputs=outputs.shape[1]).to(outputs.device)
    if encoded.shape[0] != outputs.shape[0]:
        raise ValueError(f"targets has {encoded.shape[0]} rows and outputs has {outputs.shape[0]}; expected the same.")
    weight = check_weights(sample_weight, outputs.shape[0], outputs.device)
    return float(weight @ row_losses(outputs, encoded, loss)) / outputs.shape[0]
