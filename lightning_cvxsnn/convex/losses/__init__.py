"""The losses of the programmes: one file each, and the one list of them.

A file holds the loss as the solvers use it and, in a class that shares no code with it, as the certificate does. To add
one, write its file and enter it in :data:`Loss` and in the table below.
"""

from __future__ import annotations

from typing import Literal

from lightning_cvxsnn.convex.losses.base import LossFunction, LossProof, RayProof, SmoothLoss
from lightning_cvxsnn.convex.losses.cross_entropy import CrossEntropy, CrossEntropyProof
from lightning_cvxsnn.convex.losses.hinge import Hinge, HingeProof
from lightning_cvxsnn.convex.losses.squared import Squared, SquaredProof
from lightning_cvxsnn.convex.losses.squared_hinge import SquaredHinge, SquaredHingeProof

__all__ = ["LOSSES", "Loss", "LossFunction", "LossProof", "RayProof", "SmoothLoss", "loss_named", "proof_named"]

Loss = Literal["cross_entropy", "hinge", "squared", "squared_hinge"]

LOSSES: dict[str, tuple[LossFunction, LossProof]] = {
    "cross_entropy": (CrossEntropy(), CrossEntropyProof()),
    "hinge": (Hinge(), HingeProof()),
    "squared": (Squared(), SquaredProof()),
    "squared_hinge": (SquaredHinge(), SquaredHingeProof()),
}


def loss_named(name: str) -> LossFunction:
    """The loss as the solvers use it.

    Raises:
        ValueError: For a name that is not in :data:`Loss`.

    Example:
        >>> import torch
        >>> loss_named("hinge").encode(torch.tensor([0, 1]))
        tensor([[-1.],
                [ 1.]], dtype=torch.float64)
    """
    return _entry(name)[0]


def proof_named(name: str) -> LossProof:
    """The loss as the certificate uses it; errors as for :func:`loss_named`."""
    return _entry(name)[1]


def _entry(name: str) -> tuple[LossFunction, LossProof]:
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"loss is {name!r}; expected one of {', '.join(map(repr, LOSSES))}.")
    return LOSSES[name]
