r"""What the two interior point methods share: a predictor-corrector iteration, and the L1 norm's part of it.

Both work on non-negative pairs (value, slack) whose products are driven to zero together: Mehrotra, "On the
implementation of a primal-dual interior point method", SIAM J. Optim. 2(4), 1992. Penalised coefficients are ``x = up -
down``, and their slacks are ``rho + slope`` and ``rho - slope`` where ``slope`` is the gradient of the rest. Dimensions
before the last are separate programmes, solved together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.runtime.work import count_work

__all__ = ["AbsoluteValues", "Direction", "NewtonSystem", "factor", "predictor_corrector"]

#: From wanted changes of the products to directions of values, slacks and free variables.
Direction = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def factor(matrix: Tensor, ridge: float = 1e-14) -> Tensor:
    """Cholesky factor of positive semidefinite matrices; diagonals are raised by ``ridge``, or by more if they must."""
    floor = 1e-28 * matrix.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True) + 1e-300
    while True:
        raised = matrix.clone()
        diagonal = raised.diagonal(dim1=-2, dim2=-1)
        diagonal.copy_((diagonal * (1 + ridge)).maximum(floor))
        count_work(matrix.numel() * matrix.shape[-1] // 6)
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(raised)
        if not bool(failed.any()) or ridge > 1:
            return lower
        ridge *= 100


def predictor_corrector(
    value: Tensor, slack: Tensor, direction: Direction, together: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration of Mehrotra's method.

    Args:
        value: Non-negative values ``[..., m]``.
        slack: Their slacks ``[..., m]``.
        direction: Maps wanted changes of the products ``[..., m]`` to directions of values, slacks and free variables.
        together: Whether values and slacks must move by the same length (quadratic objectives).

    Returns:
        New values, new slacks, step of the free variables.
    """
    gap = (value * slack).sum(-1, keepdim=True)
    d_value, d_slack, _ = direction(-value * slack)
    primal, dual = _longest(value, d_value), _longest(slack, d_slack)
    ahead = ((value + primal * d_value) * (slack + dual * d_slack)).sum(-1, keepdim=True)
    centre = (ahead / gap) ** 3 * gap / value.shape[-1]
    d_value, d_slack, step = direction(centre - value * slack - d_value * d_slack)
    primal, dual = 0.995 * _longest(value, d_value), 0.995 * _longest(slack, d_slack)
    if together:
        primal = dual = torch.minimum(primal, dual)
    return value + primal * d_value, slack + dual * d_slack, primal * step


def _longest(value: Tensor, direction: Tensor) -> Tensor:
    """Largest step in (0, 1] that keeps ``value + step * direction`` non-negative, ``[..., 1]``."""
    return torch.where(direction < 0, -value / direction, torch.inf).amin(-1, keepdim=True).clamp(max=1.0)


@dataclass(frozen=True, eq=False)
class AbsoluteValues:
    """``rho |x|`` linearised at ``value = [up, down]`` and ``slack``, ``[..., 2k]``, for a given ``slope [..., k]``."""

    value: Tensor
    slack: Tensor
    slope: Tensor
    rho: Tensor | float

    @property
    def miss(self) -> Tensor:
        """What the slacks lack to ``rho + slope`` and ``rho - slope``."""
        return torch.cat([self.rho + self.slope, self.rho - self.slope], -1) - self.slack

    @property
    def theta(self) -> Tensor:
        """``[..., k]``; its inverse is what the norm adds to the diagonal of the system."""
        up, down = (self.value / self.slack).chunk(2, -1)
        return up + down

    def drift(self, target: Tensor) -> Tensor:
        """Step of ``x`` if the slope stayed put, ``[..., k]``: over ``theta``, its part of the right-hand side."""
        up, down = ((target - self.value * self.miss) / self.slack).chunk(2, -1)
        return up - down

    def moves(self, target: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Directions of values and slacks that belong to a step of ``x``."""
        bend = (self.drift(target) - step) / self.theta  # of the slope, free of the system's cancellation
        d_slack = self.miss + torch.cat([bend, -bend], -1)
        return (target - self.value * d_slack) / self.slack, d_slack


class NewtonSystem:
    """The linear system of both directions of an iteration, with everything but the coefficients eliminated.

    Args:
        curvature: ``[..., k, k]`` of what is not the norm; it is changed.
        norm: The norm at the point.
        penalised: Which of the ``k`` coefficients the norm is of.
    """

    def __init__(self, curvature: Tensor, norm: AbsoluteValues, penalised: Tensor | slice) -> None:
        self.norm, self.penalised = norm, penalised
        self.matrix = curvature
        self.matrix.diagonal(dim1=-2, dim2=-1)[..., penalised] += 1 / norm.theta
        self.lower = factor(self.matrix)

    def step(self, right: Tensor) -> Tensor:
        """Solution ``[..., k]`` for a right-hand side; one refinement takes the factor's ridge out again."""
        right = right[..., None]
        x = torch.cholesky_solve(right, self.lower)
        refined: Tensor = x + torch.cholesky_solve(right - self.matrix @ x, self.lower)
        return refined[..., 0]
