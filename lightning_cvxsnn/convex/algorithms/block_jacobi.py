r"""The Hessians of single outputs, which precondition that of all outputs where these are sure of most rows.

The Hessian of a row's loss is then far from its mean over rows, which `spectrum` takes for all of them, and conjugate
gradients need hundreds of steps. With the rows' own second derivatives they need a few. Of a softmax, whose outputs a
common shift does not change, the blocks serve beside that shift, in which only the ridge penalty bends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["BlockJacobi", "blocks_of", "work_of_blocks"]

_ROUNDING = 1e-6  # of a block's largest entry, added


@dataclass(frozen=True, eq=False)
class BlockJacobi:
    """Applied to residuals ``[C, p (+ 1)]``, the intercept's last.

    Attributes:
        inverses: Of each output, ``[p (+ 1), p (+ 1)]``.
        ridge: What the coefficients' penalty bends, in a shift of all outputs, too.
        columns: ``p``.
        coupled: Whether the loss does not see such a shift.
    """

    inverses: list[Tensor]
    ridge: float
    columns: int
    coupled: bool

    def __call__(self, residual: Tensor) -> Tensor:
        """About what Newton's step is for a gradient of ``-residual``, in its dtype."""
        count_work(residual.numel() * residual.shape[1])
        if not self.coupled:
            return self._blocks(residual)
        shift = residual.mean(0)
        step = self._blocks(residual - shift)
        shift[self.columns :] = 0
        return step - step.mean(0) + shift / self.ridge

    def _blocks(self, residual: Tensor) -> Tensor:
        rows = residual.to(self.inverses[0])
        steps = [inverse @ row for inverse, row in zip(self.inverses, rows, strict=True)]
        return torch.stack(steps).to(residual)


def blocks_of(products: Products, bends: Tensor, ridge: float, *, coupled: bool) -> BlockJacobi | None:
    """The preconditioner at second derivatives ``bends [n, C]``, weighted; None where rounding leaves no inverse."""
    inverses = []
    for own in bends.T:
        hessian = products.gram(own)
        diagonal = hessian.diagonal()
        diagonal[: products.columns] += ridge
        diagonal += _ROUNDING * diagonal.max()
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            return None
        count_work(len(hessian) ** 3 // 2)
        inverses.append(torch.cholesky_inverse(factor))
    return BlockJacobi(inverses, ridge, products.columns, coupled)


def work_of_blocks(rows: int, unknowns: int) -> float:
    """Multiply-adds that a block takes, counted in those of a step of conjugate gradients for one output."""
    return (rows * unknowns**2 / 2 + unknowns**3 / 2) / (2 * rows * unknowns + 2 * unknowns**2)
