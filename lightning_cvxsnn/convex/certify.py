r"""Proof of optimality: a primal value, a lower bound on the optimum, and nothing taken on trust.

Weak duality for ``min (1/n) sum_i s_i loss(D_i W + b, y_i) + rho |W|_1`` gives a bound ``D(U)`` for every ``U`` in the
loss's domain with ``|D^T U| <= rho`` (and ``sum_i U_i = 0`` if ``b`` is fitted). Domains and bounds are those of the
proof classes of :mod:`~lightning_cvxsnn.convex.losses` and :mod:`~lightning_cvxsnn.convex.penalties`: the formulas are
written out there a second time on purpose. But for the matrix products, no numerical code is shared with the solvers
that the certificate judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.losses import LossProof
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.penalties import L1Proof

__all__ = ["Certificate", "Certifier"]


@dataclass(frozen=True)
class Certificate:
    """Primal value, best lower bound found, and their difference, all in float64.

    Attributes:
        primal: Objective at the given coefficients and intercept.
        dual: A lower bound on the optimum, never below 0.
        gap: ``primal - dual``: at least the true suboptimality (up to rounding, about 1e-14 of the objective).
        violation: ``max(0, max |D^T U| / rho - 1)`` of the dual point that gave ``dual``, after it was repaired to the
            box or simplex and to the intercept's equality, before it was scaled.
    """

    primal: float
    dual: float
    gap: float
    violation: float


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
    penalty: L1Proof
    fit_intercept: bool

    def certify(self, coef: Tensor, intercept: Tensor, dual_point: Tensor | None) -> tuple[Certificate, Tensor]:
        """The certificate of a checked point, and the feasible dual point ``[n, C]`` that it used."""
        rows = self.matrix.shape[0]
        outputs = self.matrix @ coef + self.loss.near_zero(intercept)
        primal = float(self.weight @ self.loss.values(outputs, self.encoded)) / rows + self.penalty.value(coef)
        primal = math.inf if math.isnan(primal) else primal  # outputs overflow
        best, violation, point = 0.0, 0.0, torch.zeros_like(outputs)  # U = 0 is feasible and bounds by 0
        scale = self.weight[:, None] / rows
        candidates = [self.loss.residuals(outputs, self.encoded, scale)]
        if dual_point is not None:
            candidates.insert(0, dual_point)
        repaired = [self.loss.repair(u, self.encoded, scale, self.fit_intercept) for u in candidates]
        correlations = (self.matrix.T @ torch.cat(repaired, 1)).abs().amax(0).chunk(len(repaired))
        for candidate, correlation in zip(repaired, correlations, strict=True):
            limits = self.penalty.limits(correlation)
            scaled, value = self.loss.scaled(candidate, self.encoded, self.weight, limits)
            if math.isfinite(value) and value > best:
                best, point, violation = value, scaled, self.penalty.violation(correlation)
        return Certificate(primal, best, primal - best, violation), point
