"""Programmes with so many entries that softmax outputs take turns, starts, and the quadratic models."""

import dataclasses

import pytest
import torch
from programmes import make, scale_of

from lightning_cvxsnn.convex import Programme, solve
from lightning_cvxsnn.convex.algorithms import WorkingSetNewton
from lightning_cvxsnn.convex.algorithms.quadratic import minimise_quadratic


def many_entries():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(0, 2, (400, 160), generator=generator).double()
    teacher = torch.randn(160, 10, generator=generator, dtype=torch.float64)
    labels = (matrix @ teacher + 4 * torch.randn(400, 10, generator=generator, dtype=torch.float64)).argmax(1)
    return matrix, labels


@pytest.fixture(scope="module")
def reference():
    return solve(*many_entries(), loss="cross_entropy", rho=1e-3, fit_intercept=True, gap_tolerance=1e-9)


def test_more_entries_than_a_small_model(reference):
    assert int((reference.coef != 0).sum()) > WorkingSetNewton().small_model
    assert reference.converged


@pytest.mark.parametrize("largest", [0, 10**9])
def test_taking_turns_and_joint_steps_agree(reference, largest):
    newton = WorkingSetNewton(iteration_limit=3000, small_model=largest, largest_model=largest)  # in turn, and never
    found = Programme(*many_entries(), loss="cross_entropy", fit_intercept=True).solve(1e-3, algorithm=newton)
    assert found.converged
    assert found.primal == pytest.approx(reference.primal, abs=2e-6 * 2.3)


def changed(problem, share):
    """The problem after some entries of its dictionary have flipped."""
    flipped = torch.rand(problem["dictionary"].shape, generator=torch.Generator().manual_seed(1)) < share
    return problem | {"dictionary": torch.where(flipped, 1 - problem["dictionary"], problem["dictionary"])}


@pytest.mark.parametrize(
    ("loss", "outputs"), [("squared", 1), ("squared", 3), ("cross_entropy", 1), ("squared_hinge", 3)]
)
def test_a_dual_point_of_the_old_dictionary_saves_work(loss, outputs):
    problem = make(30, loss, rows=500, columns=300, outputs=outputs)
    before = solve(**problem, rho=0.02, fit_intercept=True)
    problem = changed(problem, 0.002)
    cold = solve(**problem, rho=0.02, fit_intercept=True)
    warm = solve(**problem, rho=0.02, fit_intercept=True, init=before.point)
    assert warm.converged
    assert warm.primal == pytest.approx(cold.primal, abs=2e-6 * scale_of(problem))
    assert warm.iterations < cold.iterations
    assert warm.work < 0.9 * cold.work


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize("loss", ["squared", "cross_entropy", "squared_hinge"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_any_start_will_do(loss, rho, outputs):
    problem = make(31, loss, rows=40, columns=20, outputs=outputs)
    cold = solve(**problem, rho=rho, fit_intercept=True)
    generator = torch.Generator().manual_seed(0)

    def noise(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    n = cold.dual_point.shape[0]
    for changes in (
        {"coef": 100 * noise(cold.coef)},
        {"dual_point": torch.zeros_like(cold.dual_point)},
        {"dual_point": 100 * noise(cold.dual_point)},
        {"coef": -30 * cold.coef, "dual_point": -cold.dual_point},
        {"dual_point": torch.full_like(cold.dual_point, 1 / n), "intercept": 50 + noise(cold.intercept)},
        {"dual_point": cold.dual_point[: n // 2]},  # of other rows: not used
    ):
        solution = solve(**problem, rho=rho, fit_intercept=True, init=dataclasses.replace(cold.point, **changes))
        assert solution.converged, changes
        assert solution.primal == pytest.approx(cold.primal, abs=2e-6 * scale_of(problem))
    broken = dataclasses.replace(cold.point, dual_point=cold.dual_point * float("nan"))
    with pytest.raises(ValueError, match="init holds NaN"):
        solve(**problem, rho=rho, fit_intercept=True, init=broken)


def test_quadratics_far_from_their_minimiser():
    """Ill conditioned, from dense starts: against the optimality conditions of the model with its penalty."""
    generator = torch.Generator().manual_seed(2)
    for size in (20, 120):
        factor = torch.randn(size // 2, size, generator=generator, dtype=torch.float64)
        hessian = factor.T @ factor / size + 1e-6 * torch.eye(size, dtype=torch.float64)
        start = 10 * torch.randn(size, generator=generator, dtype=torch.float64)
        gradient = torch.randn(size, generator=generator, dtype=torch.float64)
        penalty = torch.full((size,), 0.3, dtype=torch.float64)
        penalty[0] = 0
        point, change, _ = minimise_quadratic(hessian, gradient, start, penalty)
        slope = gradient + hessian @ (point - start)
        wrong = torch.where(point != 0, (slope + penalty * point.sign()).abs(), (slope.abs() - penalty).clamp_min(0))
        assert float(wrong.max()) < 1e-8
        moved = point - start
        value = moved @ gradient + moved @ hessian @ moved / 2 + penalty @ (point.abs() - start.abs())
        assert change == pytest.approx(float(value), rel=1e-9)
