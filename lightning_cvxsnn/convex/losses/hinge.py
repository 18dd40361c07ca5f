"""Hinge loss, one class against the rest: ``sum_c max(0, 1 - t_c z_c)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex.losses.base import LinearRayProof, RayProof, mean_target
from lightning_cvxsnn.convex.losses.margins import MarginLoss, MarginProof

__all__ = ["Hinge", "HingeProof"]


class Hinge(MarginLoss):
    """``sum_c max(0, 1 - t_c z_c)``: piecewise linear, so that each output is a linear programme."""

    name = "hinge"

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return (1 - encoded * outputs).clamp_min(0).sum(1)

    @override
    def gradient(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """A subgradient: 0 on the margin."""
        return torch.where(encoded * outputs < 1, -encoded, torch.zeros_like(outputs))

    @override
    def constant(self, encoded: Tensor, weight: Tensor) -> Tensor:
        mean = mean_target(encoded, weight)
        return torch.where(mean >= 0, 1.0, -1.0).to(mean)

    @override
    def constant_dual(self, encoded: Tensor, weight: Tensor, fit_intercept: bool) -> Tensor:
        """With an intercept the lighter label pays in full, and the heavier one as much in all."""
        if not fit_intercept:
            return super().constant_dual(encoded, weight, fit_intercept)
        positive = (weight[:, None] * (encoded > 0)).sum(0)
        negative = (weight[:, None] * (encoded < 0)).sum(0)
        lighter = torch.minimum(positive, negative)
        return weight[:, None] * encoded * torch.where(encoded > 0, lighter / positive, lighter / negative)

    @override
    def expression(self, cvxpy: Any, outputs: Any, encoded: Any, weight: Any) -> Any:
        return cvxpy.sum(cvxpy.multiply(weight[:, None], cvxpy.pos(1 - cvxpy.multiply(encoded, outputs))))


class HingeProof(MarginProof):
    """``U = t alpha`` with ``0 <= alpha_i <= s_i / n`` is dual feasible; its value is ``sum alpha``."""

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return torch.relu(1 - encoded * outputs).sum(1)

    @override
    def residuals(self, outputs: Tensor, encoded: Tensor, scale: Tensor) -> Tensor:
        """At an optimum rows sit exactly on the margin, where this is 0 and the multipliers are not: a poor point."""
        return scale * encoded * (encoded * outputs < 1)

    @override
    def repair(self, point: Tensor, encoded: Tensor, scale: Tensor, fit_intercept: bool) -> Tensor:
        """Into the box; with an intercept, balanced."""
        alpha = torch.minimum((encoded * point).clamp_min(0), scale)
        return encoded * (self._balanced(alpha, encoded) if fit_intercept else alpha)

    @override
    def ray(self, point: Tensor, encoded: Tensor, weight: Tensor) -> RayProof:
        return LinearRayProof((encoded * point).sum(0))
