"""Programmes at size: models of all entries at once, models by faces, and what they share between solves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from programmes import RATIOS, counts, make, reference_optimum, scale_of

from lightning_cvxsnn.convex import Limits, Programme
from lightning_cvxsnn.convex.algorithms import FaceNewton, model
from lightning_cvxsnn.convex.penalties import ElasticNet

SMOOTH = ["cross_entropy", "squared", "squared_hinge"]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(SMOOTH), st.sampled_from([1, 3]), st.booleans(), st.booleans(),
    st.sampled_from(RATIOS[1:]), st.sampled_from([0.3, 0.01, 1e-3]), st.booleans(),
)  # fmt: skip
@example(87, "cross_entropy", 1, False, False, 1.0, 1e-3, False)  # few rows hold nearly all curvature, not all of it
def test_equal_to_cvxpy(
    seed: int, loss: str, outputs: int, weighted: bool, fit_intercept: bool, ratio: float, rho: float, faces: bool
) -> None:
    problem = make(seed, loss, rows=18, columns=9, outputs=outputs, weighted=weighted)
    programme = Programme(**problem, fit_intercept=fit_intercept, penalty=ElasticNet(l1_ratio=ratio))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_DENSE", 0 if faces else 1500)
        found = programme.solve(rho, limits=Limits(5e-8), algorithm=FaceNewton())
    scale = scale_of(problem)
    assert found.converged
    assert found.primal == pytest.approx(reference_optimum(problem, rho, fit_intercept, ratio), abs=1e-7 * scale)


@pytest.mark.parametrize("dense", [0, 1500])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared"])
def test_float32_products_end_at_the_same_optimum(loss: Any, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = counts()
    if loss == "squared":
        problem["targets"] = torch.nn.functional.one_hot(problem["targets"]).double()
    programme = Programme(**problem, loss=loss, fit_intercept=True)
    rho = 0.05 * programme.largest_rho()
    exact = programme.solve(rho, limits=Limits(1e-7))  # below the size for faces
    assert exact.algorithm == "working-set-newton"
    monkeypatch.setattr(model, "_DENSE", dense)
    found = programme.solve(rho, limits=Limits(1e-7), algorithm=FaceNewton())
    assert found.converged
    assert found.algorithm == "face-newton"
    assert found.primal == pytest.approx(exact.primal, abs=2e-7 * programme.scale)
    stricter = programme.solve(rho, limits=Limits(1e-11), algorithm=FaceNewton())  # float32 alone has not the digits
    assert stricter.converged
    assert stricter.primal <= found.primal + 1e-12


def test_columns_are_gathered_once_for_all_solves() -> None:
    problem = counts()
    problem["targets"] = torch.nn.functional.one_hot(problem["targets"]).double()
    programme = Programme(**problem, loss="squared", fit_intercept=True)
    rho = 0.05 * programme.largest_rho()
    first = programme.solve(rho, algorithm=FaceNewton())
    known = programme.presolve.programme.kept["columns"].index.clone()
    again = programme.solve(rho, first.point, algorithm=FaceNewton())
    columns = programme.presolve.programme.kept["columns"]
    assert torch.equal(columns.index[: len(known)], known)
    assert again.iterations <= 1
    # the Gram is that of centred columns
    matrix = programme.presolve.programme.matrix.to_dense()[:, columns.index]
    centred = matrix - matrix.mean(0)
    torch.testing.assert_close(columns.gram.double(), centred.T @ centred / len(matrix), rtol=1e-4, atol=1e-4)


def test_large_programmes_take_it() -> None:
    problem = counts(rows=9000, columns=400, classes=6)
    programme = Programme(**problem, loss="cross_entropy", fit_intercept=True)
    found = programme.solve(0.3 * programme.largest_rho())
    assert found.algorithm == "face-newton"
    assert found.converged
