"""The other solvers, at settings of increasing accuracy, with the options their authors recommend.

Every function solves `(1/n) sum loss + rho |W|_1` on the matrix it is given, with an unpenalised intercept where the
programme has one, and returns coefficients `[P, C]` and intercept `[C]`. Objectives are rescaled to each solver's own
convention: sklearn, celer and skglm's Lasso and skglm's Logistic take rho, the others `C = 1 / (n rho)`.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import Problem

Array = NDArray[np.float64]
Point = tuple[Array, Array]


@dataclass(frozen=True)
class Peer:
    """`settings` in increasing accuracy; `run(problem, matrix, setting)`; `order` of the matrix it likes best.

    `most` is the largest rows x columns x outputs it is tried on.
    """

    name: str
    losses: tuple[str, ...]
    settings: tuple[float, ...]
    run: Callable[[Problem, Array, float], Point]
    order: str = "F"
    note: str = ""
    most: float = float("inf")


def _point(model: Any) -> Point:
    coef = np.atleast_2d(model.coef_).T
    return coef, np.broadcast_to(np.asarray(model.intercept_, dtype=float), coef.shape[1:]).copy()


def _labels(problem: Problem) -> Array:
    return problem.targets.numpy().ravel()


def _sklearn_lasso(problem: Problem, matrix: Array, tol: float) -> Point:
    from sklearn.linear_model import Lasso

    return _point(Lasso(problem.rho, tol=tol, max_iter=200_000).fit(matrix, _labels(problem)))


def _celer_lasso(problem: Problem, matrix: Array, tol: float) -> Point:
    from celer import Lasso

    return _point(Lasso(problem.rho, tol=tol, max_iter=1000).fit(matrix, _labels(problem)))


def _skglm_lasso(problem: Problem, matrix: Array, tol: float) -> Point:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD

    solver = AndersonCD(tol=tol, fit_intercept=True, max_iter=500)
    return _point(GeneralizedLinearEstimator(Quadratic(), L1(problem.rho), solver).fit(matrix, _labels(problem)))


def _c(problem: Problem) -> float:
    return 1 / (problem.matrix.shape[0] * problem.rho)


def _liblinear(problem: Problem, matrix: Array, tol: float) -> Point:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=_c(problem), l1_ratio=1, solver="liblinear", tol=tol, fit_intercept=False, max_iter=100_000
    )
    return _point(model.fit(matrix, _labels(problem)))


def _saga(problem: Problem, matrix: Array, passes: float) -> Point:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=_c(problem), l1_ratio=1, solver="saga", tol=1e-12, max_iter=int(passes), random_state=0,
        fit_intercept=problem.fit_intercept,
    )  # fmt: skip
    return _point(model.fit(matrix, _labels(problem)))


def _celer_logistic(problem: Problem, matrix: Array, tol: float) -> Point:
    from celer import LogisticRegression

    return _point(LogisticRegression(C=_c(problem), tol=tol, max_iter=1000).fit(matrix, 2 * _labels(problem) - 1))


def _skglm_logistic(problem: Problem, matrix: Array, tol: float) -> Point:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Logistic
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton

    solver = ProxNewton(tol=tol, fit_intercept=False, max_iter=200)
    return _point(GeneralizedLinearEstimator(Logistic(), L1(problem.rho), solver).fit(matrix, 2 * _labels(problem) - 1))


def _cvxpy(problem: Problem, matrix: Array, **options: Any) -> Point:
    import cvxpy as cp

    n, labels = matrix.shape[0], problem.targets.numpy()
    outputs = int(labels.max()) + 1 if problem.loss == "cross_entropy" else 1
    w, b = cp.Variable((matrix.shape[1], outputs)), cp.Variable((1, outputs))
    z = matrix @ w + (np.ones((n, 1)) @ b if problem.fit_intercept else 0)
    absolute, constraints = cp.abs(w), []
    if problem.loss == "hinge":
        # written out as a linear programme: CVXPY 1.9.3 hands HiGHS bounds of NaN for pos(1 - t * (X @ w)), whose
        # "optimal" answer is then w = 0
        data, absolute = cp.Variable((n, 1)), cp.Variable(w.shape)
        constraints = [data >= 0, data >= 1 - cp.multiply(2.0 * labels[:, None] - 1, z), absolute >= w, absolute >= -w]
        data = cp.sum(data)
    elif problem.loss == "cross_entropy":
        data = cp.sum(cp.log_sum_exp(z, axis=1)) - cp.sum(cp.multiply(np.eye(outputs)[labels], z))
    else:
        raise ValueError(problem.loss)
    programme = cp.Problem(cp.Minimize(data / n + problem.rho * cp.sum(absolute)), constraints)
    with contextlib.suppress(cp.SolverError):
        programme.solve(**options)
    coef = np.zeros(w.shape) if w.value is None else w.value
    return coef, np.zeros(outputs) if b.value is None else b.value[0]


def _clarabel(problem: Problem, matrix: Array, tol: float) -> Point:
    return _cvxpy(problem, matrix, solver="CLARABEL", tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)


def _highs(problem: Problem, matrix: Array, tol: float) -> Point:
    options = {"primal_feasibility_tolerance": tol, "dual_feasibility_tolerance": tol}
    return _cvxpy(problem, matrix, solver="HIGHS", highs_options=options)


TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
WITHOUT = "no intercept in any row of this problem"
PEERS = (
    Peer("sklearn Lasso", ("squared",), TOLERANCES, _sklearn_lasso),
    Peer("celer Lasso", ("squared",), TOLERANCES, _celer_lasso),
    Peer("skglm AndersonCD", ("squared",), TOLERANCES, _skglm_lasso),
    Peer("liblinear", ("logistic",), TOLERANCES, _liblinear, "C", WITHOUT),
    Peer("celer LogisticRegression", ("logistic",), TOLERANCES, _celer_logistic, "F", WITHOUT),
    Peer("skglm ProxNewton", ("logistic",), TOLERANCES, _skglm_logistic, "F", WITHOUT),
    Peer("sklearn saga", ("cross_entropy",), (30, 100, 300, 1000, 3000, 10000), _saga, "C", "setting: passes"),
    Peer("CVXPY+Clarabel", ("hinge", "cross_entropy"), (1e-6, 1e-8, 1e-10), _clarabel, "C", "with compilation", 5e6),
    Peer("CVXPY+HiGHS", ("hinge",), (1e-7, 1e-9), _highs, "C", "with compilation"),
)


def quietly(run: Callable[[], Point]) -> Point:
    """A run whose warnings do not matter: the certificate decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()
