r"""Proof of optimality: a primal value, a lower bound on the optimum, and nothing taken on trust.

Weak duality for ``min (1/n) sum_i s_i loss(D_i W + b, y_i) + penalty(W)`` gives a bound for every ``U`` in the loss's
domain (with ``sum_i U_i = 0`` if ``b`` is fitted): the loss's dual value less the penalty's conjugate at ``D^T U``,
which for L1 is 0 where ``|D^T U| <= rho`` and infinite elsewhere. The formulas are those of the proof classes of
:mod:`~lightning_cvxsnn.convex.losses` and :mod:`~lightning_cvxsnn.convex.penalties`, written out there a second time on
purpose. But for the matrix products, no numerical code is shared with the solvers that the certificate judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.losses import LossProof, RayProof
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.penalties import ElasticNetProof

__all__ = ["Certificate", "Certifier"]

_LOOKS = 60  # for the best multiple of a dual point, at most
_SETTLED = 1e-12  # relative change of a factor that ends the search


@dataclass(frozen=True)
class Certificate:
    """Primal value, best lower bound found, and their difference, all in float64.

    Attributes:
        primal: Objective at the given coefficients and intercept.
        dual: A lower bound on the optimum, never below 0.
        gap: ``primal - dual``: at least the true suboptimality (up to rounding, about 1e-14 of the objective).
        violation: ``max(0, max |D^T U| / rho - 1)`` of the dual point that gave ``dual``, after it was repaired to the
            box or simplex and to the intercept's equality, before it was scaled. ``None`` with ``l1_ratio < 1``, where
            every such point is feasible.
    """

    primal: float
    dual: float
    gap: float
    violation: float | None


@dataclass(frozen=True, eq=False)
class Certifier:
    """A checked programme, as its certificates see it.

    Attributes:
        matrix: ``[n, P]``.
        encoded: ``[n, C]``.
        weight: ``[n]`` sample weights.
        loss: The certificate's arithmetic for the loss.
        penalty: The same for the penalty, with its strength.
        fit_intercept: Whether the programme minimises over the intercept.
    """

    matrix: Matrix
    encoded: Tensor
    weight: Tensor
    loss: LossProof
    penalty: ElasticNetProof
    fit_intercept: bool

    def certify(self, coef: Tensor, intercept: Tensor, dual_point: Tensor | None) -> tuple[Certificate, Tensor]:
        """The certificate of a checked point, and the feasible dual point ``[n, C]`` that it used."""
        rows = self.matrix.shape[0]
        outputs = self.matrix @ coef + self.loss.near_zero(intercept)
        primal = float(self.weight @ self.loss.values(outputs, self.encoded)) / rows + self.penalty.value(coef)
        primal = math.inf if math.isnan(primal) else primal  # outputs overflow
        best, point = 0.0, torch.zeros_like(outputs)  # U = 0 is feasible and bounds by 0
        violation = self.penalty.violation(point[:1])
        scale = self.weight[:, None] / rows
        candidates = [self.loss.residuals(outputs, self.encoded, scale)]
        if dual_point is not None:
            candidates.insert(0, dual_point)
        repaired = [self.loss.repair(u, self.encoded, scale, self.fit_intercept) for u in candidates]
        correlations = (self.matrix.T @ torch.cat(repaired, 1)).abs().chunk(len(repaired), 1)
        for candidate, correlation in zip(repaired, correlations, strict=True):
            ray = self.loss.ray(candidate, self.encoded, self.weight)
            factor, value = self._best_multiple(ray, correlation)
            if math.isfinite(value) and value > best:
                best, point, violation = value, candidate * factor, self.penalty.violation(correlation)
        return Certificate(primal, best, primal - best, violation), point

    def _best_multiple(self, ray: RayProof, correlation: Tensor) -> tuple[Tensor, float]:
        """Factors of a dual point and the bound that the multiple gives."""
        shared = len(ray.best) < correlation.shape[1]
        free = self.penalty.free(correlation)
        free = free.min()[None] if shared else free
        factor = torch.maximum(torch.minimum(ray.best, free), -free)
        if self.penalty.l1_ratio == 1 or bool((ray.best <= factor).all()):
            return factor, ray.value(factor)
        factor = self._where_it_stops_rising(ray, correlation, factor.clamp_min(0))
        return factor, ray.value(factor) - self.penalty.cost(factor, correlation)

    def _where_it_stops_rising(self, ray: RayProof, correlation: Tensor, low: Tensor) -> Tensor:
        """Newton's method for the largest bound, concave in the factors, between ``low`` and ``ray.best``."""
        factor = high = torch.maximum(ray.best, low)
        for _ in range(_LOOKS):
            slope, curvature = ray.slopes(factor)
            paid, bend = self.penalty.slopes(factor, correlation)
            if len(factor) < len(paid):
                paid, bend = paid.sum()[None], bend.sum()[None]
            slope, curvature = slope - paid, curvature + bend
            low, high = torch.where(slope > 0, factor, low), torch.where(slope > 0, high, factor)
            newton = factor + slope / curvature
            moved = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
            if bool(((moved - factor).abs() <= _SETTLED * factor).all()):
                break
            factor = moved
        return factor
