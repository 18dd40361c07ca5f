"""The CVXPY route of ``solve``: an independent reference, judged by the same certificate."""

from __future__ import annotations

import pytest
from programmes import LOSSES, dual_is_feasible, make, scale_of

from lightning_cvxsnn.convex import rho_max, solve


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_both_solvers_agree(loss: str, fit_intercept: bool, outputs: int, weighted: bool) -> None:
    problem = make(31, loss, rows=20, columns=10, outputs=outputs, weighted=weighted)
    rho = 0.1 * rho_max(**problem, fit_intercept=fit_intercept)
    own = solve(**problem, rho=rho, fit_intercept=fit_intercept)
    reference = solve(**problem, rho=rho, fit_intercept=fit_intercept, solver="cvxpy")
    scale = scale_of(problem)
    assert reference.algorithm == "cvxpy-clarabel"
    assert reference.converged
    assert reference.gap <= 1e-6 * scale * 10
    assert own.primal == pytest.approx(reference.primal, abs=1e-6 * scale)
    assert own.dual == pytest.approx(reference.dual, abs=1e-6 * scale)
    assert dual_is_feasible(problem, reference.dual_point, rho, fit_intercept)


def test_reference_stopped_early_is_still_certified() -> None:
    problem = make(32, "cross_entropy")
    optimum = solve(**problem, rho=0.01, fit_intercept=True)
    stopped = solve(**problem, rho=0.01, fit_intercept=True, solver="cvxpy", max_iterations=2)
    assert not stopped.converged
    assert stopped.dual <= optimum.primal + 1e-9
    assert stopped.gap >= stopped.primal - optimum.primal - 1e-9


def test_reference_without_columns() -> None:
    problem = make(33, "hinge")
    problem["dictionary"] = problem["dictionary"] * 0
    assert solve(**problem, rho=0.01, fit_intercept=True, solver="cvxpy").converged
