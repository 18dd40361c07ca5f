"""Squared loss: ``0.5 ||z - y||^2``, as scikit-learn, celer and skglm have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex.losses.base import LossProof, QuadraticRayProof, RayProof, SmoothLoss, mean_target
from lightning_cvxsnn.convex.losses.encoding import check_targets, encode_values

__all__ = ["Squared", "SquaredProof"]


class Squared(SmoothLoss):
    """``0.5 ||z - y||^2``; encoded targets are the targets."""

    name = "squared"
    decides = False
    follows_targets = True
    quadratic = True

    @override
    def trained_factors(self, num_outputs: int) -> tuple[float, ...]:
        """1, and 2 / C: torch's ``mse_loss`` averages over outputs and does not halve."""
        return 1.0, 2.0 / num_outputs

    @override
    def encode(self, targets: Tensor, num_outputs: int | None = None) -> Tensor:
        return encode_values(check_targets(targets, num_outputs), num_outputs)

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return 0.5 * (outputs - encoded).square().sum(1)

    @override
    def gradient(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return outputs - encoded

    @override
    def curvature(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return torch.ones_like(outputs)

    @override
    def constant(self, encoded: Tensor, weight: Tensor) -> Tensor:
        return mean_target(encoded, weight)

    @override
    def expression(self, cvxpy: Any, outputs: Any, encoded: Any, weight: Any) -> Any:
        return cvxpy.sum(cvxpy.multiply(weight[:, None], cvxpy.square(outputs - encoded))) / 2


class SquaredProof(LossProof):
    """Any ``U`` is dual feasible that is 0 where ``s_i = 0``; its value is ``sum u_i.y_i - n |u_i|^2 / (2 s_i)``."""

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        return (outputs - encoded).square().sum(1) / 2

    @override
    def residuals(self, outputs: Tensor, encoded: Tensor, scale: Tensor) -> Tensor:
        return scale * (encoded - outputs)

    @override
    def repair(self, point: Tensor, encoded: Tensor, scale: Tensor, fit_intercept: bool) -> Tensor:
        point = torch.where(scale > 0, point, 0.0)
        if not fit_intercept or not bool((share := scale.sum()) > 0):
            return point
        for _ in range(2):  # the second pass removes the rounding error of the first
            point = point - scale / share * point.sum(0)
        # of equal residuals nothing but such errors is left, all of one sign: any multiple would break the equality
        balanced = point.sum(0).abs() <= 1e-12 * point.abs().sum(0)
        return torch.where(balanced, point, 0.0)

    @override
    def ray(self, point: Tensor, encoded: Tensor, weight: Tensor) -> RayProof:
        used = weight > 0
        curvature = (point[used].square() / weight[used, None]).sum(0) * len(point)
        return QuadraticRayProof((point * encoded).sum(0), curvature)
