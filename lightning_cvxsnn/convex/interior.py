r"""What the two interior point methods share: a predictor-corrector iteration, and the L1 norm's part of it.

Both work on non-negative pairs (value, slack) whose products are driven to zero together: Mehrotra, "On the
implementation of a primal-dual interior point method", SIAM J. Optim. 2(4), 1992. Penalised coefficients are ``x = up -
down``, and their slacks are ``rho + slope`` and ``rho - slope`` where ``slope`` is the gradient of the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AbsoluteValues", "factor", "predictor_corrector", "solve_factored"]

Direction = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def factor(matrix: Tensor, ridge: float = 1e-14) -> Tensor:
    """Cholesky factor of a positive semidefinite matrix; its diagonal is raised by ``ridge``, or by more if it must."""
    floor = 1e-14 * float(matrix.diagonal().max()) + 1e-300
    while True:
        raised = matrix.clone()
        raised.diagonal().mul_(1 + ridge).clamp_(min=floor)
        lower, failed = torch.linalg.cholesky_ex(raised)
        if not bool(failed) or ridge > 1:
            return lower
        ridge *= 100


def solve_factored(matrix: Tensor, lower: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix x = right`` with a factor of nearly that matrix; one refinement takes the ridge out again."""
    x = torch.cholesky_solve(right[:, None], lower)
    return (x + torch.cholesky_solve(right[:, None] - matrix @ x, lower))[:, 0]


def predictor_corrector(
    value: Tensor, slack: Tensor, direction: Direction, together: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration of Mehrotra's method.

    Args:
        value: Non-negative values ``[m]``.
        slack: Their slacks ``[m]``.
        direction: Maps wanted changes of the products ``[m]`` to directions of values, slacks and free variables.
        together: Whether values and slacks must move by the same length (quadratic objectives).

    Returns:
        New values, new slacks, step of the free variables.
    """
    gap = float(value @ slack)
    d_value, d_slack, _ = direction(-value * slack)
    primal, dual = _longest(value, d_value), _longest(slack, d_slack)
    ahead = float((value + primal * d_value) @ (slack + dual * d_slack))
    centre = (ahead / gap) ** 3 * gap / value.numel()
    d_value, d_slack, step = direction(centre - value * slack - d_value * d_slack)
    primal, dual = 0.995 * _longest(value, d_value), 0.995 * _longest(slack, d_slack)
    if together:
        primal = dual = min(primal, dual)
    return value + primal * d_value, slack + dual * d_slack, primal * step


def _longest(value: Tensor, direction: Tensor) -> float:
    """Largest step in (0, 1] that keeps ``value + step * direction`` non-negative."""
    return min(1.0, float(torch.where(direction < 0, -value / direction, torch.inf).min()))


@dataclass(frozen=True, eq=False)
class AbsoluteValues:
    """``rho |x|`` linearised at ``value = [up, down]`` and ``slack``, both ``[2k]``, for a given ``slope [k]``."""

    value: Tensor
    slack: Tensor
    slope: Tensor
    rho: Tensor | float

    @property
    def miss(self) -> Tensor:
        """What the slacks lack to ``rho + slope`` and ``rho - slope``."""
        return torch.cat([self.rho + self.slope, self.rho - self.slope]) - self.slack

    @property
    def theta(self) -> Tensor:
        """``[k]``; its inverse is what the norm adds to the diagonal of the system."""
        up, down = (self.value / self.slack).chunk(2)
        return up + down

    def drift(self, target: Tensor) -> Tensor:
        """Step of ``x`` if the slope stayed put, ``[k]``: over ``theta``, the norm's part of the right-hand side."""
        up, down = ((target - self.value * self.miss) / self.slack).chunk(2)
        return up - down

    def moves(self, target: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Directions of values and slacks that belong to a step of ``x``."""
        bend = (self.drift(target) - step) / self.theta  # of the slope, free of the system's cancellation
        d_slack = self.miss + torch.cat([bend, -bend])
        return (target - self.value * d_slack) / self.slack, d_slack
