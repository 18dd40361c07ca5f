"""The regularisation path and its choice of rho."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from programmes import LOSSES, make

from lightning_cvxsnn.convex import mean_loss, path, rho_max, solve


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_path_is_the_solves_it_claims(loss: str, fit_intercept: bool) -> None:
    problem = make(41, loss, rows=60, columns=12, weighted=True, counts=4)
    held_out = torch.arange(60) % 5 == 0
    result = path(**problem, fit_intercept=fit_intercept, held_out=held_out, num_values=8, ratio=1e-2)
    fitted = problem | {k: problem[k][~held_out] for k in ("dictionary", "targets", "sample_weight")}
    assert result.rhos[0] == pytest.approx(rho_max(**fitted, fit_intercept=fit_intercept))
    assert not result.solutions[0].coef.any()
    assert 1 <= len(result.rhos) == len(result.held_out_losses) == len(result.solutions) <= 8
    steps = [math.log(b / a) for a, b in pairwise(result.rhos)]
    assert steps == pytest.approx([math.log(1e-2) / 7] * len(steps))
    for rho, held_out_loss, solution in zip(result.rhos, result.held_out_losses, result.solutions, strict=True):
        assert solution.converged
        cold = solve(**fitted, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-4)
        assert solution.primal == pytest.approx(cold.primal, rel=3e-4)
        outputs = problem["dictionary"][held_out] @ solution.coef + solution.intercept
        weight = problem["sample_weight"][held_out]
        score = mean_loss(outputs, problem["targets"][held_out], loss=loss, sample_weight=weight)
        assert score == pytest.approx(held_out_loss)
    assert result.held_out_losses[result.best] == min(result.held_out_losses)
    assert result.rho == result.rhos[result.best]
    assert result.solution is result.solutions[result.best]


@pytest.mark.parametrize(("rows", "columns", "small"), [(400, 8, True), (40, 60, False)])
def test_stops_after_three_rises_or_a_large_one(rows: int, columns: int, small: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(0, 2, (rows, columns), generator=generator)
    targets = torch.randint(0, 2, (rows,), generator=generator)  # nothing to learn: every value overfits more
    result = path(matrix, targets, loss="cross_entropy", fit_intercept=True, held_out=torch.arange(rows) % 2 == 0)
    losses, best = result.held_out_losses, result.best
    assert len(losses) < 20
    assert losses[-1] > losses[-2]
    assert (sum(b > a for a, b in pairwise(losses[best:])) == 3) == small
    large = [k for k in range(best, len(losses)) if losses[k] - losses[best] > losses[0] / 50]
    assert large == ([] if small else [len(losses) - 1])


@pytest.mark.parametrize("loss", LOSSES)
def test_max_seconds_ends_the_path(loss: str) -> None:
    problem = make(41, loss, rows=60, columns=12)
    held_out = torch.arange(60) % 5 == 0
    stopped = path(**problem, fit_intercept=True, held_out=held_out, max_seconds=0.0)
    assert len(stopped.rhos) == 1
    assert stopped.solution.gap >= -1e-12
    free = path(**problem, fit_intercept=True, held_out=held_out, max_seconds=3600.0)
    assert free.rhos == path(**problem, fit_intercept=True, held_out=held_out).rhos


def test_nothing_to_fit_is_one_constant() -> None:
    targets = torch.tensor([0, 1, 1, 0])
    held_out = torch.tensor([False, False, False, True])
    silent = path(torch.zeros(4, 3), targets, loss="cross_entropy", fit_intercept=True, held_out=held_out)
    assert (silent.rhos, silent.best) == ([1.0], 0)
    assert silent.solution.converged


@pytest.mark.parametrize(
    ("copied", "edge"), [(1.0, "smallest"), (0.8, None), (0.0, "largest")], ids=["easy", "noisy", "hopeless"]
)
def test_the_end_of_the_sequence_is_told(copied: float, edge: str | None) -> None:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randint(0, 2, (80, 12), generator=generator)
    noise = torch.randint(0, 2, (80,), generator=generator)
    targets = torch.where(torch.rand(80, generator=generator) < copied, matrix[:, 0], noise)
    result = path(matrix, targets, loss="cross_entropy", fit_intercept=True, held_out=torch.arange(80) % 2 == 0)
    assert result.edge == edge
    assert (result.best in (0, len(result.rhos) - 1)) == (edge is not None)


@pytest.mark.parametrize("least_gain", [0.02, 0.15, 0.5])
@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared_hinge"])
def test_it_ends_where_little_more_is_gained(loss: str, least_gain: float) -> None:
    generator = torch.Generator().manual_seed(6)
    matrix = torch.randint(0, 2, (300, 20), generator=generator)
    targets = (matrix[:, :8].sum(1) > 4).long()
    options = {"loss": loss, "fit_intercept": True, "held_out": torch.arange(300) % 2 == 0, "num_values": 25}
    whole, short = path(matrix, targets, **options), path(matrix, targets, **options, least_gain=least_gain)
    first = whole.held_out_losses[0]
    gained = [(first - value) / first for value in whole.held_out_losses]
    steps = enumerate(pairwise(gained), 2)
    expected = next(n for n, (before, now) in steps if before > 0.1 and now - before < least_gain * now)
    assert expected < len(whole.rhos)
    assert short.rhos == whole.rhos[:expected]
    assert (short.settled, short.edge) == (True, None)


def test_it_ends_where_it_has_taken_more_work_than_it_may() -> None:
    problem = make(41, "cross_entropy", rows=100, columns=12)
    options = {**problem, "fit_intercept": True, "held_out": torch.arange(100) % 4 == 0}
    whole = path(**options)
    spent = [solution.work for solution in whole.solutions]
    assert whole.work == sum(spent)
    assert len(spent) > 3
    short = path(**options, max_work=sum(spent[:3]) - 1)
    assert short.rhos == whole.rhos[:3]
    assert short.settled is True
    assert path(**options, max_work=whole.work).rhos == whole.rhos


def test_a_slow_beginning_is_not_its_end() -> None:
    """Until a tenth of the loss is gained, gains may yet grow."""
    problem = make(41, "cross_entropy", rows=200, columns=12)
    problem["targets"] = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(8))
    options = {**problem, "fit_intercept": True, "held_out": torch.arange(200) % 4 == 0}
    whole, short = path(**options), path(**options, least_gain=0.9)
    assert short.rhos == whole.rhos
    assert short.settled is False


@pytest.mark.parametrize("loss", LOSSES)
def test_given_values(loss: str) -> None:
    problem = make(41, loss, rows=60, columns=12, weighted=True, counts=4)
    options = {**problem, "fit_intercept": True, "held_out": torch.arange(60) % 5 == 0}
    whole = path(**options, num_values=5)
    again = path(**options, rhos=whole.rhos)
    assert again.rhos == whole.rhos
    assert again.held_out_losses == whole.held_out_losses
    assert torch.equal(again.solution.coef, whole.solution.coef)
    single = path(**options, rhos=[0.5 * whole.rhos[0]])
    assert (single.rhos, single.best) == ([0.5 * whole.rhos[0]], 0)


def test_classes_are_counted_over_all_rows() -> None:
    matrix, targets = torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 2])
    held_out = torch.arange(6) == 5
    for fit_intercept in (True, False):
        result = path(matrix, targets, loss="cross_entropy", fit_intercept=fit_intercept, held_out=held_out)
        assert result.solution.coef.shape == (6, 3)
        assert all(math.isfinite(v) for v in result.held_out_losses)


def test_single_value() -> None:
    problem = make(42, "squared")
    result = path(**problem, fit_intercept=True, held_out=torch.arange(24) < 5, num_values=1)
    assert len(result.rhos) == 1
    assert not result.solution.coef.any()


def test_bad_input() -> None:
    problem = make(43, "squared")
    good = {**problem, "fit_intercept": True, "held_out": torch.arange(24) < 5}
    for change, message in (
        ({"held_out": torch.zeros(24)}, "held_out has dtype torch.float32"),
        ({"held_out": torch.ones(3, dtype=torch.bool)}, r"expected torch.bool \(24,\)"),
        ({"held_out": torch.ones(24, dtype=torch.bool)}, "held_out marks 24 of 24 rows"),
        ({"held_out": torch.zeros(24, dtype=torch.bool)}, "held_out marks 0 of 24 rows"),
        ({"num_values": 0}, "num_values is 0"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"least_gain": -0.1}, "least_gain is -0.1"),
        ({"least_gain": 1.0}, "least_gain is 1.0"),
        ({"max_work": -1}, "max_work is -1"),
        ({"solver": "x"}, "solver is 'x'"),
        ({"rhos": []}, "expected at least one value"),
        ({"rhos": [0.1, 0.2]}, "each smaller than the one before"),
        ({"rhos": [0.1, 0.0]}, "rho is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            path(**(good | change))
