"""What solvers of hinge programmes share: objectives and bounds of outputs that are separate programmes.

The first dimension of tensors is that of the outputs; ``sign [C, n]`` are their labels, 1 and -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme

__all__ = ["objectives", "proven"]


def objectives(programme: ReducedProgramme, penalty: ElasticNet, sign: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
    """Objectives ``[C]`` at ``coef [C, p]`` and their best intercepts ``[C]``."""
    margin, weight = sign * (programme.matrix @ coef.T).T, programme.weight
    fitted = programme.fit_intercept
    intercept = _best_intercepts(margin, sign, weight) if fitted else margin.new_zeros(len(margin))
    loss = (1 - margin - sign * intercept[:, None]).clamp_min(0)
    return loss @ weight + penalty.values(coef), intercept


def proven(
    programme: ReducedProgramme, penalty: ElasticNet, sign: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What multipliers ``alpha [C, n]`` in their boxes prove.

    Returns:
        Bounds ``[C]`` by the balanced multipliers, these ``[C, n]``, and the products ``D^T (sign alpha)`` of both,
        ``[2C, p]``: as given first.
    """
    feasible = _balanced(alpha, sign) if programme.fit_intercept else alpha
    both = (programme.matrix.T @ torch.cat([sign * alpha, sign * feasible]).T).T
    return penalty.bound(feasible.sum(1), both[len(alpha) :].abs()), feasible, both


def _best_intercepts(margin: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
    """Exact minimisers in ``b`` of ``sum weight max(0, 1 - margin - sign b)``: where the slopes change sign."""
    kink, order = (sign * (1 - margin)).sort(1)
    # left of every kink all positive rows pay; each kink passed raises the slope by its weight
    slope = weight[order].cumsum(1) - ((sign > 0) * weight).sum(1, keepdim=True)
    return kink.gather(1, (slope < 0).sum(1, keepdim=True).clamp(max=kink.shape[1] - 1))[:, 0]


def _balanced(alpha: Tensor, sign: Tensor) -> Tensor:
    """Multipliers with the heavier sign shrunk to the total of the lighter, as the intercept demands."""
    positive = torch.where(sign > 0, alpha, 0.0).sum(1, keepdim=True)
    negative = torch.where(sign < 0, alpha, 0.0).sum(1, keepdim=True)
    lighter = torch.minimum(positive, negative)
    shrink = lighter / torch.where(sign > 0, positive, negative)
    return torch.where(alpha > 0, alpha * shrink.clamp(max=1), 0.0)
