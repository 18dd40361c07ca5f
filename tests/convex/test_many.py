"""Thousands of random programmes: gaps in extended precision, optima by HiGHS and CVXPY."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from programmes import LOSSES, MARGINS, reference_optimum
from scipy.optimize import linprog

from lightning_cvxsnn.convex import Programme, certificate
from lightning_cvxsnn.patterns import SpikeDictionary

KINDS = ["spikes", "packed", "floats", "far", "badly scaled", "silent"]
_PROGRAMMES, _PARTS = 2000, 8


def random_programme(seed: int) -> dict[str, Any]:
    """Keyword arguments of ``Programme``, the dense matrix, and whether targets are of another kind than labels."""
    rng = np.random.default_rng(seed)
    rows, columns, outputs = int(rng.integers(1, 16)), int(rng.integers(1, 10)), int(rng.integers(1, 4))
    loss, kind = LOSSES[seed % 4], KINDS[seed // 4 % 6]
    matrix = rng.integers(0, 2, (rows, columns)).astype(float)
    if kind in ("floats", "far", "badly scaled"):
        matrix = rng.normal(size=(rows, columns)) + (kind == "far") * 1e5
        matrix *= 10.0 ** rng.integers(-8, 9, columns) if kind == "badly scaled" else 1.0
    if kind == "silent":
        matrix[:] = 0
    dense = torch.tensor(matrix)
    labels = torch.tensor(rng.integers(0, max(outputs, 2), rows))
    targets = torch.tensor(rng.normal(size=(rows, outputs))) if loss == "squared" else labels
    if loss == "cross_entropy" and outputs > 1 and rng.random() < 0.4:
        targets = torch.tensor(rng.dirichlet(np.ones(outputs), rows))
    weight = torch.tensor(10.0 ** rng.uniform(-3, 3, rows)) if rng.random() < 0.3 else None
    return {
        "dictionary": SpikeDictionary.from_values(dense) if kind == "packed" else dense,
        "targets": targets,
        "loss": loss,
        "num_outputs": outputs,
        "sample_weight": weight,
        "fit_intercept": kind in ("far", "silent") or bool(rng.random() < 0.5),
    } | {"dense": dense}


def exact_primal(problem: dict[str, Any], coef: torch.Tensor, intercept: torch.Tensor, rho: float) -> float:
    """The objective in extended precision."""
    matrix, w, b = (t.numpy().astype(np.longdouble) for t in (problem["dense"], coef, intercept))
    n, outputs = len(matrix), w.shape[1]
    z: NDArray[np.longdouble] = matrix @ w + b
    y = problem["targets"].numpy()
    if problem["loss"] == "squared":
        losses = np.square(z - y).sum(1) / 2
    else:
        hot = y if y.ndim == 2 else y[:, None] == (np.arange(outputs) if outputs > 1 else 1)
        hot = hot.astype(np.longdouble)
        if problem["loss"] in MARGINS:
            short = np.maximum(1 - (2 * hot - 1) * z, 0)
            losses = (short if problem["loss"] == "hinge" else short**2).sum(1)
        else:
            if outputs == 1:
                z, hot = np.concatenate([0 * z, z], 1), np.concatenate([1 - hot, hot], 1)
            top = z.max(1, keepdims=True)
            hot = hot / hot.sum(1, keepdims=True)
            losses = np.log(np.exp(z - top).sum(1)) + (hot * (top - z)).sum(1)
    weight = 1 if problem["sample_weight"] is None else problem["sample_weight"].numpy().astype(np.longdouble)
    return float((weight * losses).sum() / n + np.longdouble(rho) * np.abs(w).sum())


def hinge_optimum(problem: dict[str, Any], rho: float) -> float:
    """The optimum of a hinge programme as linear programmes, one for each output."""
    matrix, y = problem["dense"].numpy(), problem["targets"].numpy()
    rows, columns = matrix.shape
    weight = np.ones(rows) if problem["sample_weight"] is None else problem["sample_weight"].numpy()
    total, outputs = 0.0, problem["num_outputs"]
    for c in range(outputs):
        sign = 2.0 * (y == (c if outputs > 1 else 1)) - 1
        free = np.ones((rows, 1)) if problem["fit_intercept"] else np.zeros((rows, 1))
        rest = sign[:, None] * np.concatenate([matrix, -matrix, free, -free], 1)
        cost = np.concatenate([np.full(2 * columns, rho), np.zeros(2), weight / rows])
        found = linprog(cost, A_ub=-np.concatenate([rest, np.eye(rows)], 1), b_ub=-np.ones(rows))
        total += found.fun
    return total


@pytest.mark.parametrize("part", range(_PARTS))
def test_gaps_are_never_below_the_true_ones(part: int) -> None:
    converged = 0
    for seed in range(part, _PROGRAMMES, _PARTS):
        problem = random_programme(seed)
        arguments = {name: value for name, value in problem.items() if name != "dense"}
        programme = Programme(**arguments)
        rho = [0.5, 0.05, 1e-3, 2.0][seed % 7 % 4] * (programme.largest_rho() or 1.0)
        found, scale = programme.solve(rho), max(programme.scale, 1e-300)
        converged += found.converged
        assert not found.converged or found.gap <= 1e-6 * scale, seed
        primal = exact_primal(problem, found.coef, found.intercept, rho)
        heaviest = 1.0 if problem["sample_weight"] is None else float(problem["sample_weight"].max())
        stored = 2.3e-16 * float(found.intercept.abs().sum()) * max(heaviest, 1.0)  # an intercept of 1e6 is rounded so
        rounding = 1e-12 + stored / scale
        assert abs(found.primal - primal) <= rounding * scale, seed
        # A perfect constant's scale is that of zero outputs; an absent class gets a finite intercept, to 1e-8.
        assert primal <= programme.scale * (1 + 1e-7), seed
        noise = 1e-3 * torch.randn(found.coef.shape, generator=torch.Generator().manual_seed(seed)).double()
        noise = noise / problem["dense"].abs().amax(0)[:, None].clamp_min(1e-8)
        rough = programme.certificate(found.coef + noise, found.intercept, rho=rho, dual_point=found.dual_point)
        for dual in (found.dual, rough.dual):  # a bound of the optimum is one of every primal value
            assert dual <= primal + rounding * scale, seed
        if problem["loss"] == "hinge" and seed % 3 == 0 and seed // 4 % 6 not in (3, 4):
            optimum = hinge_optimum(problem, rho)
            assert found.dual - 1e-7 * scale <= optimum <= primal + 1e-7 * scale, seed
        if seed % 100 < 4 and seed // 4 % 6 in (0, 2):
            given = {name: value for name, value in problem.items() if value is not None and name != "fit_intercept"}
            optimum = reference_optimum(given | {"dictionary": problem["dense"]}, rho, problem["fit_intercept"])
            assert found.dual - 1e-6 * scale <= optimum <= primal + 1e-6 * scale, seed
    assert converged >= 0.99 * _PROGRAMMES / _PARTS


@pytest.mark.parametrize("shift", [1e6, -1e6, 1e10])
def test_common_shifts_of_softmax_intercepts(shift: float) -> None:
    g = torch.Generator().manual_seed(0)
    matrix, y = (torch.rand(50, 10, generator=g) < 0.3).double(), torch.randint(0, 3, (50,), generator=g)
    programme = Programme(matrix, y, loss="cross_entropy", fit_intercept=True)
    found = programme.solve(0.01)
    proof = certificate(
        matrix, y, found.coef, found.intercept + shift, dual_point=found.dual_point, loss="cross_entropy", rho=0.01,
        fit_intercept=True,
    )  # fmt: skip
    problem = {"dense": matrix, "targets": y, "loss": "cross_entropy", "sample_weight": None}
    rounded = found.intercept + shift - shift  # the point that was certified
    exact = exact_primal(problem, found.coef, rounded, 0.01)
    assert proof.primal == pytest.approx(exact, abs=1e-13)
