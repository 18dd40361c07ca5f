"""Ridge programmes: Newton's method with conjugate gradients, and normal equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programmes import counts, make, reference_optimum, scale_of

from lightning_cvxsnn.convex import Limits, Programme, certificate, path, solve
from lightning_cvxsnn.convex.algorithms import NormalEquations, RidgeNewton, ridge
from lightning_cvxsnn.convex.algorithms.block_jacobi import blocks_of
from lightning_cvxsnn.convex.algorithms.spectrum import spectrum_of
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.patterns import SpikeDictionary

RIDGE = ElasticNet(l1_ratio=0.0)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("outputs", [1, 6])
def test_float32_products_end_where_sklearn_does(loss: Any, outputs: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    problem, rho = counts(classes=max(outputs, 2)), 1e-3
    matrix, peer = problem["dictionary"].double().numpy(), linear_model.Ridge(alpha=1200 * rho)
    if loss == "cross_entropy":
        peer = linear_model.LogisticRegression(C=1 / (1200 * rho), solver="newton-cg", tol=1e-8, max_iter=1000)
    else:
        problem["targets"] = torch.nn.functional.one_hot(problem["targets"]).double()[:, :outputs]
    found = solve(
        **problem, loss=loss, rho=rho, l1_ratio=0.0, fit_intercept=True, gap_tolerance=1e-9, num_outputs=outputs
    )
    assert found.converged
    peer.fit(matrix, problem["targets"].numpy().squeeze())
    torch.testing.assert_close(found.coef, torch.as_tensor(peer.coef_).reshape(outputs, -1).T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "squared_hinge"])
def test_more_columns_than_rows_and_fewer(loss: str, shape: tuple[int, int]) -> None:
    problem = make(3, loss, rows=shape[0], columns=shape[1], weighted=True)
    found = solve(**problem, rho=0.01, l1_ratio=0.0, fit_intercept=True, gap_tolerance=1e-9)
    optimum = reference_optimum(problem, 0.01, True, 0.0)
    assert found.primal == pytest.approx(optimum, abs=1e-7 * scale_of(problem))
    assert found.converged


def test_normal_equations_and_newton_agree() -> None:
    problem = make(5, "squared", rows=300, columns=40, counts=4, weighted=True)
    programme = Programme(**problem, fit_intercept=True, penalty=RIDGE)
    one, other = (programme.solve(0.01, limits=Limits(1e-11), algorithm=a) for a in (NormalEquations(), RidgeNewton()))
    assert {one.algorithm, other.algorithm} == {"normal-equations", "ridge-newton"}
    torch.testing.assert_close(one.coef, other.coef, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("packing", ["uint8", "uint16", "float32"])
def test_grams_of_integers_and_fractions_are_exact(packing: str) -> None:
    counted = torch.randint(0, 300 if packing == "uint16" else 5, (700, 30), generator=torch.Generator().manual_seed(0))
    stored = counted.to(getattr(torch, packing)) if packing != "float32" else counted.float() + 0.3
    matrix = stored.double() * 0.25
    targets = torch.randn(700, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = solve(
        SpikeDictionary(stored, 0.25), targets, loss="squared", rho=1e-3, l1_ratio=0.0, fit_intercept=True,
        gap_tolerance=1e-12,
    )  # fmt: skip
    centred = matrix - matrix.mean(0)
    gram = centred.T @ centred / 700 + 1e-3 * torch.eye(30, dtype=torch.float64)
    exact = torch.linalg.solve(gram, centred.T @ targets / 700)
    torch.testing.assert_close(found.coef, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared"])
def test_ten_rhos_share_what_is_worked_out_once(loss: Any) -> None:
    """A path from each value to the next costs at most three solves, in multiply-adds."""
    problem = counts()
    if loss == "squared":
        problem["targets"] = torch.nn.functional.one_hot(problem["targets"]).double()
    held_out = torch.arange(1200) % 6 == 0
    rhos = [0.3 * 0.6**k for k in range(10)]
    found = path(**problem, loss=loss, l1_ratio=0.0, fit_intercept=True, held_out=held_out, rhos=rhos)
    fitted = {name: value[~held_out] for name, value in problem.items()}
    alone = [
        solve(**fitted, loss=loss, rho=rho, l1_ratio=0.0, fit_intercept=True, gap_tolerance=1e-4).work
        for rho in found.rhos
    ]
    assert sum(solution.work for solution in found.solutions) <= 3 * max(alone)


def test_a_start_saves_work_and_a_bad_one_costs_little() -> None:
    problem = counts()
    options: dict[str, Any] = {"loss": "cross_entropy", "rho": 1e-3, "l1_ratio": 0.0, "fit_intercept": True}
    cold = solve(**problem, **options)
    again = solve(**problem, **options, init=cold.point)
    assert again.iterations == 0
    moved = problem["dictionary"].clone()
    moved[::20, ::40] = (moved[::20, ::40] + 1) % 5
    cold = solve(moved, problem["targets"], **options)
    warm = solve(moved, problem["targets"], **options, init=again.point)
    assert warm.converged
    assert warm.work < cold.work


def test_the_preconditioner_inverts_the_squared_loss_hessian() -> None:
    problem = make(9, "squared", rows=200, columns=12, outputs=2)
    programme = Programme(**problem, fit_intercept=True, penalty=RIDGE)
    programme.solve(0.05, algorithm=RidgeNewton())
    system = programme.presolve.programme.kept["ridge"]
    weight = programme.presolve.programme.weight
    inverse = spectrum_of(system.exact, weight).preconditioner(torch.eye(2).double() * weight.sum(), 0.05)
    vector = torch.randn(2, system.exact.columns + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = system.exact.curved(vector, lambda part, change: weight[part, None] * change)
    hessian[:, :-1] += 0.05 * vector[:, :-1]
    torch.testing.assert_close(inverse(hessian), vector)


def test_the_gap_that_ends_newton_is_that_of_the_certificate() -> None:
    problem = counts()
    found = solve(**problem, loss="cross_entropy", rho=1e-3, l1_ratio=0.0, fit_intercept=True, gap_tolerance=1e-7)
    proof = certificate(
        **problem, loss="cross_entropy", coef=found.coef, intercept=found.intercept, rho=1e-3, l1_ratio=0.0,
        fit_intercept=True,
    )  # fmt: skip
    assert 0 <= proof.gap <= 1e-7 * 2
    assert proof.gap == pytest.approx(found.gap, abs=1e-12)


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 5), ("cross_entropy", 1), ("squared_hinge", 3)])
def test_rows_that_a_readout_is_sure_of_cost_little(loss: Any, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rows near a decision bend the objective, far from what holds for the mean over rows."""
    own, work = ridge._PATIENCE, {1e9: 0.0, ridge._PATIENCE: 0.0}
    for seed in (2, 3, 4):  # where rounding leads without blocks is a lottery
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(1500, 120, generator=generator) * torch.logspace(0, -1.5, 120)
        targets = (matrix @ torch.randn(120, max(outputs, 2), generator=generator)).argmax(1)
        for patience in work:
            monkeypatch.setattr(ridge, "_PATIENCE", patience)
            found = solve(matrix, targets, loss=loss, rho=1e-7, l1_ratio=0.0, fit_intercept=True, num_outputs=outputs)
            assert found.converged
            work[patience] += found.work
    assert work[own] < work[1e9] / 2


def kept(loss: str, outputs: int, intercept: bool) -> Any:
    """What the ridge programmes over 200 rows share."""
    programme = Programme(
        **make(9, loss, rows=200, columns=12, outputs=outputs), fit_intercept=intercept, penalty=RIDGE
    )
    programme.solve(0.05, algorithm=RidgeNewton())
    return programme.presolve.programme.kept["ridge"].exact


@pytest.mark.parametrize("intercept", [False, True])
def test_blocks_invert_the_hessian_of_outputs_that_are_not_coupled(intercept: bool) -> None:
    products, generator = kept("squared_hinge", 3, intercept), torch.Generator().manual_seed(0)
    bends = torch.rand(200, 3, dtype=torch.float64, generator=generator)
    blocks = blocks_of(products, bends, 0.1, coupled=False)
    assert blocks is not None
    step = torch.randn(3, products.columns + intercept, dtype=torch.float64, generator=generator)
    hessian = products.curved(step, lambda part, change: bends[part] * change)
    hessian[:, : products.columns] += 0.1 * step[:, : products.columns]
    torch.testing.assert_close(blocks(hessian), step, rtol=1e-3, atol=1e-3)


def test_blocks_of_a_softmax_invert_it_in_a_shift_of_all_outputs() -> None:
    products, generator = kept("cross_entropy", 4, True), torch.Generator().manual_seed(0)
    shares = torch.randn(200, 4, dtype=torch.float64, generator=generator).softmax(1)
    blocks = blocks_of(products, shares * (1 - shares), 0.1, coupled=True)
    assert blocks is not None
    shift = torch.randn(products.columns + 1, dtype=torch.float64, generator=generator).expand(4, -1)
    found = blocks(shift)
    torch.testing.assert_close(found[:, :-1], shift[:, :-1] / 0.1)
    torch.testing.assert_close(found[:, -1], torch.zeros(4, dtype=torch.float64))


def test_blocks_without_an_inverse_are_done_without() -> None:
    products = kept("squared_hinge", 3, True)
    assert blocks_of(products, torch.full((200, 3), float("nan")), 0.1, coupled=False) is None
