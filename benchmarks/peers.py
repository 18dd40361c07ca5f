"""The other solvers, at settings of increasing accuracy, with the options their authors recommend.

Every function solves `(1/n) sum loss + rho (a |W|_1 + (1 - a)/2 |W|_2^2)`, a = l1_ratio, on the matrix it is given,
with an unpenalised intercept where the programme has one, and returns coefficients `[P, C]` and intercept `[C]`.
Objectives are rescaled to each solver's own convention: scikit-learn's, celer's and skglm's Lasso and ElasticNet and
skglm's Logistic take rho, Ridge `n rho`, the others `C = 1 / (n rho)`. liblinear penalises an intercept (a column of
ones), so it is asked only where there is none. Penalties over groups of outputs (MultiTaskLasso) are other programmes;
several targets of one squared loss are solved one by one, or from one Gram matrix.

Not here: adelie, whose multinomial is grouped and which wants NumPy below 2.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from conic import clarabel, cvxpy, highs
from numpy.typing import NDArray
from problems import Problem

Array = NDArray[np.floating]
Point = tuple[Array, Array]
INF = float("inf")


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
    most: float = INF
    penalties: tuple[str, ...] = ("l1",)
    fits_intercept: bool = True
    dtype: type = np.float64

    def suits(self, problem: Problem) -> bool:
        """Whether it solves this very programme, at this size."""
        same = problem.loss in self.losses and problem.penalty in self.penalties
        return same and (self.fits_intercept or not problem.fit_intercept) and problem.size <= self.most

    def matrix(self, problem: Problem) -> Array:
        """The matrix as it likes it best."""
        return problem.dense(self.order, self.dtype)

    def in_float32(self) -> "Peer":
        """The same in single precision."""
        return replace(self, name=f"{self.name} float32", dtype=np.float32)


def _point(model: Any) -> Point:
    coef = np.atleast_2d(model.coef_).T
    return coef, np.broadcast_to(np.asarray(model.intercept_, dtype=float), coef.shape[1:]).copy()


def _labels(problem: Problem, matrix: Array | None = None) -> Array:
    """Labels or targets, `[n]` where there is one output; targets in the matrix's precision."""
    targets = problem.targets.numpy()
    if problem.loss == "squared" and matrix is not None:
        targets = targets.astype(matrix.dtype)
    return targets.ravel() if targets.ndim == 2 and targets.shape[1] == 1 else targets


def _c(problem: Problem) -> float:
    return 1 / (problem.matrix.shape[0] * problem.rho)


def _one_by_one(solve: Callable[[Array], Any], targets: Array) -> Point:
    """A point of several targets, each fitted by itself."""
    points = [_point(solve(target)) for target in (targets.T if targets.ndim == 2 else [targets])]
    return np.hstack([coef for coef, _ in points]), np.hstack([intercept for _, intercept in points])


# -- squared ----------------------------------------------------------------------------------------------------------


def _sklearn_net(problem: Problem, matrix: Array, tol: float, gram: bool = False) -> Point:
    from sklearn.linear_model import ElasticNet, Lasso

    options = {"precompute": gram, "tol": tol, "max_iter": 200_000, "fit_intercept": problem.fit_intercept}
    lasso = problem.penalty == "l1"
    model = Lasso(problem.rho, **options) if lasso else ElasticNet(problem.rho, l1_ratio=problem.l1_ratio, **options)
    return _point(model.fit(matrix, _labels(problem, matrix)))


def _sklearn_ridge(problem: Problem, matrix: Array, setting: float) -> Point:
    from sklearn.linear_model import Ridge

    alpha = problem.rho * len(matrix)
    model = Ridge(alpha, solver="cholesky", fit_intercept=problem.fit_intercept)
    return _point(model.fit(matrix, _labels(problem, matrix)))


def _celer_net(problem: Problem, matrix: Array, tol: float) -> Point:
    from celer import ElasticNet, Lasso

    options = {"tol": tol, "max_iter": 1000, "fit_intercept": problem.fit_intercept}
    lasso = problem.penalty == "l1"
    model = Lasso(problem.rho, **options) if lasso else ElasticNet(problem.rho, l1_ratio=problem.l1_ratio, **options)
    return _one_by_one(partial(model.fit, matrix), _labels(problem))


def _skglm_penalty(problem: Problem) -> Any:
    from skglm.penalties import L1, L1_plus_L2

    return L1(problem.rho) if problem.penalty == "l1" else L1_plus_L2(problem.rho, problem.l1_ratio)


def _skglm_net(problem: Problem, matrix: Array, tol: float) -> Point:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Quadratic
    from skglm.solvers import AndersonCD

    solver = AndersonCD(tol=tol, fit_intercept=problem.fit_intercept, max_iter=500)
    model = GeneralizedLinearEstimator(Quadratic(), _skglm_penalty(problem), solver)
    return _one_by_one(partial(model.fit, matrix), _labels(problem))


def _skglm_gram(problem: Problem, matrix: Array, tol: float) -> Point:
    """On one Gram matrix of centred columns, which counts once for all targets (`GramCD` makes its own for each)."""
    from skglm.datafits import QuadraticHessian
    from skglm.solvers import AndersonCD

    targets = _labels(problem).reshape(len(matrix), -1)
    fitted = float(problem.fit_intercept)
    means, mean = fitted * matrix.mean(0), fitted * targets.mean(0)
    gram = np.asfortranarray(matrix.T @ matrix / len(matrix) - np.outer(means, means))
    linear = np.asfortranarray(np.outer(means, mean) - matrix.T @ targets / len(matrix))
    solver = AndersonCD(tol=tol, fit_intercept=False, max_iter=500)
    penalty = _skglm_penalty(problem)
    coef = np.stack([solver.solve(gram, column, QuadraticHessian(), penalty)[0] for column in linear.T], 1)
    return coef, mean - means @ coef


# -- cross-entropy, with one output and with several ------------------------------------------------------------------


def _sklearn_logistic(problem: Problem, matrix: Array, tol: float, solver: str) -> Point:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=_c(problem), l1_ratio=problem.l1_ratio, solver=solver, tol=tol, fit_intercept=problem.fit_intercept,
        max_iter=100_000,
    )  # fmt: skip
    return _point(model.fit(matrix, _labels(problem)))


def _saga(problem: Problem, matrix: Array, passes: float) -> Point:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=_c(problem), l1_ratio=problem.l1_ratio, solver="saga", tol=1e-12, max_iter=int(passes), random_state=0,
        fit_intercept=problem.fit_intercept,
    )  # fmt: skip
    return _point(model.fit(matrix, _labels(problem)))


def _celer_logistic(problem: Problem, matrix: Array, tol: float) -> Point:
    from celer import LogisticRegression

    return _point(LogisticRegression(C=_c(problem), tol=tol, max_iter=1000).fit(matrix, 2 * _labels(problem) - 1))


def _skglm_logistic(problem: Problem, matrix: Array, tol: float) -> Point:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Logistic
    from skglm.solvers import ProxNewton

    solver = ProxNewton(tol=tol, fit_intercept=problem.fit_intercept, max_iter=200)
    model = GeneralizedLinearEstimator(Logistic(), _skglm_penalty(problem), solver)
    return _point(model.fit(matrix, 2 * _labels(problem) - 1))


# -- hinge and squared hinge ------------------------------------------------------------------------------------------


def _linear_svc(problem: Problem, matrix: Array, tol: float) -> Point:
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        loss=problem.loss, dual=problem.loss == "hinge", C=_c(problem), tol=tol, fit_intercept=False,
        max_iter=1_000_000, random_state=0,
    )  # fmt: skip
    return _point(model.fit(matrix, _labels(problem)))


# -- all of them ------------------------------------------------------------------------------------------------------

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
GRADIENTS = (1e-2, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6, 1e-6, 1e-7)
FEW = (1e-2, 1e-4, 1e-6)  # of Newton's method, with factors of the whole Hessian
PASSES = (30, 100, 300, 1000, 3000, 10000)
EXACT = (1e-4, 1e-6, 1e-8, 1e-10)
SPARSE, RIDGE, ALL = ("l1", "elastic net"), ("ridge",), ("l1", "elastic net", "ridge")
SOFTMAX = ("logistic", "cross_entropy")


def _peers() -> Iterator[Peer]:
    yield Peer("sklearn Lasso", ("squared",), TOLERANCES, _sklearn_net, penalties=SPARSE)
    gram = Peer("sklearn Lasso+Gram", ("squared",), TOLERANCES, partial(_sklearn_net, gram=True), penalties=SPARSE)
    ridge = Peer("sklearn Ridge", ("squared",), (0.0,), _sklearn_ridge, penalties=RIDGE)
    for peer in (gram, ridge):
        yield from (peer, peer.in_float32())
    yield Peer("celer Lasso", ("squared",), TOLERANCES, _celer_net, penalties=SPARSE)
    yield Peer("skglm AndersonCD", ("squared",), TOLERANCES, _skglm_net, penalties=SPARSE)
    yield Peer("skglm AndersonCD+Gram", ("squared",), TOLERANCES, _skglm_gram, penalties=SPARSE)
    liblinear = partial(_sklearn_logistic, solver="liblinear")
    without = {"note": "no intercept in any row of this problem", "fits_intercept": False}
    yield Peer("liblinear", ("logistic",), TOLERANCES, liblinear, "C", penalties=("l1", "ridge"), **without)
    yield Peer("celer LogisticRegression", ("logistic",), TOLERANCES, _celer_logistic, **without)
    yield Peer("skglm ProxNewton", ("logistic",), TOLERANCES, _skglm_logistic, penalties=SPARSE)
    yield Peer("sklearn saga", SOFTMAX, PASSES, _saga, "C", "setting: passes", penalties=ALL)
    for name, settings, most in (
        ("lbfgs", GRADIENTS, INF),
        ("newton-cg", GRADIENTS, INF),
        ("newton-cholesky", FEW, 1e7),
    ):
        run = partial(_sklearn_logistic, solver=name)
        peer = Peer(f"sklearn {name}", SOFTMAX, settings, run, "C", most=most, penalties=RIDGE)
        yield from (peer, peer.in_float32())
    yield Peer("LinearSVC", ("hinge", "squared_hinge"), TOLERANCES, _linear_svc, "C", penalties=RIDGE, **without)
    for method in ("ipm", "simplex"):
        yield Peer(
            f"HiGHS {method}", ("hinge",), (1e-4, 1e-7, 1e-9), partial(highs, method=method), note="outputs in turn"
        )
    yield Peer("Clarabel", ("hinge",), EXACT, clarabel, note="outputs in turn", most=5e7, penalties=ALL)
    yield Peer("CVXPY+Clarabel", SOFTMAX, EXACT, cvxpy, "C", "with compilation", 5e6, ALL)


PEERS = tuple(_peers())


def quietly(run: Callable[[], Point]) -> Point:
    """A run whose warnings do not matter: the certificate decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()
