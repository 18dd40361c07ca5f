"""One programme, checked and reduced once: what its methods answer is what the functions answer."""

from __future__ import annotations

import pytest
import torch
from programmes import LOSSES, make, scale_of

from lightning_cvxsnn.convex import Limits, Point, Programme, certificate, path, presolve, rho_max, solve
from lightning_cvxsnn.convex import programme as module
from lightning_cvxsnn.convex.algorithms import (
    ColumnGeneration,
    FaceNewton,
    NormalEquations,
    RidgeNewton,
    WorkingSetNewton,
    algorithm_for,
)
from lightning_cvxsnn.convex.penalties import ElasticNet


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_methods_are_the_functions(loss: str, fit_intercept: bool) -> None:
    problem = make(51, loss, rows=40, columns=15, weighted=True)
    programme = Programme(**problem, fit_intercept=fit_intercept)
    options = {**problem, "fit_intercept": fit_intercept}
    one, other = programme.solve(0.02), solve(**options, rho=0.02)
    assert programme.largest_rho() == rho_max(**options)
    for name in ("coef", "intercept", "dual_point"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.primal, one.dual, one.work) == (other.primal, other.dual, other.work)
    del options["num_outputs"]
    proof = programme.certificate(one.coef, one.intercept, rho=0.02, dual_point=one.dual_point)
    assert proof == certificate(coef=one.coef, intercept=one.intercept, rho=0.02, dual_point=one.dual_point, **options)
    held_out = torch.arange(40) % 4 == 0
    walk = programme.path(held_out, num_values=4)
    assert (
        walk.held_out_losses
        == path(**problem, fit_intercept=fit_intercept, held_out=held_out, num_values=4).held_out_losses
    )


def test_it_is_checked_and_reduced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"check_data": 0, "reduce": 0}
    for name in counts:
        original = getattr(module, name)

        def counted(*arguments: object, name: str = name, original: object = original) -> object:
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    programme = Programme(**make(52, "cross_entropy"), fit_intercept=True)
    assert counts == {"check_data": 0, "reduce": 0}
    first = programme.solve(0.05)
    programme.solve(0.04, first.point)
    programme.certificate(first.coef, first.intercept, rho=0.05)
    programme.largest_rho()
    assert counts == {"check_data": 1, "reduce": 1}
    programme.subset(torch.arange(24) < 12).solve(0.05)
    assert counts == {"check_data": 1, "reduce": 2}
    assert programme.solve(0.05).primal == first.primal


@pytest.mark.parametrize("loss", LOSSES)
def test_a_subset_is_the_programme_over_its_rows(loss: str) -> None:
    problem = make(53, loss, rows=40, columns=15, weighted=True)
    rows = torch.arange(40) % 3 > 0
    part = problem | {name: problem[name][rows] for name in ("dictionary", "targets", "sample_weight")}
    whole = Programme(**problem, fit_intercept=True)
    whole.solve(0.02)
    one, other = whole.subset(rows).solve(0.02), solve(**part, rho=0.02, fit_intercept=True)
    assert torch.equal(one.coef, other.coef)
    assert one.primal == other.primal
    index = whole.subset(rows.nonzero()[:, 0]).solve(0.02)
    assert torch.equal(index.coef, one.coef)


@pytest.mark.parametrize("loss", LOSSES)
def test_starts_from_points(loss: str) -> None:
    problem = make(54, loss, rows=40, columns=15)
    programme = Programme(**problem, fit_intercept=True)
    cold = programme.solve(0.02)
    again = programme.solve(0.02, cold.point)
    assert again.iterations <= cold.iterations
    for start in (Point(cold.coef, cold.intercept), Point(cold.coef[:7], cold.intercept, cold.dual_point)):
        warm = programme.solve(0.02, start)
        assert warm.converged
        assert warm.primal == pytest.approx(cold.primal, abs=2e-6 * scale_of(problem))


def test_limits() -> None:
    programme = Programme(**make(9, "hinge", rows=40, columns=20), fit_intercept=True)
    assert not programme.solve(0.001, limits=Limits(max_iterations=1)).converged
    assert not programme.solve(0.001, limits=Limits(max_seconds=0.0)).converged
    rough, fine = (programme.solve(0.001, limits=Limits(tolerance)) for tolerance in (0.1, 1e-8))
    assert fine.gap <= 1e-8 * programme.scale < rough.gap <= 0.1 * programme.scale
    for change, message in (
        ({"gap_tolerance": float("nan")}, "gap_tolerance is nan"),
        ({"max_iterations": -1}, "max_iterations is -1"),
        ({"max_seconds": -0.1}, "max_seconds is -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            Limits(**change)


@pytest.mark.parametrize(
    ("loss", "ratio", "expected"),
    [
        ("cross_entropy", 1.0, WorkingSetNewton),
        ("squared", 0.3, WorkingSetNewton),
        ("squared_hinge", 1e-6, WorkingSetNewton),
        ("cross_entropy", 0.0, RidgeNewton),
        ("squared_hinge", 0.0, RidgeNewton),
        ("squared", 0.0, NormalEquations),
        ("hinge", 1.0, ColumnGeneration),
    ],
)
def test_algorithms_are_chosen_by_what_they_require(loss: str, ratio: float, expected: type) -> None:
    programme = Programme(**make(56, loss), fit_intercept=True)
    assert type(algorithm_for(programme.presolve.programme, ElasticNet(l1_ratio=ratio))) is expected


def test_algorithms_say_what_they_cannot_take() -> None:
    programme = Programme(**make(56, "hinge"), fit_intercept=True)
    for algorithm in (WorkingSetNewton(), RidgeNewton(), FaceNewton()):
        with pytest.raises(ValueError, match="loss is 'hinge'; expected one with a curvature"):
            programme.solve(1e-3, algorithm=algorithm)

    class Other:
        """No elastic net."""

    with pytest.raises(ValueError, match="No algorithm takes loss 'hinge' with the penalty Other"):
        algorithm_for(programme.presolve.programme, Other())  # type: ignore[arg-type]


def test_presolve_goes_there_and_back() -> None:
    problem = make(57, "squared", rows=30, columns=20, weighted=True)
    programme = Programme(**problem, fit_intercept=True)
    reduced: presolve.Presolve = programme.presolve
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    intercept = torch.randn(3, generator=generator, dtype=torch.float64)
    small, shift = reduced.restrict(coef, intercept)
    outputs = problem["dictionary"] @ coef + intercept
    used = problem["sample_weight"] > 0
    torch.testing.assert_close(reduced.programme.matrix @ small + shift, outputs[used])
    full, dual = reduced.expand(small, False), reduced.expand_dual(reduced.restrict_dual(outputs))
    back = reduced.expand_intercept(small, shift, 1e-9)
    torch.testing.assert_close((problem["dictionary"] @ full + back)[used], outputs[used])
    assert torch.equal(dual, torch.where(used[:, None], outputs, 0.0))
    shared = reduced.expand(small, True)
    moved = problem["dictionary"] @ shared + back - reduced.shift @ shared
    torch.testing.assert_close(moved[used], outputs[used])
    assert int((shared != 0).any(1).sum()) > int((full != 0).any(1).sum())
