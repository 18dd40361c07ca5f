"""The certificate under attack: whatever it is handed, its gap is never below the true suboptimality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programmes import LOSSES, make, reference_optimum, residual_certificate_inputs, scale_of

from lightning_cvxsnn.convex import certificate, rho_max, solve

CASES = [
    (loss, outputs, weighted, fit_intercept)
    for loss in LOSSES
    for outputs in (1, 3)
    for weighted in (False, True)
    for fit_intercept in (False, True)
]
_OPTIMA: dict[tuple[Any, ...], tuple[dict[str, Any], float, Any, float]] = {}


def _solved(case: tuple[str, int, bool, bool]) -> tuple[dict[str, Any], float, Any, float]:
    """Problem, rho, tight solution and CVXPY's optimum, kept between examples."""
    if case not in _OPTIMA:
        loss, outputs, weighted, fit_intercept = case
        problem = make(21, loss, rows=18, columns=9, outputs=outputs, weighted=weighted)
        rho = 0.15 * rho_max(**problem, fit_intercept=fit_intercept)
        solution = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-10)
        _OPTIMA[case] = problem, rho, solution, reference_optimum(problem, rho, fit_intercept)
    return _OPTIMA[case]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CASES),
    st.integers(0, 10_000),
    st.sampled_from(["noise", "scaled", "shifted", "huge", "tiny", "negated", "one row", "infeasible intercept"]),
    st.sampled_from([0.0, 1e-12, 1e-6, 1e-2, 1.0, 100.0]),
)
def test_never_below_the_true_suboptimality(
    case: tuple[str, int, bool, bool], seed: int, attack: str, wrong: float
) -> None:
    problem, rho, solution, optimum = _solved(case)
    generator = torch.Generator().manual_seed(seed)
    inputs = residual_certificate_inputs(problem, solution)
    noise = torch.randn(solution.dual_point.shape, generator=generator, dtype=torch.float64)
    size = float(solution.dual_point.abs().max())
    point = solution.dual_point
    inputs["dual_point"] = {
        "noise": point + size * noise,
        "scaled": point * (1 + float(noise.flatten()[0].abs())),
        "shifted": point + 1e-9 * size,  # violates the intercept's equality a little
        "huge": 1e200 * noise,
        "tiny": 1e-200 * noise,
        "negated": -point,
        "one row": torch.where(torch.arange(point.shape[0])[:, None] == seed % point.shape[0], 10 * point, point),
        "infeasible intercept": point + 0.1 * size * noise.abs(),
    }[attack]
    direction = torch.randn(solution.coef.shape, generator=generator, dtype=torch.float64)
    inputs["coef"] = solution.coef + wrong * direction
    proof = certificate(**inputs, rho=rho, fit_intercept=case[3])
    slack = 1e-8 * scale_of(problem)  # CVXPY's own accuracy
    assert proof.dual <= optimum + slack
    assert proof.dual >= 0
    assert proof.primal >= optimum - slack
    assert proof.gap >= proof.primal - optimum - slack
    assert proof.gap == pytest.approx(proof.primal - proof.dual)
    assert proof.violation >= 0


@pytest.mark.parametrize("case", CASES)
def test_tight_at_the_optimum(case: tuple[str, int, bool, bool]) -> None:
    problem, rho, solution, optimum = _solved(case)
    proof = certificate(**residual_certificate_inputs(problem, solution), rho=rho, fit_intercept=case[3])
    scale = scale_of(problem)
    assert -1e-9 * scale <= proof.gap <= 1e-8 * scale
    assert proof.primal == pytest.approx(optimum, abs=1e-7 * scale)
    assert proof.violation <= 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if c[0] != "hinge"])
def test_residuals_alone_are_enough_but_for_hinge(case: tuple[str, int, bool, bool]) -> None:
    problem, rho, solution, _ = _solved(case)
    inputs = residual_certificate_inputs(problem, solution) | {"dual_point": None}
    assert certificate(**inputs, rho=rho, fit_intercept=case[3]).gap <= 1e-4 * scale_of(problem)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_extreme_points(loss: str, outputs: int) -> None:
    problem = make(22, loss, outputs=outputs)
    inputs: dict[str, Any] = {k: problem[k] for k in ("dictionary", "targets", "loss")}
    coef = torch.zeros(8, outputs)
    for number in (0.0, 1e300, -1e300):
        point = torch.full((24, outputs), number, dtype=torch.float64)
        proof = certificate(**inputs, coef=coef, rho=1e-3, fit_intercept=True, dual_point=point)
        assert 0 <= proof.dual <= proof.primal
    far = certificate(**inputs, coef=coef + 1e6, rho=1e-3, fit_intercept=True)
    assert far.gap > 1
    assert far.dual >= 0


def test_float32_and_written_weights_are_judged_as_they_are() -> None:
    problem, rho, solution, _ = _solved(("cross_entropy", 3, False, True))
    inputs = residual_certificate_inputs(problem, solution)
    inputs |= {"coef": solution.coef.float(), "intercept": solution.intercept.float()}
    rounded = certificate(**inputs, rho=rho, fit_intercept=True)
    assert rounded.dual == pytest.approx(solution.dual, abs=1e-12)
    assert 0 <= rounded.gap < 1e-6
    inputs |= {"coef": 0.3 * solution.coef}
    assert certificate(**inputs, rho=rho, fit_intercept=True).gap > 1e-3


def test_bad_input() -> None:
    problem, rho, solution, _ = _solved(("hinge", 3, False, True))
    inputs = residual_certificate_inputs(problem, solution)
    nan = float("nan")
    for change, message in (
        ({"coef": solution.coef[:-1]}, r"coef has shape \(8, 3\); expected \(9, 3\)"),
        ({"coef": solution.coef[:, 0]}, r"expected \[P, C\]"),
        ({"coef": solution.coef * nan}, "coef holds NaN"),
        ({"intercept": solution.intercept[:2]}, "intercept has shape"),
        ({"intercept": solution.intercept + nan}, "intercept holds NaN"),
        ({"dual_point": solution.dual_point + nan}, "dual_point holds NaN"),
        ({"dual_point": solution.dual_point / 0}, "dual_point holds NaN or infinite"),
        ({"dual_point": solution.dual_point.T}, "dual_point has shape"),
        ({"fit_intercept": False, "intercept": torch.ones(3)}, "intercept is not zero but fit_intercept=False"),
        ({"rho": 0.0}, "rho is 0.0"),
        ({"targets": problem["targets"][:3]}, "targets has 3 rows"),
        ({"loss": "huber"}, "loss is 'huber'"),
        ({"sample_weight": torch.ones(2)}, "sample_weight has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            certificate(**({"rho": rho, "fit_intercept": True} | inputs | change))


@pytest.mark.parametrize("rows", [300, 500, 1000])
@pytest.mark.parametrize("constant", [0.1, 0.7, 7.5472])
def test_equal_residuals_prove_nothing(rows: int, constant: float) -> None:
    # once they are centred, all that is left of them is rounding error of one sign
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    asked: dict[str, Any] = {"loss": "squared", "rho": 0.01, "fit_intercept": True}
    targets = torch.cat([matrix[:, :1], torch.full((rows, 1), constant, dtype=torch.float64)], 1)
    optimum = solve(matrix, targets[:, :1], **asked).primal
    written = torch.tensor([0.0, constant])  # float32, as in a network
    assert certificate(matrix, targets, torch.zeros(3, 2), written, **asked).dual <= optimum + 1e-12
    alone = solve(matrix, targets[:, 1:], **asked)
    assert alone.converged
    assert abs(alone.gap) <= 1e-20
    shifted = 1.4 * torch.randn(rows, 1, generator=g, dtype=torch.float64) + 3
    best = solve(matrix, shifted, **asked, gap_tolerance=1e-10).primal
    assert certificate(matrix, shifted, torch.zeros(3, 1), dual_point=torch.ones(rows, 1), **asked).dual <= best + 1e-9
