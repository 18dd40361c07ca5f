"""Solvers of conic programmes as peers: HiGHS and Clarabel called directly for hinge, CVXPY where cones are needed.

With hinge the outputs are programmes of their own, solved in turn, of the variables `w+, w- [P], b, slack [n]`:
least `sum slack / n + rho sum (a (w+ + w-) + (1 - a)/2 (w+^2 + w-^2))` with `t (D (w+ - w-) + b) + slack >= 1`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from peers import Array, Point
    from problems import Problem


def highs(problem: Problem, matrix: Array, tol: float, method: str) -> Point:
    """HiGHS' interior point (without crossover: no vertex is asked for) or simplex method, L1 only."""
    import highspy

    def solve(cost: Array, lower: Array, rows: sparse.csc_array) -> Array:
        highspy.Highs.resetGlobalScheduler(True)  # threads of an earlier call in this process would fail this one
        model, programme = highspy.Highs(), highspy.HighsLp()
        options = {"output_flag": False, "solver": method, "threads": 1, "run_crossover": "off"}
        options |= {"primal_feasibility_tolerance": tol, "dual_feasibility_tolerance": tol}
        for name, value in (options | {"ipm_optimality_tolerance": tol}).items():
            model.setOptionValue(name, value)
        programme.num_row_, programme.num_col_ = rows.shape
        programme.col_cost_, programme.col_lower_ = cost, lower
        programme.col_upper_ = np.full(len(cost), highspy.kHighsInf)
        programme.row_lower_ = np.ones(rows.shape[0])
        programme.row_upper_ = np.full(rows.shape[0], highspy.kHighsInf)
        programme.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        programme.a_matrix_.start_, programme.a_matrix_.index_ = rows.indptr, rows.indices
        programme.a_matrix_.value_ = rows.data
        model.passModel(programme)
        model.run()
        return np.array(model.getSolution().col_value)

    return _hinge(problem, matrix, solve)


def clarabel(problem: Problem, matrix: Array, tol: float) -> Point:
    """Clarabel's interior point method."""
    import clarabel as library

    columns, quadratic = 2 * matrix.shape[1], problem.rho * (1 - problem.l1_ratio)

    def solve(cost: Array, lower: Array, rows: sparse.csc_array) -> Array:
        settings = library.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
        diagonal = np.where(np.arange(len(cost)) < columns, quadratic, 0.0)
        bounded = sparse.eye_array(len(cost), format="csr")[np.isfinite(lower)]
        constraints = -sparse.vstack([rows, bounded], format="csc")
        right = np.concatenate([-np.ones(rows.shape[0]), np.zeros(bounded.shape[0])])
        squares, cones = sparse.diags_array(diagonal, format="csc"), [library.NonnegativeConeT(len(right))]
        return np.array(library.DefaultSolver(squares, cost, constraints, right, cones, settings).solve().x)

    return _hinge(problem, matrix, solve)


def _hinge(problem: Problem, matrix: Array, solve: Callable[..., Array]) -> Point:
    """The point put together from the solutions of all outputs."""
    columns = matrix.shape[1]
    found = np.stack([solve(*each) for each in _programmes(problem, matrix)], 1)
    intercept = found[2 * columns] if problem.fit_intercept else np.zeros(found.shape[1])
    return found[:columns] - found[columns : 2 * columns], intercept


def _programmes(problem: Problem, matrix: Array) -> Iterator[tuple[Array, Array, sparse.csc_array]]:
    """For each output: linear cost, lower bounds (0 or -inf), and the rows that are to be at least 1."""
    (n, columns), labels, fitted = matrix.shape, problem.targets.numpy(), int(problem.fit_intercept)
    counts = sparse.csc_array(matrix)
    cost = np.concatenate([np.full(2 * columns, problem.rho * problem.l1_ratio), np.zeros(fitted), np.full(n, 1 / n)])
    lower = np.concatenate([np.zeros(2 * columns), np.full(fitted, -np.inf), np.zeros(n)])
    for output in range(problem.width):
        signs = np.where(labels == (output if problem.width > 1 else 1), 1.0, -1.0)
        signed = counts.copy()
        signed.data *= signs[signed.indices]
        ones = [sparse.csc_array(signs[:, None])] * fitted
        yield cost, lower, sparse.hstack([signed, -signed, *ones, sparse.eye_array(n)], format="csc")


def cvxpy(problem: Problem, matrix: Array, tol: float) -> Point:
    """Any loss by CVXPY with Clarabel."""
    import cvxpy as cp

    n, outputs, targets = matrix.shape[0], problem.width, problem.targets.numpy()
    w, b = cp.Variable((matrix.shape[1], outputs)), cp.Variable((1, outputs))
    z = matrix @ w + (np.ones((n, 1)) @ b if problem.fit_intercept else 0)
    chosen = np.eye(outputs)[targets] if problem.loss == "cross_entropy" else targets.reshape(n, -1)
    signs = 2.0 * (targets[:, None] == (np.arange(outputs) if outputs > 1 else 1)) - 1 if targets.ndim == 1 else None
    loss = {
        "cross_entropy": lambda: cp.sum(cp.log_sum_exp(z, axis=1)) - cp.sum(cp.multiply(chosen, z)),
        "logistic": lambda: cp.sum(cp.logistic(z)) - cp.sum(cp.multiply(chosen, z)),
        "squared": lambda: cp.sum_squares(z - chosen) / 2,
        "hinge": lambda: cp.sum(cp.pos(1 - cp.multiply(signs, z))),
        "squared_hinge": lambda: cp.sum_squares(cp.pos(1 - cp.multiply(signs, z))),
    }[problem.loss]()
    penalty = problem.l1_ratio * cp.sum(cp.abs(w)) + (1 - problem.l1_ratio) / 2 * cp.sum_squares(w)
    options: dict[str, Any] = {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol}
    with contextlib.suppress(cp.SolverError):
        cp.Problem(cp.Minimize(loss / n + problem.rho * penalty)).solve(solver="CLARABEL", **options)
    coef = np.zeros(w.shape) if w.value is None else w.value
    return coef, np.zeros(outputs) if b.value is None or not problem.fit_intercept else b.value[0]
