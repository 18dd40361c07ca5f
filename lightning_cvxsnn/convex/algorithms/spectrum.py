r"""Eigenvectors of the Gram of a programme's columns, which precondition every ridge programme over them.

With ``A`` the centred columns and ``G = A^T diag(weight) A = Q diag(e) Q^T``, the Hessian of a loss is about
``B \otimes G``, where ``B [C, C]`` is the mean second derivative of a row's loss: ``Q`` and the eigenvectors of ``B``
precondition it at every point and for every rho. After Martens, Grosse, "Optimizing neural networks with
Kronecker-factored approximate curvature", ICML 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.convex.matrix import add_gram
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["Spectrum", "spectrum_of"]

_ROWS = 6  # times the columns, of which a Gram that need not be exact is made
_MOST = 2560  # rows, where columns are more


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvectors of a Gram, or of one of some of the rows.

    Attributes:
        basis: ``[p, k]``, orthonormal.
        values: ``[k]``, not negative; 0 in all directions beside the basis.
        total: Sum of the weights of all rows.
    """

    basis: Tensor
    values: Tensor
    total: float

    def preconditioner(self, bend: Tensor, ridge: float) -> Preconditioner:
        r"""The inverse of ``bend / total \otimes G + ridge``, for ``bend [C, C]`` summed over rows."""
        curvature, outputs = torch.linalg.eigh(bend.to(torch.float64))
        curvature = curvature.clamp_min(0)
        entries = curvature[:, None] / self.total * self.values.to(curvature) + ridge
        dtype = self.basis.dtype
        flat = curvature <= 1e-13 * curvature.max()  # a shift of all softmax outputs
        return Preconditioner(
            self.basis, outputs.to(dtype), (1 / entries - 1 / ridge).to(dtype), 1 / ridge,
            torch.where(flat, 0.0, 1 / curvature).to(dtype),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """Applied to residuals ``[C, p (+ 1)]``, the intercept's last."""

    basis: Tensor
    outputs: Tensor
    beyond: Tensor  # [C, k]: what the inverse is in the basis, less what it is beside it
    beside: float
    intercept: Tensor  # [C]

    def __call__(self, residual: Tensor) -> Tensor:
        """About what Newton's step is for a gradient of ``-residual``, in its dtype."""
        columns = len(self.basis)
        count_work(2 * residual.numel() * self.basis.shape[1])
        turned = self.outputs.T @ residual.to(self.basis)
        inner = ((turned[:, :columns] @ self.basis) * self.beyond) @ self.basis.T
        inner += self.beside * turned[:, :columns]
        if residual.shape[1] > columns:
            inner = torch.cat([inner, self.intercept[:, None] * turned[:, columns:]], 1)
        return (self.outputs @ inner).to(residual)


def spectrum_of(products: Products, weight: Tensor) -> Spectrum:
    """Of the rows with their weights ``[n]``; of some of them, where there are far more than columns."""
    rows, columns = products.rows, products.columns
    total = float(weight.sum())
    count = min(rows, max(_ROWS * columns, 256) if columns <= _MOST else _MOST)
    chosen = torch.arange(count, device=weight.device) * rows // count
    share = weight[chosen]
    root = (share * (total / share.sum())).sqrt()[:, None].to(products.dtype)
    entries = root * products.entries(chosen)
    if count >= columns:
        values, basis = torch.linalg.eigh(gram(entries))
        return Spectrum(basis, values.clamp_min(0), total)
    values, left = torch.linalg.eigh(gram(entries.T.contiguous()))
    kept = values > 1e-6 * values[-1]
    basis = (entries.T @ left[:, kept]) / values[kept].sqrt()
    return Spectrum(basis, values[kept], total)


def gram(entries: Tensor) -> Tensor:
    """``entries^T entries``, computed on and below the diagonal and mirrored."""
    product = entries.new_zeros(entries.shape[1], entries.shape[1])
    add_gram(product, entries.T)
    return product.tril() + product.tril(-1).T
