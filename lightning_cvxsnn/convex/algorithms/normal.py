"""The squared loss with a ridge penalty: normal equations, one Gram for all rhos and all outputs.

A Cholesky factor in float32 costs little for each rho and is right to a few digits; conjugate gradients on the float64
Gram, which it preconditions, find the others in two or three products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule
from lightning_cvxsnn.convex.algorithms.interior import factor
from lightning_cvxsnn.convex.losses import SmoothLoss
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme, largest_count
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["NormalEquations"]

_STRIPE = 256  # columns of a Gram that are computed together
_EXACT = 2**24  # integers that float32 holds
_RIDGE = 1e-6  # relative, of the factor: a float32 Gram is not more exact


@dataclass(frozen=True)
class NormalEquations:
    """One Gram, and a factor for each rho.

    Attributes:
        iteration_limit: Steps of conjugate gradients, if the stopping rule has no limit of its own.
        largest: Columns, so that the Gram stays below half a GiB.
    """

    iteration_limit: int = 100
    largest: int = 8192

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """The squared loss with ridge, of no more columns than rows."""
        rows, columns = programme.matrix.shape
        quadratic = isinstance(programme.loss, SmoothLoss) and programme.loss.quadratic
        ridge = isinstance(penalty, ElasticNet) and penalty.l1_ratio == 0
        return quadratic and ridge and columns <= min(rows, self.largest)

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme; see :class:`Algorithm`. Its residuals are the best dual point."""
        system: _System = programme.kept.get("normal") or _System(programme)
        programme.kept["normal"] = system
        limit = self.iteration_limit if stop.max_iterations is None else stop.max_iterations
        ridge, gram = penalty.l2, system.gram
        x = start.coef / system.root[:, None]
        residual = system.right - gram @ x - ridge * x
        lower, direction, product = None, residual, 0.0
        for iteration in range(limit + 1):
            gap = float(residual.square().sum()) / (2 * ridge)
            report_gap(gap, stop.tolerance, system.size)
            if gap <= 0.2 * stop.tolerance or iteration == limit or stop.late:
                break
            lower = system.lower(ridge) if lower is None else lower
            turned = torch.cholesky_solve(residual.to(lower), lower).to(residual)
            before, product = product, float((residual * turned).sum())
            direction = turned + product / before * direction if iteration else turned
            count_work(gram.numel() * direction.shape[1])
            bent = gram @ direction + ridge * direction
            curvature = float((direction * bent).sum())
            if not curvature > 0:
                break  # only rounding error is left
            x, residual = x + product / curvature * direction, residual - product / curvature * bent
        coef = x * system.root[:, None]
        intercept = system.level - system.mean @ coef if programme.fit_intercept else torch.zeros_like(system.level)
        return Minimum(coef, intercept, None, iteration, "normal-equations")


class _System:
    """The Gram ``[p, p]`` and the right-hand side ``[p, C]`` of centred columns, times roots of their multiplicity."""

    def __init__(self, programme: ReducedProgramme) -> None:
        matrix, weight, encoded = programme.matrix, programme.weight, programme.encoded
        total = weight.sum()
        self.root = programme.multiplicity.sqrt()
        self.mean, self.level = torch.zeros_like(self.root), torch.zeros_like(encoded[0])
        if programme.fit_intercept:
            self.mean, self.level = matrix.T @ weight / total, weight @ encoded / total
        self.size = float(weight @ (encoded - self.level).square().sum(1)) / 2
        right = matrix.T @ (weight[:, None] * (encoded - self.level))
        self.right = self.root[:, None] * right
        gram = _gram(matrix, weight) - total * torch.outer(self.mean, self.mean)
        self.gram = gram * torch.outer(self.root, self.root)

    def lower(self, ridge: float) -> Tensor:
        """Cholesky factor of the Gram plus a ridge, nearly."""
        system = self.gram.to(torch.float32 if self.gram.numel() > _STRIPE**2 else torch.float64)
        if system is self.gram:
            system = system.clone()
        system.diagonal().add_(ridge)
        return factor(system, _RIDGE)


def _gram(matrix: Matrix, weight: Tensor) -> Tensor:
    """``D^T diag(weight) D``; integers are multiplied in float32 as far as that is exact."""
    rows, columns = matrix.shape
    count_work(rows * columns**2 // 2)
    largest = largest_count(matrix)
    equal = bool((weight == weight[0]).all())
    exact = largest is not None and equal and largest**2 < _EXACT
    step = max(_EXACT // max(largest or 1, 1) ** 2, 1) if exact else max(2**23 // columns, 1)
    gram = weight.new_zeros(columns, columns)
    root = weight.sqrt()[:, None]
    for start in range(0, rows, step):
        part = slice(start, start + step)
        block = matrix.source.block(part).to(torch.float32 if exact else torch.float64)
        block = block if exact else block * root[part]
        for first in range(0, columns, _STRIPE):
            stripe = slice(first, first + _STRIPE)
            gram[first:, stripe] += block[:, first:].T @ block[:, stripe]
    gram = gram * (matrix.source.scale**2 * (float(weight[0]) if exact else 1.0))
    return gram.tril() + gram.tril(-1).T
