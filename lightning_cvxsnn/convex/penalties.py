"""The penalty of the programmes: what the solvers ask of it, and what the certificate asks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["L1", "L1Proof", "proof_of", "soft_threshold"]


@dataclass(frozen=True)
class L1:
    """``rho sum_jc |W_jc|``.

    Attributes:
        rho: Strength, positive.
    """

    rho: float = 1.0

    def at(self, rho: float) -> L1:
        """The same penalty at another strength."""
        return replace(self, rho=rho)

    def value(self, coef: Tensor) -> Tensor:
        """Of coefficients of any shape, a scalar."""
        return self.rho * coef.abs().sum()

    def values(self, coef: Tensor) -> Tensor:
        """Of each row of ``coef [C, p]``."""
        return self.rho * coef.abs().sum(1)

    def prox(self, point: Tensor, step: float = 1.0) -> Tensor:
        """The minimiser of ``|w - point|^2 / 2 + step * value(w)``."""
        return soft_threshold(point, step * self.rho)

    def weights(self, penalised: Tensor) -> Tensor:
        """Weight of the absolute value of each coefficient, where ``penalised`` is 1, or 0 for an intercept."""
        return self.rho * penalised

    def excess(self, slope: Tensor) -> Tensor:
        """How far the loss's slope at a zero coefficient exceeds what zero is optimal for; negative if it does not."""
        return slope.abs() - self.rho

    def shrinkage(self, correlation: Tensor) -> Tensor:
        """Factors ``[C]``, at most 1, that make dual points feasible with ``correlation = |D^T U|``, ``[C, p]``."""
        return (self.rho / correlation.amax(1).clamp_min(1e-300)).clamp(max=1)

    def largest_rho(self, slope: Tensor) -> float:
        """The smallest strength at which zero coefficients are optimal for a loss of this slope."""
        return float(slope.abs().max())

    def expression(self, cvxpy: Any, coef: Any) -> Any:
        """The penalty of an expression of the module CVXPY."""
        return self.rho * cvxpy.sum(cvxpy.abs(coef))


def soft_threshold(point: Tensor, threshold: Tensor | float) -> Tensor:
    """``point`` moved towards zero by ``threshold``, to zero where it is smaller."""
    return point.sign() * (point.abs() - threshold).clamp_min(0)


@dataclass(frozen=True)
class L1Proof:
    """The certificate's own arithmetic for :class:`L1`: dual points obey ``|D^T U| <= rho`` and cost nothing more."""

    rho: float

    def value(self, coef: Tensor) -> float:
        """The penalty."""
        return self.rho * float(coef.abs().sum())

    def limits(self, correlation: Tensor) -> Tensor:
        """Largest factors ``[C]`` that keep dual points feasible, where ``correlation [C]`` is ``max_j |D_j^T U|``."""
        return self.rho * (1 - 1e-14) / correlation.clamp_min(torch.finfo(torch.float64).tiny)

    def violation(self, correlation: Tensor) -> float:
        """How far a dual point is from feasible, relative to rho."""
        return max(0.0, float(correlation.max()) / self.rho - 1)


def proof_of(penalty: L1) -> L1Proof:
    """The certificate's arithmetic for a penalty, at its strength."""
    return L1Proof(penalty.rho)
