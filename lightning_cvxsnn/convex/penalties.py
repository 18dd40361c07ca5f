"""The penalty of the programmes: what the solvers ask of it, and what the certificate asks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["ElasticNet", "ElasticNetProof", "proof_of", "soft_threshold"]

_LOOKS = 40  # for the best multiple of a dual point, at most


@dataclass(frozen=True, eq=False)
class ElasticNet:
    """``rho (a sum_jc |W_jc| + (1 - a)/2 sum_jc W_jc^2 / k_j)``: L1 at ``a = 1``, ridge at ``a = 0``.

    Attributes:
        rho: Strength, positive.
        l1_ratio: ``a``, in [0, 1].
        multiplicity: ``[p]``, how many equal columns share each weight; ``None``: one.
    """

    rho: float = 1.0
    l1_ratio: float = 1.0
    multiplicity: Tensor | None = None

    def at(self, rho: float) -> ElasticNet:
        """The same penalty at another strength."""
        return replace(self, rho=rho)

    def merged(self, multiplicity: Tensor) -> ElasticNet:
        """The same penalty of columns that stand for ``multiplicity [p]`` equal ones each."""
        return self if self.l1_ratio == 1 else replace(self, multiplicity=multiplicity)

    @property
    def l1(self) -> float:
        """Weight of each absolute value."""
        return self.rho * self.l1_ratio

    @property
    def l2(self) -> float:
        """Weight of half of each square, over the column's multiplicity."""
        return self.rho * (1 - self.l1_ratio)

    def curvature(self, columns: int) -> Tensor | None:
        """Second derivative ``[columns, 1]`` in the coefficients of each column; ``None`` where it is 0."""
        if self.l1_ratio == 1:
            return None
        if self.multiplicity is None:
            return torch.full((columns, 1), self.l2, dtype=torch.float64)
        return (self.l2 / self.multiplicity)[:, None]

    def value(self, coef: Tensor) -> Tensor:
        """Of coefficients ``[p, C]``, a scalar."""
        value = self.l1 * coef.abs().sum()
        curvature = self.curvature(len(coef))
        return value if curvature is None else value + (curvature.to(coef) * coef.square()).sum() / 2

    def values(self, coef: Tensor) -> Tensor:
        """Of each row of ``coef [C, p]``."""
        values = self.l1 * coef.abs().sum(1)
        curvature = self.curvature(coef.shape[1])
        return values if curvature is None else values + coef.square() @ curvature.to(coef)[:, 0] / 2

    def weights(self, penalised: Tensor) -> Tensor:
        """Weight of the absolute value of each coefficient, where ``penalised`` is 1, or 0 for an intercept."""
        return self.l1 * penalised

    def excess(self, slope: Tensor) -> Tensor:
        """How far the loss's slope at a zero coefficient exceeds what zero is optimal for; negative if it does not."""
        return slope.abs() - self.l1

    def bend(self, index: Tensor) -> Tensor | float:
        """Second derivatives in the coefficients of the columns ``index``, in its shape."""
        return self.l2 if self.multiplicity is None else self.l2 / self.multiplicity[index]

    def bound(self, total: Tensor, correlation: Tensor) -> Tensor:
        """What the best multiples of dual points prove ``[C]``.

        Args:
            total: Their values ``[C]``, linear in the multiple.
            correlation: ``|D^T U|``, ``[C, p]``.
        """
        if self.l1_ratio == 1:
            return total * (self.l1 / correlation.amax(1).clamp_min(1e-300)).clamp(max=1)
        count: Tensor | float = 1.0 if self.multiplicity is None else self.multiplicity
        factor = torch.ones_like(total)
        for _ in range(_LOOKS):  # Newton's method from above: the slope is concave and piecewise linear there
            over = (factor[:, None] * correlation - self.l1).clamp_min(0)
            pull = count * correlation / self.l2
            slope = total - (pull * over).sum(1)
            if bool((slope >= -1e-9 * total).all()):
                break
            factor = factor + (slope / (pull * correlation * (over > 0)).sum(1).clamp_min(1e-300)).clamp(max=0)
        over = (factor[:, None] * correlation - self.l1).clamp_min(0)
        return factor * total - (count * over.square()).sum(1) / (2 * self.l2)

    def largest_rho(self, slope: Tensor, least_ratio: float = 0.0) -> float:
        """The smallest strength at which zero coefficients are optimal for a loss of this slope; infinite for ridge.

        Args:
            slope: Of the loss at zero coefficients.
            least_ratio: An ``l1_ratio`` below this counts as this.
        """
        steepest, ratio = float(slope.abs().max()), max(self.l1_ratio, least_ratio)
        if steepest == 0:
            return 0.0
        return steepest / ratio if ratio else float("inf")

    def expression(self, cvxpy: Any, coef: Any) -> Any:
        """The penalty of an expression ``[p, C]`` of the module CVXPY."""
        value = self.l1 * cvxpy.sum(cvxpy.abs(coef))
        curvature = self.curvature(coef.shape[0])
        if curvature is None:
            return value
        return value + cvxpy.sum(cvxpy.multiply(curvature.cpu().numpy(), cvxpy.square(coef))) / 2


def soft_threshold(point: Tensor, threshold: Tensor | float) -> Tensor:
    """``point`` moved towards zero by ``threshold``, to zero where it is smaller."""
    return point.sign() * (point.abs() - threshold).clamp_min(0)


@dataclass(frozen=True, eq=False)
class ElasticNetProof:
    """The certificate's own arithmetic for :class:`ElasticNet`.

    At ``a = 1`` dual points obey ``|D^T U| <= rho`` and cost nothing more. Below, every point is feasible, and its
    value falls by ``sum_jc k_j max(0, |D_j^T U_c| - rho a)^2 / (2 rho (1 - a))``. Correlations are ``|D^T U|``,
    ``[P, C]``.
    """

    rho: float
    l1_ratio: float
    multiplicity: Tensor | None = None

    def value(self, coef: Tensor) -> float:
        """The penalty of ``coef [P, C]``."""
        absolute = self.rho * self.l1_ratio * float(coef.abs().sum())
        if self.l1_ratio == 1:
            return absolute
        squares = coef.square().sum(1)
        if self.multiplicity is not None:
            squares = squares / self.multiplicity
        return absolute + self.rho * (1 - self.l1_ratio) * float(squares.sum()) / 2

    def free(self, correlation: Tensor) -> Tensor:
        """Largest factors ``[C]`` of a dual point that cost nothing."""
        largest = correlation.amax(0).clamp_min(torch.finfo(torch.float64).tiny)
        return self.rho * self.l1_ratio * (1 - 1e-14) / largest

    def cost(self, factor: Tensor, correlation: Tensor) -> float:
        """What a multiple of a dual point costs beyond the free ones, where it costs anything."""
        over = (factor * correlation - self.rho * self.l1_ratio).clamp_min(0).square().sum(1)
        if self.multiplicity is not None:
            over = over * self.multiplicity
        return float(over.sum()) / (2 * self.rho * (1 - self.l1_ratio))

    def slopes(self, factor: Tensor, correlation: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative ``[C]`` of each output's cost in its factor."""
        over = (factor * correlation - self.rho * self.l1_ratio).clamp_min(0)
        weight = correlation / (self.rho * (1 - self.l1_ratio))
        if self.multiplicity is not None:
            weight = weight * self.multiplicity[:, None]
        return (weight * over).sum(0), (weight * correlation * (over > 0)).sum(0)

    def violation(self, correlation: Tensor) -> float | None:
        """How far a dual point is from feasible, relative to rho; ``None`` where every one is feasible."""
        return None if self.l1_ratio < 1 else max(0.0, float(correlation.max()) / self.rho - 1)


def proof_of(penalty: ElasticNet) -> ElasticNetProof:
    """The certificate's arithmetic for a penalty, at its strength."""
    return ElasticNetProof(penalty.rho, penalty.l1_ratio, penalty.multiplicity)
