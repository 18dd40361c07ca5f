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
from lightning_cvxsnn.convex.matrix import Matrix, add_gram, slices
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme, largest_count
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["NormalEquations"]

_SMALL = 256  # columns up to which a float64 factor costs next to nothing
_BLOCK = 2**24  # entries at a time
_EXACT = 2**24  # integers that float32 holds
_NEAR = 2.6  # times a ridge: up to there a few more steps cost less than another factor
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
        self.factored: tuple[float, Tensor | None] = 0.0, None

    def lower(self, ridge: float) -> Tensor:
        """Cholesky factor of the Gram plus a ridge, nearly: that of a ridge not far away, if there is one."""
        factored, lower = self.factored
        if lower is None or not factored / _NEAR <= ridge <= _NEAR * factored:
            lower = self._factor(ridge)
            self.factored = ridge, lower
        return lower

    def _factor(self, ridge: float) -> Tensor:
        system = self.gram.to(torch.float32 if self.gram.numel() > _SMALL**2 else torch.float64)
        if system is self.gram:
            system = system.clone()
        system.diagonal().add_(ridge)
        return factor(system, _RIDGE)


def _gram(matrix: Matrix, weight: Tensor) -> Tensor:
    """``D^T diag(weight) D``; integers are multiplied in float32 as far as that is exact."""
    rows, columns = matrix.shape
    together = max(_BLOCK // columns, 1)
    largest = largest_count(matrix)  # by its dtype, where that says anything
    if largest is not None:
        parts = (matrix.source.block(part) for part in slices(rows, together))
        largest = max(int(part.to(torch.int32).abs().max()) for part in parts)
    exact = largest is not None and bool((weight == weight[0]).all()) and largest**2 < _EXACT
    step = min(_EXACT // max(largest or 1, 1) ** 2, together) if exact else together
    gram = weight.new_zeros(columns, columns)
    root = weight.sqrt()[:, None]
    for part in slices(rows, step):
        block = matrix.source.block(part).to(torch.float32 if exact else torch.float64)
        block = block if exact else block * root[part]
        total = block.new_zeros(columns, columns)
        add_gram(total, block.T)
        gram += total
    gram = gram * (matrix.source.scale**2 * (float(weight[0]) if exact else 1.0))
    return gram.tril() + gram.tril(-1).T
