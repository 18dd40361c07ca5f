"""Programmes that people bring: soft, silent, far from zero, badly scaled, badly started, badly typed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from programmes import LOSSES, make, scale_of

from lightning_cvxsnn.convex import Limits, Point, Programme, certificate, mean_loss, path, rho_max, solve


def test_soft_targets_with_many_outputs() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = (torch.rand(51, 87, generator=g) < 0.4).to(torch.uint8)
    soft = torch.softmax(3 * torch.randn(51, 50, generator=g, dtype=torch.float64), 1)
    found = solve(matrix, soft, loss="cross_entropy", rho=0.0004, fit_intercept=True)
    assert found.converged
    assert found.primal == pytest.approx(2.1633, abs=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared_hinge"])
def test_silent_dictionary_with_an_absent_class(loss: Any) -> None:
    labels = torch.tensor([0, 1, 0, 1])
    found = solve(torch.zeros(4, 3), labels, loss=loss, rho=0.01, fit_intercept=True, num_outputs=3)
    assert found.converged
    assert not found.coef.any()


def test_an_infinite_gap_is_not_converged() -> None:
    found = solve(torch.eye(4), 1e160 * torch.arange(4)[:, None].double(), loss="squared",
                  rho=0.01, fit_intercept=True)  # fmt: skip
    assert not found.converged


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["far", "scaled"])
def test_float_columns_far_from_zero_and_badly_scaled(loss: Any, kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    near = torch.randn(200, 20, generator=g).double()
    matrix = near + 1e5 if kind == "far" else near * 10.0 ** torch.linspace(-8, 8, 20).double()
    y = torch.randint(0, 2, (200,), generator=g)
    targets = y[:, None].double() + 1e5 * (kind == "far") if loss == "squared" else y
    rho = 1e-3 if kind == "far" else 0.01 * rho_max(matrix, targets, loss=loss, fit_intercept=True)
    found = solve(matrix, targets, loss=loss, rho=rho, fit_intercept=True)
    assert found.converged
    if kind == "far":
        centred = targets - 1e5 if loss == "squared" else targets
        other = solve(matrix - 1e5, centred, loss=loss, rho=rho, fit_intercept=True)
        assert found.primal == pytest.approx(other.primal, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_bad_start_is_never_worse_than_none(loss: Any) -> None:
    problem = make(5, loss, rows=40, columns=20)
    programme = Programme(**problem, fit_intercept=True)
    best = programme.solve(0.01)
    for start in (
        Point(-100 * best.coef, best.intercept),
        Point(1e300 * torch.ones_like(best.coef), best.intercept),
        Point(best.coef, best.intercept + 1e12),
        Point(torch.zeros_like(best.coef), best.intercept - 1e9, 1e200 * torch.ones_like(best.dual_point)),
    ):
        found = programme.solve(0.01, start)
        assert found.converged
        assert found.primal == pytest.approx(best.primal, abs=2e-6 * scale_of(problem))
        for limit in (0, 1):
            stopped = programme.solve(0.01, start, Limits(max_iterations=limit))
            assert stopped.primal <= programme.scale * (1 + 1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": torch.tensor([0, 10**6, 1, 0])}, ValueError, "1000000 among 4 labels"),
        ({"targets": [0, 1, 1, 0]}, TypeError, "targets is a list"),
        ({"targets": np.zeros(4)}, TypeError, "targets is a ndarray"),
        ({"targets": None}, TypeError, "targets is a NoneType"),
        ({"dictionary": np.eye(4)}, TypeError, "dictionary is a ndarray"),
        ({"dictionary": torch.eye(4).double() * 1e200}, ValueError, "squares overflow"),
        ({"rho": "small"}, TypeError, "rho is 'small'; expected a number"),
        ({"rho": None}, TypeError, "rho is None"),
        ({"rho": 1j}, TypeError, "rho is 1j"),
        ({"num_outputs": 2.0}, TypeError, "num_outputs is 2.0; expected an integer"),
        ({"num_outputs": torch.tensor(2.5)}, TypeError, "num_outputs is a Tensor; expected an integer"),
        ({"sample_weight": [1.0] * 4}, TypeError, "sample_weight is a list"),
        ({"fit_intercept": "yes"}, TypeError, "fit_intercept is a str"),
        ({"loss": ["hinge"]}, ValueError, "loss is"),
        ({"solver": ["own"]}, ValueError, "solver is"),
        ({"init": (1, 2)}, TypeError, "init is a tuple"),
        ({"gap_tolerance": "1e-6"}, TypeError, "gap_tolerance is '1e-6'"),
        ({"max_iterations": 1.5}, TypeError, "max_iterations is 1.5"),
    ],
)
def test_wrong_types_and_sizes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "dictionary": torch.eye(4), "targets": torch.tensor([0, 1, 1, 0]), "loss": "cross_entropy", "rho": 0.1,
        "fit_intercept": True,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        solve(**(arguments | change))


def test_wrong_types_elsewhere() -> None:
    y: Any = torch.tensor([0, 1, 1, 0])
    options: Any = {"loss": "cross_entropy", "fit_intercept": True}
    with pytest.raises(TypeError, match="coef is a list"):
        certificate(torch.eye(4), y, [[1.0]], rho=0.1, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="outputs is a list"):
        mean_loss([[1.0]], y, loss="cross_entropy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="held_out is a str"):
        path(torch.eye(4), y, held_out="last", **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [0.0, -3.0, 1e170])
def test_rows_without_weight_may_hold_anything(loss: Any, masked: float) -> None:
    g = torch.Generator().manual_seed(0)
    near = torch.randn(200, 20, generator=g).double()
    used = torch.arange(200) < 195
    labels = (near[:, 0] > 0).long()
    values = near[:, :3].sum(1, keepdim=True) + 1e5
    targets = torch.where(used[:, None], values, masked) if loss == "squared" else labels
    matrix = torch.where(used[:, None], near + 1e6, min(masked, 0.0))
    asked = {"loss": loss, "rho": 0.01, "fit_intercept": True}
    found = solve(matrix, targets, sample_weight=used.double(), **asked)
    assert found.converged
    whole = values - 1e5 if loss == "squared" else labels
    assert found.primal == pytest.approx(solve(near, whole, sample_weight=used.double(), **asked).primal, rel=1e-5)


def test_a_large_constant_target_does_not_drown_the_others() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(200, 20, generator=g).double()
    targets = torch.cat([matrix[:, :3].sum(1, keepdim=True), torch.full((200, 1), 1e5).double()], 1)
    found = solve(matrix, targets, loss="squared", rho=0.01, fit_intercept=True)
    alone = solve(matrix, targets[:, :1], loss="squared", rho=0.01, fit_intercept=True)
    assert found.converged
    assert found.primal == pytest.approx(alone.primal, rel=1e-5)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_large_integers_are_centred_in_any_dtype(l1_ratio: float) -> None:
    g = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 50, (9000, 1000), generator=g)
    targets = whole[:, :3].double().sum(1, keepdim=True)
    far = whole + 10**9 * torch.arange(1000)
    asked: dict[str, Any] = {"loss": "squared", "rho": 0.01, "fit_intercept": True, "l1_ratio": l1_ratio}
    found = solve(far, targets / targets.std(), **asked)  # too large to be converted once and for all
    assert found.converged
    assert found.primal == pytest.approx(solve(whole, targets / targets.std(), **asked).primal, rel=1e-5)


@pytest.mark.parametrize(("size", "rho"), [(0.01, 1.0), (1.0, 10.0), (0.001, 0.001)])
def test_hinge_with_ridge_at_any_penalty(size: float, rho: float) -> None:
    g = torch.Generator().manual_seed(0)
    matrix, labels = size * torch.randn(200, 30, generator=g), torch.randint(0, 3, (200,), generator=g)
    assert solve(matrix, labels, loss="hinge", rho=rho, l1_ratio=0.0, fit_intercept=True).converged


def test_hinge_with_ridge_does_not_mind_where_counts_are() -> None:
    g = torch.Generator().manual_seed(0)
    counts, labels = torch.randint(0, 6, (60, 40), generator=g), torch.randint(0, 2, (60,), generator=g)
    asked: dict[str, Any] = {"loss": "hinge", "rho": 1.0, "l1_ratio": 0.0, "fit_intercept": True}
    near, far = (solve((counts + mean).to(torch.uint16), labels, **asked) for mean in (0, 300))
    assert far.converged
    assert far.primal == pytest.approx(near.primal, rel=1e-5)
    assert far.iterations <= near.iterations + 5


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_start_of_trained_parameters_leaves_no_graph(loss: Any, l1_ratio: float) -> None:
    problem = make(5, loss, rows=40, columns=20, outputs=3)
    readout = torch.nn.Linear(20, 3)
    found = solve(
        **problem, rho=0.01, l1_ratio=l1_ratio, fit_intercept=True, init=Point(readout.weight.T, readout.bias)
    )
    assert found.converged
    assert not found.coef.requires_grad
    assert not found.dual_point.requires_grad


def test_time_is_looked_at_between_the_outputs_of_an_iteration() -> None:
    g = torch.Generator().manual_seed(0)
    matrix, labels = torch.randn(1500, 800, generator=g), torch.randint(0, 10, (1500,), generator=g)
    asked: dict[str, Any] = {"loss": "hinge", "rho": 1e-3, "l1_ratio": 0.0, "fit_intercept": True}
    all_of_them = solve(matrix, labels, **asked, max_iterations=10).seconds
    assert solve(matrix, labels, **asked, max_seconds=1e-3).seconds < 0.6 * all_of_them


def test_nothing_is_left_of_a_programme() -> None:
    programme = Programme(torch.eye(3), torch.arange(3), loss="hinge", fit_intercept=True)
    with pytest.raises(ValueError, match="No row is left"):
        programme.subset(torch.zeros(3, dtype=torch.bool))
