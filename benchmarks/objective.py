"""Objectives, and bounds of ridge programmes, computed here without any code of the package that is measured."""

import torch
from problems import Problem
from torch import Tensor
from torch.nn import functional as F


def objective(problem: Problem, coef: Tensor, intercept: Tensor) -> float:
    """Value of the programme at coefficients `[P, C]` and an intercept `[C]`, in float64."""
    z = _outputs(problem, coef) + intercept.double()
    return float(_losses(problem, z).sum()) / len(z) + _penalty(problem, coef)


def ridge_bound(problem: Problem, coef: Tensor, intercept: Tensor) -> float:
    """A lower bound of the optimum: the objective less what strong convexity in W leaves to gain.

    The objective, minimised over the intercept, is rho-strongly convex in W: from a gradient g it falls by |g|^2 / (2
    rho) at most. For ridge programmes with a squared or a cross-entropy loss.
    """
    z, b = _outputs(problem, coef), intercept.double()
    for _ in range(20 if problem.fit_intercept else 0):
        gradient, hessian = _derivatives(problem, z + b)
        b = b - torch.linalg.lstsq(hessian, gradient.mean(0)[:, None], driver="gelsd").solution[:, 0]
    gradient = _transposed(problem, _derivatives(problem, z + b)[0] / len(z)) + problem.rho * coef.double()
    return objective(problem, coef, b) - float(gradient.square().sum()) / (2 * problem.rho)


def _outputs(problem: Problem, coef: Tensor) -> Tensor:
    return (problem.matrix.double() if isinstance(problem.matrix, Tensor) else problem.matrix) @ coef.double()


def _transposed(problem: Problem, dual: Tensor) -> Tensor:
    if isinstance(problem.matrix, Tensor):
        return problem.matrix.double().T @ dual
    return problem.matrix.column_scores(dual)


def _penalty(problem: Problem, coef: Tensor) -> float:
    w, a = coef.double(), problem.l1_ratio
    return problem.rho * float(a * w.abs().sum() + (1 - a) / 2 * w.square().sum())


def _losses(problem: Problem, z: Tensor) -> Tensor:
    y = problem.targets
    if problem.loss == "squared":
        return (z - y).square() / 2
    if problem.loss == "cross_entropy":
        return F.cross_entropy(z, y, reduction="none")
    if problem.loss == "logistic":
        return F.binary_cross_entropy_with_logits(z[:, 0], y.double(), reduction="none")
    signs = 2.0 * (y[:, None] == (torch.arange(z.shape[1]) if z.shape[1] > 1 else 1)) - 1
    return (1 - signs * z).clamp_min(0) ** (2 if problem.loss == "squared_hinge" else 1)


def _derivatives(problem: Problem, z: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by z `[n, C]`, and the mean of the Hessians `[C, C]`."""
    if problem.loss == "squared":
        return z - problem.targets, torch.eye(z.shape[1], dtype=z.dtype)
    if problem.loss == "logistic":
        q = z.sigmoid()
        return q - problem.targets[:, None], (q * (1 - q)).mean(0)[:, None]
    if problem.loss != "cross_entropy":
        raise ValueError(f"{problem.loss} has no derivative everywhere.")
    q = z.softmax(1)
    return q - F.one_hot(problem.targets, z.shape[1]), q.mean(0).diag() - q.T @ q / len(z)
