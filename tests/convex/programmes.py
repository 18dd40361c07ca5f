"""Small random programmes for the tests of the convex package."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cvxsnn.convex import Solution

LOSSES = ["cross_entropy", "hinge", "squared", "squared_hinge"]
RATIOS = [0.0, 1e-6, 0.3, 0.999, 1.0]
MARGINS = ["hinge", "squared_hinge"]


def make(
    seed: int, loss: str, *, rows: int = 24, columns: int = 8, outputs: int = 3, weighted: bool = False, counts: int = 1
) -> dict[str, Any]:
    """Keyword arguments of ``solve`` but ``rho`` and ``fit_intercept``; redundant columns are mixed in.

    A third of the columns are redundant: zero, constant, duplicate and complement in turn.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, counts + 1, size=(rows, columns)).astype(float)
    for k, j in enumerate(range(2, columns, 3)):
        matrix[:, j] = [np.zeros(rows), np.ones(rows), matrix[:, 0], counts - matrix[:, 1]][k % 4]
    planted = matrix @ rng.normal(size=(columns, outputs)) + 0.5 * rng.normal(size=(rows, outputs))
    if loss == "squared":
        targets = torch.tensor(planted)
    elif outputs == 1:
        targets = torch.tensor((planted[:, 0] > np.median(planted)).astype(np.int64))
    else:
        targets = torch.tensor(planted.argmax(1))
    problem: dict[str, Any] = {
        "dictionary": torch.tensor(matrix),
        "targets": targets,
        "loss": loss,
        "num_outputs": outputs,
    }
    if weighted:
        weight = rng.uniform(0.1, 3, size=rows)
        weight[rng.integers(0, rows, size=rows // 6)] = 0
        problem["sample_weight"] = torch.tensor(weight)
    return problem


def counts(rows: int = 1200, columns: int = 240, classes: int = 6) -> dict[str, Any]:
    """Packed counts that float32 products are made of, and labels of a noisy teacher."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(0, 5, (rows, columns), generator=generator, dtype=torch.uint8)
    teacher = torch.randn(columns, classes, generator=generator) * (torch.rand(columns, 1, generator=generator) < 0.1)
    noise = 3 * torch.randn(rows, classes, generator=generator)
    return {"dictionary": matrix, "targets": ((matrix.float() - 2) @ teacher + noise).argmax(1)}


def scale_of(problem: dict[str, Any]) -> float:
    """A size of the objective, to judge rounding errors by."""
    weight = problem.get("sample_weight")
    total = 1.0 if weight is None else float(weight.mean())
    if problem["loss"] == "squared":
        return total * max(float(problem["targets"].square().sum(1).mean()), 1e-3)
    return total


def residual_certificate_inputs(problem: dict[str, Any], solution: Solution) -> dict[str, Any]:
    """Arguments of ``certificate`` for a solution of ``problem``."""
    names = ("dictionary", "targets", "loss", "sample_weight")
    inputs: dict[str, Any] = {name: problem[name] for name in names if name in problem}
    return inputs | {"coef": solution.coef, "intercept": solution.intercept, "dual_point": solution.dual_point}


def reference_optimum(problem: dict[str, Any], rho: float, fit_intercept: bool, l1_ratio: float = 1.0) -> float:
    """The optimum by CVXPY on the raw programme: no reduction, no code of the package."""
    import cvxpy as cp

    matrix, n = problem["dictionary"].double().numpy(), problem["dictionary"].shape[0]
    weight = problem.get("sample_weight", torch.ones(n)).double().numpy()
    outputs = problem["num_outputs"]
    w, b = cp.Variable((matrix.shape[1], outputs)), cp.Variable((1, outputs))
    z = matrix @ w + (np.ones((n, 1)) @ b if fit_intercept else np.zeros((n, outputs)))
    y = problem["targets"].numpy()
    if problem["loss"] == "squared":
        data = cp.sum(cp.multiply(weight[:, None], cp.square(z - y))) / 2
    else:
        hot = (y[:, None] == np.arange(outputs)).astype(float) if outputs > 1 else y[:, None].astype(float)
        hot = y if y.ndim == 2 else hot
        if problem["loss"] in MARGINS:
            short = cp.pos(1 - cp.multiply(2 * hot - 1, z))
            data = cp.sum(cp.multiply(weight[:, None], short if problem["loss"] == "hinge" else cp.square(short)))
        elif outputs == 1:
            data = cp.sum(cp.multiply(weight[:, None], cp.logistic(z) - cp.multiply(hot, z)))
        else:
            data = weight @ (cp.log_sum_exp(z, axis=1) - cp.sum(cp.multiply(hot, z), axis=1))
    penalty = l1_ratio * cp.sum(cp.abs(w)) + (1 - l1_ratio) / 2 * cp.sum_squares(w)
    objective = cp.Problem(cp.Minimize(data / n + rho * penalty))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate" at 1e-10; the tests ask for 1e-7
        objective.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return float(objective.value)


def dual_is_feasible(problem: dict[str, Any], point: Tensor, rho: float, fit_intercept: bool) -> bool:
    """Whether a dual point obeys ``|D^T U| <= rho``, the intercept's equality and the loss's domain, exactly enough."""
    matrix = problem["dictionary"].double()
    n = matrix.shape[0]
    weight = problem.get("sample_weight", torch.ones(n)).double()[:, None] / n
    rounding = 1e-14 * float((matrix.abs().T @ point.abs()).max())
    feasible = float((matrix.T @ point).abs().max()) <= rho * (1 + 1e-12) + rounding
    if fit_intercept:
        feasible &= float(point.sum(0).abs().max()) <= 1e-13 * max(1.0, float(point.abs().sum()))
    if problem["loss"] == "squared":
        return feasible and bool((point[weight[:, 0] == 0] == 0).all())
    y = problem["targets"]
    outputs = problem["num_outputs"]
    hot = torch.nn.functional.one_hot(y, outputs).double() if outputs > 1 and y.ndim == 1 else y.reshape(n, -1).double()
    if problem["loss"] in MARGINS:
        alpha = (2 * hot - 1) * point
        most = weight if problem["loss"] == "hinge" else torch.where(weight > 0, torch.inf, 0.0)
        return feasible and bool(((alpha >= 0) & (alpha <= most * (1 + 1e-12))).all())
    mass = weight * hot - point
    if outputs > 1:
        feasible &= float((mass.sum(1, keepdim=True) - weight).abs().max()) <= 1e-12
    return feasible and bool(((mass >= -1e-13) & (mass <= weight + 1e-13)).all())
