"""What losses of margins ``t z`` share: labels ``t`` of one class against the rest, and answers to one label alone."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex.losses.base import LossFunction, LossProof
from lightning_cvxsnn.convex.losses.encoding import check_targets, encode_signs

__all__ = ["MarginLoss", "MarginProof"]


class MarginLoss(LossFunction):
    """A sum over outputs of a function of ``t z`` that is 0 from 1 on; encoded targets are the signs ``t``."""

    @override
    def encode(self, targets: Tensor, num_outputs: int | None = None) -> Tensor:
        return encode_signs(check_targets(targets, num_outputs), self.name, num_outputs)

    @override
    def open_outputs(self, encoded: Tensor) -> Tensor:
        return (encoded != encoded[0]).any(0).nonzero()[:, 0]

    @override
    def trivial_intercepts(self, encoded: Tensor, weight: Tensor, others: Tensor | None, slack: float) -> Tensor:
        """The sign itself: all of an output's signs agree, so its margin is 1 everywhere and its loss 0."""
        return encoded[0]


class MarginProof(LossProof):
    """Of margin losses: dual points are ``U = t alpha`` with multipliers ``alpha >= 0``."""

    def _balanced(self, alpha: Tensor, encoded: Tensor) -> Tensor:
        """Multipliers of the heavier sign shrunk to the total of the lighter, so that ``sum_i t_i alpha_i = 0``."""
        positive, negative = (alpha.where(encoded * sign > 0, 0.0).sum(0) for sign in (1, -1))
        lighter = torch.minimum(positive, negative)
        shrink = torch.where(encoded > 0, lighter / positive, lighter / negative)
        return torch.where(alpha > 0, alpha * shrink.clamp(max=1), 0.0)
