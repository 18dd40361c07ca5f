"""The hinge solver's own machinery: outputs together, columns that enter, starts from elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from programmes import RATIOS, make, reference_optimum, scale_of

from lightning_cvxsnn.convex import Limits, Programme, solve
from lightning_cvxsnn.convex.algorithms import ColumnGeneration, hinge
from lightning_cvxsnn.convex.algorithms.grouped import group
from lightning_cvxsnn.convex.algorithms.restricted import Columns, gram, weighted_gram
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.patterns import SpikeDictionary


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_outputs_together_or_in_groups(fit_intercept: bool) -> None:
    problem = make(21, "hinge", rows=40, columns=30, outputs=5, weighted=True)
    programme = Programme(**problem, fit_intercept=fit_intercept)
    together = programme.solve(0.01)
    groups = programme.solve(0.01, algorithm=ColumnGeneration(batch_rows=80))
    assert together.converged
    assert groups.converged
    assert groups.primal == pytest.approx(together.primal, abs=2e-6 * scale_of(problem))


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_columns_enter_a_few_at_a_time(fit_intercept: bool) -> None:
    problem = make(22, "hinge", rows=50, columns=60, outputs=3)
    programme = Programme(**problem, fit_intercept=fit_intercept)
    options = {"limits": Limits(1e-8), "algorithm": ColumnGeneration(columns=2, warm_columns=1)}
    cold = programme.solve(0.01, **options)
    assert cold.converged
    assert cold.primal == pytest.approx(reference_optimum(problem, 0.01, fit_intercept), abs=1e-7)
    warm = programme.solve(0.008, cold.point, **options)
    assert warm.converged
    assert warm.primal == pytest.approx(reference_optimum(problem, 0.008, fit_intercept), abs=1e-7)


@pytest.mark.parametrize("columns", [1, 128, 129, 300])
def test_gram_of_several_blocks(columns: int) -> None:
    root = torch.randn(2, 40, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gram(root)
    torch.testing.assert_close(found, root.mT @ root, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.mT)


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
        start = dataclasses.replace(cold.point, **changes)
        solution = solve(**problem, rho=rho, fit_intercept=True, init=start)
        assert solution.converged, changes
        assert solution.primal == pytest.approx(cold.primal, abs=2e-6 * scale_of(problem))
    broken = dataclasses.replace(cold.point, dual_point=cold.dual_point * float("nan"))
    with pytest.raises(ValueError, match="init holds NaN"):
        solve(**problem, rho=rho, fit_intercept=True, init=broken)


@pytest.mark.parametrize("dual", [True, False])
def test_near_start_needs_few_rows(dual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(24, "hinge", rows=400, columns=12, outputs=3, weighted=True, counts=4)
    before = solve(**problem, rho=0.02, fit_intercept=True).point
    if not dual:  # as after a checkpoint: coefficients alone
        before = dataclasses.replace(before, dual_point=None)
    moved = torch.rand(problem["dictionary"].shape, generator=torch.Generator().manual_seed(0)) < 0.01
    problem["dictionary"] = torch.where(moved, 4 - problem["dictionary"], problem["dictionary"])
    with monkeypatch.context() as patch:
        patch.setattr(hinge, "gather", None)  # what would take all rows
        warm = solve(**problem, rho=0.019, fit_intercept=True, init=before, gap_tolerance=1e-8)
    assert warm.converged
    assert warm.primal == pytest.approx(reference_optimum(problem, 0.019, True), abs=1e-7)
    again = solve(**problem, rho=0.019, fit_intercept=True, init=before, gap_tolerance=1e-8)
    assert torch.equal(again.coef, warm.coef)
    assert torch.equal(again.dual_point, warm.dual_point)


@pytest.mark.parametrize("rows", [1, 5, 50])
def test_groups_bound_from_below(rows: int) -> None:
    """At any point, with equality where the members of each group agree on their side."""
    problem = make(25, "hinge", rows=60, columns=9, outputs=3, weighted=True)
    reduced = Programme(**problem, fit_intercept=True).presolve.programme
    generator = torch.Generator().manual_seed(rows)
    (n, p), sign, weight = reduced.matrix.shape, reduced.encoded.T, reduced.weight
    outputs = sign.shape[0]
    single = torch.rand(outputs, n, generator=generator).argsort(1) < torch.arange(rows, rows + outputs)[:, None]
    here, elsewhere = torch.randn(2, outputs, p, generator=generator).double()
    margin = sign * (reduced.matrix @ here.T).T
    programme = group(reduced, sign, margin, single, torch.ones(outputs, p, dtype=torch.bool))
    fill = programme.columns.matrix[:, :, 0] == 0  # no intercept
    assert int((~fill).sum()) <= int(single.sum()) + 4 * outputs
    for coef in (here, elsewhere):
        full = (1 - sign * (reduced.matrix @ coef.T).T).clamp_min(0) @ weight
        z = (programme.columns.matrix[:, :, 1:] @ coef[:, :, None])[:, :, 0]
        grouped = (torch.where(fill, 0.0, programme.cost) * (1 - programme.sign * z).clamp_min(0)).sum(1)
        assert bool((grouped <= full + 1e-12).all())
        if coef is here:
            torch.testing.assert_close(grouped, full)
    share = torch.rand(outputs, n, generator=generator).double()
    apart = programme.apart(programme.together(share, weight.expand_as(share)))
    torch.testing.assert_close(apart @ weight, share @ weight)
    assert torch.equal(apart[single], share[single])


# -- every l1_ratio ----------------------------------------------------------------------------------------------------


def _programme(problem: dict[str, Any], l1_ratio: float, fit_intercept: bool = True) -> Programme:
    return Programme(**problem, fit_intercept=fit_intercept, penalty=ElasticNet(l1_ratio=l1_ratio))


@pytest.mark.parametrize("l1_ratio", RATIOS)
@pytest.mark.parametrize("seed", range(6))
def test_elastic_net_equals_the_reference(seed: int, l1_ratio: float) -> None:
    size = {"rows": [24, 60][seed % 2], "columns": [8, 30][seed // 2 % 2], "counts": [1, 4][seed % 2]}
    problem = make(60 + seed, "hinge", outputs=[3, 1, 2][seed % 3], weighted=seed % 2 == 1, **size)
    programme, rho = _programme(problem, l1_ratio, seed % 4 < 2), [0.3, 0.05, 0.003][seed % 3]
    found = programme.solve(rho, limits=Limits(1e-8))
    optimum = reference_optimum(problem, rho, seed % 4 < 2, l1_ratio)
    assert found.converged
    assert found.primal == pytest.approx(optimum, abs=1e-7)
    assert found.dual <= optimum + 1e-8


@pytest.mark.parametrize("l1_ratio", RATIOS)
def test_scaling_of_rows_and_columns(l1_ratio: float) -> None:
    """Weights, and rho with them, scale the objective; columns scale coefficients, at a = 0 with another rho."""
    problem = make(71, "hinge", rows=40, columns=12, counts=4)
    one = _programme(problem, l1_ratio).solve(0.02, limits=Limits(1e-8))
    weight = torch.full((40,), 7.0).double()
    heavier = _programme(problem | {"sample_weight": weight}, l1_ratio).solve(0.14, limits=Limits(1e-8))
    assert heavier.converged
    assert heavier.primal == pytest.approx(7 * one.primal, abs=1e-6)
    packed = problem | {"dictionary": SpikeDictionary.from_values(problem["dictionary"])}
    again = _programme(packed, l1_ratio).solve(0.02, limits=Limits(1e-8))
    assert again.primal == pytest.approx(one.primal, abs=1e-7)
    if l1_ratio in (0, 1):
        wider = _programme(problem | {"dictionary": 3 * problem["dictionary"]}, l1_ratio)
        scaled = wider.solve(0.02 * (3 if l1_ratio else 9), limits=Limits(1e-8))
        assert scaled.primal == pytest.approx(one.primal, abs=1e-7)
        torch.testing.assert_close(3 * scaled.coef, one.coef, atol=1e-2 if l1_ratio else 1e-4, rtol=1e-3)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.3])
def test_equal_columns_share_their_weight(l1_ratio: float) -> None:
    problem = make(72, "hinge", rows=40, columns=6, outputs=2)
    apart = _programme(problem, l1_ratio).solve(0.02, limits=Limits(1e-9))
    thrice = problem | {"dictionary": problem["dictionary"].repeat(1, 3)}
    found = _programme(thrice, l1_ratio).solve(0.02, limits=Limits(1e-9))
    assert found.converged
    assert found.primal < apart.primal
    assert found.primal == pytest.approx(reference_optimum(thrice, 0.02, True, l1_ratio), abs=1e-7)
    for copy in found.coef.split(len(apart.coef)):
        torch.testing.assert_close(copy, found.coef[: len(copy)])


@pytest.mark.parametrize("l1_ratio", [0.0, 0.3])
@pytest.mark.parametrize("most", [0, 1, 7, 40])
def test_stopped_solves_are_no_worse_than_the_constant(most: int, l1_ratio: float) -> None:
    problem = make(73, "hinge", rows=60, columns=20)
    programme = _programme(problem, l1_ratio)
    optimum = reference_optimum(problem, 0.01, True, l1_ratio)
    far = dataclasses.replace(programme.solve(0.01).point, coef=1e3 * torch.randn(20, 3).double())
    for start in (None, far):
        found = programme.solve(0.01, start, Limits(1e-8, max_iterations=most))
        assert found.iterations <= most + 2  # outputs iterate together
        assert found.dual - 1e-8 <= optimum <= found.primal + 1e-8
        assert found.primal <= (1 + 1e-12) * programme.scale
        late = programme.solve(0.01, start, Limits(1e-8, max_seconds=1e-9))
        assert late.primal <= (1 + 1e-12) * programme.scale


def test_near_starts_save_iterations() -> None:
    problem = make(74, "hinge", rows=200, columns=30, counts=4)
    programme = _programme(problem, 0.0)
    cold = programme.solve(0.011)
    again = programme.solve(0.011, cold.point)
    assert again.iterations == 0
    warm = programme.solve(0.01, cold.point)
    assert warm.converged
    assert warm.iterations < programme.solve(0.01).iterations
    without = programme.solve(0.01, dataclasses.replace(cold.point, dual_point=None))
    assert without.converged


def test_objective_is_continuous_in_l1_ratio() -> None:
    problem = make(75, "hinge", rows=40, columns=12)
    optima = {a: _programme(problem, a).solve(0.02, limits=Limits(1e-8)).primal for a in RATIOS}
    assert optima[1e-6] == pytest.approx(optima[0.0], abs=1e-5)
    assert optima[0.999] == pytest.approx(optima[1.0], abs=1e-2)


@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_large_programmes_get_a_rough_start(l1_ratio: float, fit_intercept: bool) -> None:
    problem = make(76, "hinge", rows=150, columns=40, weighted=True, counts=4)
    programme = _programme(problem, l1_ratio, fit_intercept)
    optimum = reference_optimum(problem, 0.01, fit_intercept, l1_ratio)
    found = programme.solve(0.01, limits=Limits(1e-8), algorithm=ColumnGeneration(large=0))
    assert found.converged
    assert found.primal == pytest.approx(optimum, abs=1e-7)
    for most in (0, 5, 30):
        stopped = programme.solve(0.01, limits=Limits(max_iterations=most), algorithm=ColumnGeneration(large=0))
        assert stopped.dual <= optimum <= stopped.primal <= (1 + 1e-12) * programme.scale


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shift", [50, 200])
def test_counts_far_from_zero_are_solved_to_the_end(shift: int, fit_intercept: bool, outputs: int) -> None:
    """Directions of float32 Grams miss feasibility there: products of values and slacks fall, and the gap does not."""
    generator = torch.Generator().manual_seed(77)
    spikes = (torch.rand(300, 60, generator=generator) < 0.4).double()
    labels = (spikes @ torch.randn(60, 3, generator=generator).double()).argmax(1)
    labels = labels if outputs > 1 else (labels == 0).long()
    programme = Programme(spikes + shift, labels, loss="hinge", fit_intercept=fit_intercept, num_outputs=outputs)
    for tolerance in (1e-3, 1e-6):
        found = programme.solve(0.1, limits=Limits(tolerance), algorithm=ColumnGeneration(large=0))
        assert found.converged
    exact = programme.solve(0.1, limits=Limits(1e-6), algorithm=ColumnGeneration())
    assert found.primal == pytest.approx(exact.primal, rel=1e-4)


def test_numbers_beyond_float32_are_multiplied_in_float64() -> None:
    matrix = torch.rand(1, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e25
    index = torch.arange(4)[None]
    columns, scale = Columns(index, torch.ones_like(index).bool(), matrix), torch.ones(1, 50, dtype=torch.float64)
    torch.testing.assert_close(weighted_gram(columns, scale, torch.inf), matrix.mT @ matrix)


def test_a_solve_within_autocast_is_the_same() -> None:
    """Products of float32 numbers would be those of bfloat16, as in a fit of mixed precision."""
    problem = make(81, "hinge", rows=400, columns=90, counts=4)
    programme = _programme(problem, 1.0)
    alone = programme.solve(1e-3, algorithm=ColumnGeneration(large=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = programme.solve(1e-3, algorithm=ColumnGeneration(large=0))
    assert torch.equal(within.coef, alone.coef)


def test_a_rough_start_without_any_column_in_use() -> None:
    """Without an intercept nothing is left to move where the penalty is nearly the largest."""
    generator = torch.Generator().manual_seed(80)
    spikes = (torch.rand(600, 80, generator=generator) < 0.02).double()
    labels = torch.randint(0, 3, (600,), generator=generator)
    programme = Programme(spikes, labels, loss="hinge", fit_intercept=False, num_outputs=3)
    for share in (0.5, 0.9, 0.99):
        found = programme.solve(share * programme.largest_rho(), algorithm=ColumnGeneration(large=0))
        assert found.converged


def test_where_most_columns_are_in_use_all_are_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(78, "hinge", rows=400, columns=90, counts=4)
    programme = _programme(problem, 1.0)
    few = programme.solve(1e-4, limits=Limits(1e-7), algorithm=ColumnGeneration(columns=8))
    monkeypatch.setattr(hinge, "add_columns", None)
    found = programme.solve(1e-4, limits=Limits(1e-7), algorithm=ColumnGeneration(large=0, columns=8))
    assert few.converged
    assert found.converged
    assert found.primal == pytest.approx(few.primal, rel=1e-6)


@pytest.mark.parametrize("double", [0.0, 1e-4, torch.inf])
@pytest.mark.parametrize("size", [(60, 7), (700, 90)])
def test_weighted_grams_are_as_exact_as_their_heaviest_rows(size: tuple[int, int], double: float) -> None:
    generator = torch.Generator().manual_seed(79)
    matrix = torch.randint(0, 5, size, generator=generator).double()[None]
    index = torch.arange(size[1])[None]
    weight = 10 ** (12 * torch.rand(1, size[0], generator=generator).double() ** 4 - 6)
    found = weighted_gram(Columns(index, torch.ones_like(index).bool(), matrix), 1 / weight, double)
    exact = (matrix[0].T * weight) @ matrix[0]
    light = torch.where(weight > double * weight.max(), 0.0, weight) if double else torch.zeros_like(weight)
    error = 1e-12 * exact.abs().max() + 5e-6 * ((matrix[0].T * light) @ matrix[0]).abs()
    assert bool(((found[0] - exact).abs() <= error).all())
    assert torch.equal(found, found.mT)
