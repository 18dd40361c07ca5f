"""``solve`` against CVXPY, its optimality conditions, its invariances, its answers to bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programmes import LOSSES, MARGINS, dual_is_feasible, make, reference_optimum, residual_certificate_inputs, scale_of
from torch import Tensor

from lightning_cvxsnn.convex import certificate, mean_loss, path, rho_max, solve
from lightning_cvxsnn.convex.matrix import Entries, Matrix

PROGRAMMES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "loss": st.sampled_from(LOSSES),
        "rows": st.integers(4, 30),
        "columns": st.integers(1, 30),
        "outputs": st.integers(1, 4),
        "weighted": st.booleans(),
        "counts": st.sampled_from([1, 4]),
    }
)


def _fraction(problem: dict[str, Any], share: float, fit_intercept: bool) -> float:
    return share * rho_max(**problem, fit_intercept=fit_intercept) + 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("shape", [(30, 7), (12, 25)])
def test_agrees_with_cvxpy(
    loss: str, fit_intercept: bool, weighted: bool, outputs: int, shape: tuple[int, int]
) -> None:
    problem = make(1, loss, rows=shape[0], columns=shape[1], outputs=outputs, weighted=weighted)
    scale = scale_of(problem)
    for share in (0.5, 0.03):
        rho = _fraction(problem, share, fit_intercept)
        solution = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-8)
        optimum = reference_optimum(problem, rho, fit_intercept)
        assert solution.converged
        assert solution.primal == pytest.approx(optimum, abs=1e-7 * scale)
        assert solution.dual == pytest.approx(optimum, abs=1e-7 * scale)
        assert -1e-9 * scale <= solution.gap <= 1e-7 * scale
        assert dual_is_feasible(problem, solution.dual_point, rho, fit_intercept)


@pytest.mark.parametrize("kind", ["smoothed", "soft", "one class impossible", "the same everywhere"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_probabilities_as_targets_agree_with_cvxpy(kind: str, fit_intercept: bool, weighted: bool) -> None:
    problem = make(2, "cross_entropy", rows=30, columns=12, outputs=4, weighted=weighted)
    soft = torch.rand(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind == "smoothed":
        soft = 0.9 * torch.nn.functional.one_hot(problem["targets"], 4).double() + 0.1 / 4
    elif kind == "one class impossible":
        soft[:, 2] = 0
    elif kind == "the same everywhere":
        soft[:] = soft[0]
    problem["targets"] = soft / soft.sum(1, keepdim=True)
    for rho in (0.03, 0.003):
        solution = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-8)
        optimum = reference_optimum(problem, rho, fit_intercept)
        assert solution.converged
        assert solution.primal == pytest.approx(optimum, abs=1e-7)
        assert solution.dual == pytest.approx(optimum, abs=1e-7)
        assert dual_is_feasible(problem, solution.dual_point, rho, fit_intercept)


def test_probabilities_of_one_class_each_are_labels() -> None:
    problem = make(3, "cross_entropy", rows=30, columns=12, outputs=3)
    hard = solve(**problem, rho=0.01, fit_intercept=True)
    problem["targets"] = torch.nn.functional.one_hot(problem["targets"], 3).float()
    soft = solve(**problem, rho=0.01, fit_intercept=True)
    assert torch.equal(soft.coef, hard.coef)
    assert (soft.primal, soft.dual) == (hard.primal, hard.dual)


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([[0.5, 0.6]]), torch.tensor([[1.5, -0.5]]), torch.tensor([[1.0]]), torch.tensor([[1.0, 1.0]])],
)
def test_targets_that_are_no_probabilities(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expects labels \[n\], or probabilities \[n, C\]"):
        solve(torch.eye(1), targets, loss="cross_entropy", rho=0.1, fit_intercept=True)


@settings(max_examples=60, deadline=None)
@given(PROGRAMMES, st.sampled_from([0.9, 0.3, 0.1, 0.01, 1e-3]), st.booleans())
def test_certified_whatever_the_programme(settings_: dict[str, Any], share: float, fit_intercept: bool) -> None:
    problem = make(**settings_)
    scale = scale_of(problem)
    rho = _fraction(problem, share, fit_intercept)
    solution = solve(**problem, rho=rho, fit_intercept=fit_intercept)
    assert solution.converged, solution
    assert solution.gap >= -1e-9 * scale
    assert dual_is_feasible(problem, solution.dual_point, rho, fit_intercept)
    inputs = residual_certificate_inputs(problem, solution)
    proof = certificate(**inputs, rho=rho, fit_intercept=fit_intercept)
    assert proof.primal == solution.primal
    assert proof.dual == pytest.approx(solution.dual, abs=1e-12 * scale)
    weight = problem.get("sample_weight")
    outputs = problem["dictionary"] @ solution.coef + solution.intercept
    data = mean_loss(outputs, problem["targets"], loss=problem["loss"], sample_weight=weight)
    assert solution.primal == pytest.approx(data + rho * float(solution.coef.abs().sum()), abs=1e-12 * scale)


@settings(max_examples=30, deadline=None)
@given(PROGRAMMES, st.sampled_from([0.5, 0.05]), st.booleans())
def test_optimality_conditions(settings_: dict[str, Any], share: float, fit_intercept: bool) -> None:
    problem = make(**settings_)
    rho = _fraction(problem, share, fit_intercept)
    solution = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-10)
    correlation = problem["dictionary"].double().T @ solution.dual_point
    complementarity = rho * solution.coef.abs() - correlation * solution.coef
    # the gap is a sum of non-negative parts, this is one of them
    assert float(complementarity.min()) >= -1e-12
    assert float(complementarity.sum()) <= solution.gap + 1e-9 * scale_of(problem)


@settings(max_examples=40, deadline=None)
@given(PROGRAMMES, st.sampled_from([0.5, 0.05]), st.booleans(), st.booleans())
def test_agrees_with_cvxpy_whatever_the_programme(
    settings_: dict[str, Any], share: float, fit_intercept: bool, absent: bool
) -> None:
    problem = make(**settings_)
    if absent and problem["loss"] != "squared":
        problem["targets"] = problem["targets"].clamp(max=max(problem["num_outputs"], 2) - 2)
    rho, scale = _fraction(problem, share, fit_intercept), scale_of(problem)
    solution = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-8)
    assert solution.converged
    assert solution.primal == pytest.approx(reference_optimum(problem, rho, fit_intercept), abs=1e-6 * scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_invariances(loss: str, fit_intercept: bool) -> None:
    _assert_invariant(make(3, loss, weighted=True), fit_intercept)


@settings(max_examples=25, deadline=None)
@given(PROGRAMMES, st.booleans())
def test_invariances_whatever_the_programme(settings_: dict[str, Any], fit_intercept: bool) -> None:
    problem = make(**settings_)
    problem.setdefault("sample_weight", torch.ones(settings_["rows"]))
    _assert_invariant(problem, fit_intercept)


def _assert_invariant(problem: dict[str, Any], fit_intercept: bool) -> None:
    rho = _fraction(problem, 0.1, fit_intercept)
    optimum = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-9).primal
    matrix, targets, weight = problem["dictionary"], problem["targets"], problem["sample_weight"]
    n, p = matrix.shape
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(p, generator=generator)
    changed = {
        "rows": {"dictionary": matrix[rows], "targets": targets[rows], "sample_weight": weight[rows]},
        "columns": {"dictionary": matrix[:, columns]},
        "duplicate": {"dictionary": torch.cat([matrix, matrix[:, :1]], 1)},
        "zero": {"dictionary": torch.cat([matrix[:, :0], torch.zeros(n, 1), matrix], 1)},
        "doubled": {
            "dictionary": matrix.repeat(2, 1),
            "targets": torch.cat([targets, targets]),
            "sample_weight": weight.repeat(2),
        },
    }
    for name, change in changed.items():
        other = solve(**(problem | change), rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-9).primal
        assert other == pytest.approx(optimum, abs=1e-8 * scale_of(problem)), name


def test_squared_scales() -> None:
    problem = make(4, "squared")
    for c in (0.01, 7.0, 1e4):
        one = solve(**problem, rho=0.05, fit_intercept=True, gap_tolerance=1e-10)
        scaled = problem | {"targets": c * problem["targets"]}
        other = solve(**scaled, rho=0.05 * c, fit_intercept=True, gap_tolerance=1e-10)
        assert other.primal == pytest.approx(c * c * one.primal, rel=1e-9)
        torch.testing.assert_close(other.coef, c * one.coef, rtol=1e-4, atol=1e-6 * c)


@settings(max_examples=25, deadline=None)
@given(PROGRAMMES, st.sampled_from([1e-3, 0.3, 50.0]), st.booleans())
def test_squared_scales_whatever_the_programme(settings_: dict[str, Any], c: float, fit_intercept: bool) -> None:
    problem = make(**(settings_ | {"loss": "squared"}))
    rho = _fraction(problem, 0.1, fit_intercept)
    one = solve(**problem, rho=rho, fit_intercept=fit_intercept, gap_tolerance=1e-9)
    scaled = problem | {"targets": c * problem["targets"]}
    other = solve(**scaled, rho=c * rho, fit_intercept=fit_intercept, gap_tolerance=1e-9)
    assert other.primal == pytest.approx(c * c * one.primal, abs=1e-8 * c * c * scale_of(problem))


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_weight_drops_the_row_and_keeps_n(loss: str) -> None:
    problem = make(5, loss)
    n = problem["dictionary"].shape[0]
    weight = torch.ones(n)
    weight[5:9] = 0
    keep = weight > 0
    rho = _fraction(problem, 0.1, True)
    one = solve(**problem, sample_weight=weight, rho=rho, fit_intercept=True, gap_tolerance=1e-9)
    fewer = problem | {"dictionary": problem["dictionary"][keep], "targets": problem["targets"][keep]}
    share = int(keep.sum()) / n
    other = solve(**fewer, rho=rho / share, fit_intercept=True, gap_tolerance=1e-9)
    assert one.primal == pytest.approx(other.primal * share, abs=1e-8 * scale_of(problem))
    assert bool((one.dual_point[~keep] == 0).all())
    nothing = solve(**problem, sample_weight=torch.zeros(n), rho=rho, fit_intercept=True)
    assert (nothing.primal, nothing.converged) == (0.0, True)
    assert not nothing.coef.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_redundant_columns_get_no_weight(loss: str) -> None:
    a, b = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0]), torch.tensor([0.0, 0, 1, 0, 1, 1, 0, 0])
    matrix = torch.stack([torch.zeros(8), a, a, torch.ones(8), b, 1 - a, b], 1)
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1])
    targets = labels[:, None].double() if loss == "squared" else labels
    for fit_intercept, kept in ((True, [1, 4]), (False, [1, 3, 4, 5])):
        solution = solve(matrix, targets, loss=loss, num_outputs=1, rho=1e-3, fit_intercept=fit_intercept)
        used = solution.coef.any(1).nonzero()[:, 0].tolist()
        assert set(used) <= set(kept), (fit_intercept, used)
        assert solution.converged


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.01])
def test_spike_patterns(loss: str, beta: float) -> None:
    """Membranes of random units at the end of a bit string: half of the columns repeat, the rest nearly do."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (300, 10), generator=generator)
    weights = torch.randn(2, 200, generator=generator)
    v = torch.zeros(300, 200)
    for t in range(10):
        h = 0.99 * v + weights[bits[:, t]]
        v = h - (h >= 1).float()
    labels = bits[:, 0] ^ bits[:, -1]
    targets = 2.0 * labels[:, None] - 1 if loss == "squared" else labels
    solution = solve(h >= 0, targets, loss=loss, num_outputs=1, rho=beta / 200**0.5, fit_intercept=True)
    assert solution.converged
    assert int(solution.coef.any(1).sum()) < torch.unique(h >= 0, dim=1).shape[1] < 200


def test_support_is_sparse() -> None:
    for loss in LOSSES:
        problem = make(6, loss, rows=60, columns=40)
        solution = solve(**problem, rho=_fraction(problem, 0.3, True), fit_intercept=True)
        assert 0 < int((solution.coef != 0).sum()) < 60, loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_rho_max(loss: str, fit_intercept: bool) -> None:
    problem = make(7, loss)
    largest = rho_max(**problem, fit_intercept=fit_intercept)
    above = solve(**problem, rho=largest * (1 + 1e-9), fit_intercept=fit_intercept)
    assert not above.coef.any()
    assert above.converged
    assert abs(above.gap) <= 1e-9 * scale_of(problem)
    huge = solve(**problem, rho=1e6, fit_intercept=fit_intercept)
    assert (huge.primal, huge.converged) == (pytest.approx(above.primal), True)
    if loss != "hinge":
        assert solve(**problem, rho=0.99 * largest, fit_intercept=fit_intercept, gap_tolerance=1e-9).coef.any()


@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", *MARGINS])
def test_class_absent(loss: str, outputs: int) -> None:
    problem = make(8, loss, outputs=max(outputs, 2))
    problem["num_outputs"] = outputs
    problem["targets"] = problem["targets"].clamp(max=max(outputs, 2) - 2)
    for fit_intercept in (True, False):
        rho = 0.02
        solution = solve(**problem, rho=rho, fit_intercept=fit_intercept)
        assert solution.converged
        assert bool(torch.isfinite(solution.intercept).all())
        if fit_intercept:
            assert not solution.coef[:, -1].any()
        else:
            assert solution.primal == pytest.approx(reference_optimum(problem, rho, False), abs=1e-5)
    absent = {"sample_weight": (problem["targets"] == 0).double()}  # one class carries all the weight
    alone = solve(**problem, **absent, rho=0.02, fit_intercept=True)
    assert alone.converged
    assert alone.primal <= 2e-6
    assert not alone.coef.any()


def test_separable_without_intercept_and_with() -> None:
    matrix, labels = torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])
    for fit_intercept in (True, False):
        solution = solve(matrix, labels, loss="cross_entropy", rho=1e-5, fit_intercept=fit_intercept)
        assert solution.converged
        assert bool(((matrix.double() @ solution.coef + solution.intercept).argmax(1) == labels).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_max_iterations_returns_a_certified_point(loss: str) -> None:
    problem = make(9, loss, rows=40, columns=20)
    rho = _fraction(problem, 0.01, True)
    optimum = solve(**problem, rho=rho, fit_intercept=True, gap_tolerance=1e-9)
    gaps = []
    for limit in (0, 1, 2, 4):
        solution = solve(**problem, rho=rho, fit_intercept=True, max_iterations=limit)
        assert solution.gap >= solution.primal - optimum.primal - 1e-9
        assert solution.dual <= optimum.primal + 1e-9
        assert dual_is_feasible(problem, solution.dual_point, rho, True)
        gaps.append(solution.gap)
        if limit < (1 if loss == "squared" else 2):
            assert not solution.converged
    assert gaps[-1] <= gaps[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", ["own", "cvxpy"])
def test_max_seconds_returns_a_certified_point(loss: str, solver: str) -> None:
    problem = make(9, loss, rows=40, columns=20)
    rho = _fraction(problem, 0.01, True)
    optimum = solve(**problem, rho=rho, fit_intercept=True, gap_tolerance=1e-9)
    stopped = solve(**problem, rho=rho, fit_intercept=True, max_seconds=0.0, solver=solver)
    assert not stopped.converged
    assert stopped.gap >= stopped.primal - optimum.primal - 1e-9
    assert stopped.dual <= optimum.primal + 1e-9
    assert dual_is_feasible(problem, stopped.dual_point, rho, True)
    again = solve(**problem, rho=rho, fit_intercept=True, init=optimum.point, max_seconds=0.0)
    assert again.primal <= optimum.primal + 1e-6 * scale_of(problem)  # the start is kept
    if solver == "own":
        free = solve(**problem, rho=rho, fit_intercept=True, max_seconds=3600.0)
        assert free.converged
        assert torch.equal(free.coef, solve(**problem, rho=rho, fit_intercept=True).coef)


@pytest.mark.parametrize("loss", LOSSES)
def test_init(loss: str) -> None:
    problem = make(10, loss, rows=60, columns=30)
    rho = _fraction(problem, 0.05, True)
    cold = solve(**problem, rho=rho, fit_intercept=True)
    warm = solve(**problem, rho=rho, fit_intercept=True, init=cold.point)
    assert warm.converged
    assert warm.iterations <= cold.iterations
    fewer = problem | {"dictionary": problem["dictionary"][:, :17]}
    before = solve(**fewer, rho=rho, fit_intercept=True)
    grown = solve(**problem, rho=rho, fit_intercept=True, init=before.point)
    assert grown.converged
    assert grown.primal == pytest.approx(cold.primal, abs=3e-6 * scale_of(problem))
    coef = before.coef.clone()
    assert torch.equal(coef, before.coef)
    with pytest.raises(ValueError, match="init has coef"):
        solve(**fewer, rho=rho, fit_intercept=True, init=cold.point)
    broken = dataclasses.replace(cold.point, coef=cold.coef * float("nan"))
    with pytest.raises(ValueError, match="init holds NaN"):
        solve(**problem, rho=rho, fit_intercept=True, init=broken)


@pytest.mark.parametrize("loss", LOSSES)
def test_deterministic_and_pure(loss: str) -> None:
    problem = make(11, loss, weighted=True)
    before = {k: v.clone() for k, v in problem.items() if isinstance(v, torch.Tensor)}
    state = torch.get_rng_state()
    first = solve(**problem, rho=0.01, fit_intercept=True)
    second = solve(**problem, rho=0.01, fit_intercept=True, init=None)
    for name in ("coef", "intercept", "dual_point"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.gap == second.gap
    assert torch.equal(state, torch.get_rng_state())
    for name, value in before.items():
        assert torch.equal(value, problem[name])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_deterministic_for_a_given_number_of_threads(loss: str, threads: int) -> None:
    problem = make(12, loss, rows=400, columns=300, outputs=3)
    rho, before = _fraction(problem, 0.05, True), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (solve(**problem, rho=rho, fit_intercept=True) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert first.converged
    for name in ("coef", "intercept", "dual_point"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_tensors_are_created_where_the_dictionary_is(loss: str, outputs: int) -> None:
    """Under a default device without data, whatever does not name its device cannot be computed with."""
    problem = make(13, loss, rows=40, columns=20, outputs=outputs, weighted=True)
    held_out = torch.arange(40) % 4 == 0
    rho = _fraction(problem, 0.05, True)
    expected = solve(**problem, rho=rho, fit_intercept=True)
    fractions = problem | {"dictionary": problem["dictionary"] / 3}
    packed = problem | {"dictionary": Matrix(Entries(problem["dictionary"].to(torch.uint8)))}
    with torch.device("meta"):
        assert torch.zeros(1).is_meta
        found = solve(**problem, rho=rho, fit_intercept=True)
        assert torch.equal(found.coef, expected.coef)
        assert solve(**problem, rho=1.1 * rho, fit_intercept=True, init=found.point).converged
        assert solve(**problem, rho=rho, fit_intercept=False).converged
        assert solve(**fractions, rho=rho, fit_intercept=True).converged
        proof = certificate(**residual_certificate_inputs(problem, found), rho=rho, fit_intercept=True)
        assert proof.primal == expected.primal
        assert path(**problem, fit_intercept=True, held_out=held_out, num_values=3).solution.converged
        assert solve(**packed, rho=rho, fit_intercept=True).converged


def test_dtypes_and_packed_dictionaries_give_one_answer() -> None:
    class Packed:
        def __init__(self, counts: torch.Tensor, scale: float) -> None:
            self.counts, self.scale = counts, scale

        def to_dense(self, dtype: torch.dtype) -> torch.Tensor:
            return self.counts.to(dtype) * self.scale

    problem = make(12, "cross_entropy")
    reference = solve(**problem, rho=0.01, fit_intercept=True)
    dense = problem.pop("dictionary")
    for other in (dense.bool(), dense.to(torch.uint8), dense.float(), Packed(dense.to(torch.uint8), 1.0)):
        assert torch.equal(solve(other, **problem, rho=0.01, fit_intercept=True).coef, reference.coef)
    assert reference.coef.dtype == reference.dual_point.dtype == torch.float64
    assert reference.device == "cpu"


def test_the_result_says_what_ran() -> None:
    names = {"hinge": "column-generation-interior-point"}
    for loss in LOSSES:
        problem = make(12, loss)
        solution = solve(**problem, rho=_fraction(problem, 0.1, True), fit_intercept=True)
        assert solution.algorithm == names.get(loss, "working-set-newton")
        assert solution.device == "cpu"
        assert solve(**problem, rho=1e6, fit_intercept=True).algorithm == "constant"


def test_num_outputs_by_default() -> None:
    matrix = torch.eye(4)
    two, three = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0])
    for loss, targets, expected in (
        ("hinge", two, 1),
        ("hinge", three, 3),
        ("squared_hinge", two, 1),
        ("squared_hinge", three, 3),
        ("cross_entropy", two, 2),
        ("cross_entropy", three, 3),
        ("squared", torch.zeros(4, 5), 5),
    ):
        solution = solve(matrix, targets, loss=loss, rho=0.1, fit_intercept=False)
        assert solution.coef.shape == (4, expected)
        assert solution.dual_point.shape == (4, expected)


_D, _Y = torch.eye(4), torch.tensor([0, 1, 2, 0])
_NAN = torch.tensor([1.0, 1.0, float("nan"), 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dictionary": _NAN.repeat(4, 1)}, "dictionary holds 4 NaN or infinite entries, the first at row 0, column 2"),
        ({"dictionary": _D / 0}, "dictionary holds"),
        ({"dictionary": torch.ones(4)}, r"expected two dimensions \[n, P\]"),
        ({"dictionary": torch.ones(0, 3), "targets": _Y[:0]}, "no rows"),
        ({"dictionary": torch.ones(4, 0)}, "no columns"),
        ({"dictionary": _D.to(torch.complex64)}, "complex"),
        ({"targets": _Y[:3]}, "targets has 3 rows and dictionary has 4"),
        ({"targets": _Y - 1}, "labels from -1 to 1; expected 0 to"),
        ({"targets": _Y, "num_outputs": 2}, "labels from 0 to 2; expected 0 to 1"),
        ({"targets": _Y, "num_outputs": 0}, "num_outputs is 0"),
        ({"targets": _Y.float()}, "expects integer class labels"),
        ({"targets": _Y[:, None]}, r"class labels of shape \[n\]"),
        ({"loss": "squared"}, "loss 'squared' expects floats"),
        ({"loss": "squared", "targets": _Y.float()}, r"targets\[:, None\]"),
        ({"loss": "squared", "targets": _NAN[:, None]}, "targets holds NaN"),
        ({"loss": "squared", "targets": torch.ones(4, 2), "num_outputs": 3}, "2 columns; expected num_outputs=3"),
        ({"loss": "mse"}, "loss is 'mse'; expected one of 'cross_entropy', 'hinge', 'squared', 'squared_hinge'"),
        ({"rho": 0.0}, "rho is 0.0; expected a positive finite number"),
        ({"rho": -1.0}, "rho is -1.0"),
        ({"rho": float("nan")}, "rho is nan"),
        ({"sample_weight": torch.ones(3)}, r"sample_weight has shape \(3,\); expected \(4,\)"),
        ({"sample_weight": -torch.ones(4)}, "negative entry"),
        ({"sample_weight": _NAN}, "sample_weight holds NaN"),
        ({"solver": "gurobi"}, "solver is 'gurobi'; expected one of 'own', 'cvxpy'"),
        ({"gap_tolerance": -1.0}, "gap_tolerance is -1.0"),
        ({"max_iterations": -1}, "max_iterations is -1"),
        ({"max_seconds": -1.0}, "max_seconds is -1.0"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments = {"dictionary": _D, "targets": _Y, "loss": "cross_entropy", "rho": 0.1, "fit_intercept": True} | change
    with pytest.raises(ValueError, match=message):
        solve(**arguments)


def test_not_a_dictionary() -> None:
    with pytest.raises(TypeError, match="dictionary is a list"):
        solve([[1.0]], _Y, loss="hinge", rho=0.1, fit_intercept=True)  # type: ignore[arg-type]
