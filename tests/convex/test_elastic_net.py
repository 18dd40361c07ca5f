"""From ridge to L1: every ratio against CVXPY, closed forms and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from programmes import LOSSES, RATIOS, make, reference_optimum, residual_certificate_inputs, scale_of

from lightning_cvxsnn.convex import Point, certificate, path, rho_max, solve
from lightning_cvxsnn.patterns import SpikeDictionary

SMOOTH = [loss for loss in LOSSES if loss != "hinge"]
BELOW = RATIOS[:-1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(LOSSES), st.sampled_from([1, 3]), st.booleans(), st.booleans(),
    st.sampled_from(RATIOS), st.sampled_from([0.5, 0.03, 1e-3]),
)  # fmt: skip
@example(961, "hinge", 1, False, True, 0.0, 0.03)  # rounds of which the point alone gains, not the bound
def test_equal_to_cvxpy(
    seed: int, loss: str, outputs: int, weighted: bool, fit_intercept: bool, ratio: float, rho: float
) -> None:
    problem = make(seed, loss, rows=18, columns=9, outputs=outputs, weighted=weighted)
    solution = solve(**problem, rho=rho, l1_ratio=ratio, fit_intercept=fit_intercept, gap_tolerance=1e-8)
    optimum, scale = reference_optimum(problem, rho, fit_intercept, ratio), scale_of(problem)
    assert solution.converged
    assert solution.primal == pytest.approx(optimum, abs=1e-7 * scale)
    assert solution.dual <= optimum + 1e-8 * scale
    proof = certificate(
        **residual_certificate_inputs(problem, solution), rho=rho, l1_ratio=ratio, fit_intercept=fit_intercept
    )
    assert proof.primal == pytest.approx(solution.primal, abs=1e-12 * scale)
    assert proof.dual >= solution.dual - 1e-12 * scale
    assert (proof.violation is None) == (ratio < 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(LOSSES), st.sampled_from(BELOW), st.booleans(),
    st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e100]), st.sampled_from([0.0, 1e-3, 1.0]),
)  # fmt: skip
def test_the_certificate_under_attack(
    seed: int, loss: str, ratio: float, fit_intercept: bool, noise: float, wrong: float
) -> None:
    problem = make(33, loss, rows=18, columns=9)
    found = solve(**problem, rho=0.05, l1_ratio=ratio, fit_intercept=fit_intercept, gap_tolerance=1e-10)
    generator = torch.Generator().manual_seed(seed)

    def shaken(tensor: torch.Tensor, size: float) -> torch.Tensor:
        return tensor + size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    inputs = residual_certificate_inputs(problem, found)
    inputs |= {"coef": shaken(found.coef, wrong), "dual_point": shaken(found.dual_point, noise)}
    proof = certificate(**inputs, rho=0.05, l1_ratio=ratio, fit_intercept=fit_intercept)
    scale = scale_of(problem)
    assert 0 <= proof.dual <= found.primal + 1e-12 * scale
    assert proof.gap >= proof.primal - found.primal - 1e-12 * scale
    assert proof.gap == proof.primal - proof.dual


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_ridge_has_a_closed_form(fit_intercept: bool) -> None:
    problem = make(5, "squared", rows=30, columns=8, weighted=True)
    rho, weight = 0.02, problem["sample_weight"]
    found = solve(**problem, rho=rho, l1_ratio=0.0, fit_intercept=fit_intercept, gap_tolerance=1e-12)
    rows, columns = problem["dictionary"].shape
    matrix = torch.cat([problem["dictionary"], torch.full((rows, 1), float(fit_intercept)).double()], 1)
    penalty = torch.diag(torch.tensor([rho] * columns + [0.0 if fit_intercept else 1.0]).double())
    gram = matrix.T @ (weight[:, None] * matrix) / rows + penalty
    exact = torch.linalg.solve(gram, matrix.T @ (weight[:, None] * problem["targets"]) / rows)
    torch.testing.assert_close(found.coef, exact[:-1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.intercept, exact[-1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_is_continuous_in_the_ratio(loss: str) -> None:
    """It is concave in the ratio, with the difference of the two penalties as a supergradient."""
    problem, rho = make(8, loss, rows=24, columns=9), 0.05
    ratios = [0.0, 1e-6, 0.3, 0.999, 1 - 1e-9, 1.0]
    found = [solve(**problem, rho=rho, l1_ratio=a, fit_intercept=True, gap_tolerance=1e-10) for a in ratios]
    for one, a in zip(found, ratios, strict=True):
        slope = rho * float(one.coef.abs().sum() - one.coef.square().sum() / 2)
        for other, b in zip(found, ratios, strict=True):
            if min(a, b) < 1 or a == b:  # at 1 equal columns are not shared: another of its optima
                assert other.dual <= one.primal + (b - a) * slope + 1e-9 * scale_of(problem)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", BELOW)
def test_equal_columns_have_equal_coefficients(loss: str, ratio: float) -> None:
    problem = make(11, loss, rows=24, columns=4)
    plain = problem["dictionary"]
    twice = problem | {"dictionary": torch.cat([plain, plain[:, :2], 1 - plain[:, :1]], 1)}
    options: dict[str, Any] = {"rho": 0.02, "l1_ratio": ratio, "fit_intercept": True, "gap_tolerance": 1e-9}
    found = solve(**twice, **options)
    assert found.converged
    torch.testing.assert_close(found.coef[[0, 1]], found.coef[[4, 5]])
    torch.testing.assert_close(found.coef[0], -found.coef[6])
    optimum = reference_optimum(twice, 0.02, True, ratio)
    assert found.primal == pytest.approx(optimum, abs=1e-7 * scale_of(problem))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", BELOW)
def test_columns_on_another_scale(loss: str, ratio: float) -> None:
    """Columns times c, with the L1 part of the penalty times c and the squares times c^2: coefficients over c."""
    problem, rho, c = make(14, loss, rows=24, columns=6), 0.03, 3.0
    l1, l2 = rho * ratio * c, rho * (1 - ratio) * c**2
    one = solve(**problem, rho=rho, l1_ratio=ratio, fit_intercept=True, gap_tolerance=1e-9)
    scaled = problem | {"dictionary": c * problem["dictionary"]}
    other = solve(**scaled, rho=l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=True, gap_tolerance=1e-9)
    assert other.primal == pytest.approx(one.primal, abs=1e-8 * scale_of(problem))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", BELOW)
def test_packed_forms_agree(loss: str, ratio: float) -> None:
    problem = make(17, loss, rows=40, columns=12)
    counts = problem["dictionary"].to(torch.uint8)
    forms = [counts, counts.bool(), SpikeDictionary(counts), SpikeDictionary(counts).packed(), problem["dictionary"]]
    found = [
        solve(**problem | {"dictionary": form}, rho=0.02, l1_ratio=ratio, fit_intercept=True, gap_tolerance=1e-9)
        for form in forms
    ]
    assert max(s.primal for s in found) - min(s.primal for s in found) <= 2e-9 * scale_of(problem)
    assert all(s.converged for s in found)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", BELOW)
@pytest.mark.parametrize("start", ["none", "optimum", "far", "other"])
def test_a_stopped_solve_is_never_worse_than_the_constant(loss: str, ratio: float, start: str) -> None:
    problem = make(19, loss, rows=40, columns=10)
    options: dict[str, Any] = {"rho": 0.01, "l1_ratio": ratio, "fit_intercept": True}
    best = solve(**problem, **options, gap_tolerance=1e-9)
    constant = solve(**problem, rho=1e6, fit_intercept=True).primal
    noise = torch.randn(best.coef.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    init = {
        "none": None, "optimum": best.point, "far": Point(1e6 * noise, best.intercept),
        "other": Point(noise[:4], best.intercept, noise[:3]),
    }[start]  # fmt: skip
    for limit in (0, 1, 2, 5):
        found = solve(**problem, **options, init=init, max_iterations=limit)
        assert found.primal <= constant * (1 + 1e-12)
        assert found.gap >= found.primal - best.primal - 1e-9 * scale_of(problem)
        assert found.converged or start != "optimum"
    late = solve(**problem, **options, init=init, max_seconds=0.0)
    assert late.primal <= constant * (1 + 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_a_path(loss: str, ratio: float) -> None:
    problem = make(23, loss, rows=60, columns=12)
    held_out = torch.arange(60) % 3 == 0
    found = path(**problem, l1_ratio=ratio, fit_intercept=True, held_out=held_out)
    fitted = problem | {name: problem[name][~held_out] for name in ("dictionary", "targets")}
    if ratio:
        largest = rho_max(**fitted, l1_ratio=ratio, fit_intercept=True)
        assert not found.solutions[0].coef.any()
    else:
        assert rho_max(**fitted, l1_ratio=0.0, fit_intercept=True) == float("inf")
        largest = rho_max(**fitted, l1_ratio=1e-3, fit_intercept=True)
    assert found.rhos[0] == pytest.approx(largest)
    assert all(solution.converged for solution in found.solutions)
    own = path(**problem, l1_ratio=ratio, fit_intercept=True, held_out=held_out, rhos=[0.1, 0.01])
    assert own.rhos == [0.1, 0.01]


@pytest.mark.parametrize(
    ("ratio", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_a_ratio_that_is_none(ratio: Any, error: type[Exception]) -> None:
    problem = make(1, "squared")
    with pytest.raises(error, match="l1_ratio is"):
        solve(**problem, rho=0.1, l1_ratio=ratio, fit_intercept=True)
