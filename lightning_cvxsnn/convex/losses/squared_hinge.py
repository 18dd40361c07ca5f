"""Squared hinge loss, one class against the rest: ``sum_c max(0, 1 - t_c z_c)^2``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex.losses.base import QuadraticRayProof, RayProof, SmoothLoss, mean_target
from lightning_cvxsnn.convex.losses.margins import MarginLoss, MarginProof

__all__ = ["SquaredHinge", "SquaredHingeProof"]


class SquaredHinge(MarginLoss, SmoothLoss):
    """``sum_c max(0, 1 - t_c z_c)^2``: once differentiable, of curvature 2 inside the margin and 0 outside."""

    name = "squared_hinge"

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return (1 - encoded * outputs).clamp_min(0).square().sum(1)

    @override
    def gradient(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return -2 * encoded * (1 - encoded * outputs).clamp_min(0)

    @override
    def curvature(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return 2 * (encoded * outputs < 1).to(outputs)

    @override
    def constant(self, encoded: Tensor, weight: Tensor) -> Tensor:
        """The mean label: no label is beyond the margin of a constant in [-1, 1], where the loss is ``(t - z)^2``."""
        return mean_target(encoded, weight)

    @override
    def expression(self, cvxpy: Any, outputs: Any, encoded: Any, weight: Any) -> Any:
        return cvxpy.sum(cvxpy.multiply(weight[:, None], cvxpy.square(cvxpy.pos(1 - cvxpy.multiply(encoded, outputs)))))


class SquaredHingeProof(MarginProof):
    """``U = t alpha`` with ``alpha >= 0`` (0 where ``s_i = 0``); its value is ``sum alpha - n alpha^2 / (4 s)``."""

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return torch.relu(1 - encoded * outputs).square().sum(1)

    @override
    def residuals(self, outputs: Tensor, encoded: Tensor, scale: Tensor) -> Tensor:
        return 2 * scale * encoded * torch.relu(1 - encoded * outputs)

    @override
    def repair(self, point: Tensor, encoded: Tensor, scale: Tensor, fit_intercept: bool) -> Tensor:
        """Negative multipliers become 0; with an intercept, balanced."""
        alpha = torch.where(scale > 0, (encoded * point).clamp_min(0), 0.0)
        return encoded * (self._balanced(alpha, encoded) if fit_intercept else alpha)

    @override
    def ray(self, point: Tensor, encoded: Tensor, weight: Tensor) -> RayProof:
        used = weight > 0
        curvature = (point[used].square() / weight[used, None]).sum(0) * len(point) / 2
        return QuadraticRayProof((point * encoded).sum(0), curvature)
