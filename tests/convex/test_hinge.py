"""The hinge solver's own machinery: outputs together, columns that enter, starts from elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from programmes import make, reference_optimum, scale_of

from lightning_cvxsnn.convex import hinge, restricted, solve


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_outputs_together_or_in_groups(fit_intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(21, "hinge", rows=40, columns=30, outputs=5, weighted=True)
    together = solve(**problem, rho=0.01, fit_intercept=fit_intercept)
    monkeypatch.setattr(hinge, "_GROUP_ROWS", 80)
    groups = solve(**problem, rho=0.01, fit_intercept=fit_intercept)
    assert together.converged
    assert groups.converged
    assert groups.primal == pytest.approx(together.primal, abs=2e-6 * scale_of(problem))


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_columns_enter_a_few_at_a_time(fit_intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(22, "hinge", rows=50, columns=60, outputs=3)
    monkeypatch.setattr(hinge, "_COLUMNS", 2)
    monkeypatch.setattr(hinge, "_WARM_COLUMNS", 1)
    monkeypatch.setattr(restricted, "_BLOCK", 3)
    cold = solve(**problem, rho=0.01, fit_intercept=fit_intercept, gap_tolerance=1e-8)
    assert cold.converged
    assert cold.primal == pytest.approx(reference_optimum(problem, 0.01, fit_intercept), abs=1e-7)
    warm = solve(**problem, rho=0.008, fit_intercept=fit_intercept, init=cold, gap_tolerance=1e-8)
    assert warm.converged
    assert warm.primal == pytest.approx(reference_optimum(problem, 0.008, fit_intercept), abs=1e-7)


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.1])
def test_any_start_will_do(rho: float) -> None:
    problem = make(23, "hinge", rows=40, columns=20, outputs=3)
    cold = solve(**problem, rho=rho, fit_intercept=True)
    n = cold.dual_point.shape[0]
    for changes in (
        {"coef": 100 * torch.randn_like(cold.coef)},
        {"dual_point": torch.zeros_like(cold.dual_point)},
        {"dual_point": 100 * torch.randn_like(cold.dual_point)},
        {"dual_point": torch.full_like(cold.dual_point, 1 / n), "intercept": torch.full((3,), 50.0).double()},
        {"dual_point": cold.dual_point[: n // 2]},  # of other rows: not used
    ):
        start = dataclasses.replace(cold, **changes)
        solution = solve(**problem, rho=rho, fit_intercept=True, init=start)
        assert solution.converged, changes
        assert solution.primal == pytest.approx(cold.primal, abs=2e-6 * scale_of(problem))
    broken = dataclasses.replace(cold, dual_point=cold.dual_point * float("nan"))
    with pytest.raises(ValueError, match="init holds NaN"):
        solve(**problem, rho=rho, fit_intercept=True, init=broken)
