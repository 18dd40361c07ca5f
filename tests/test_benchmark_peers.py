"""The benchmarks' peers solve the programme that they are compared on, and their own figures are true."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cvxpy")
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # after tests/, which has a networks.py, too
peers, problems, conic, measures = map(importlib.import_module, ("peers", "problems", "conic", "objective"))

LOSSES = ("squared", "logistic", "cross_entropy", "hinge", "squared_hinge")


def programme(loss, l1_ratio, fit_intercept):
    """40 rows of counts, six columns, and classes or two real targets."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 5, (40, 6), generator=generator, dtype=torch.uint8)
    matrix = problems.SpikeDictionary(counts, 0.25)
    noise = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    scores = matrix.to_dense() @ torch.randn(6, 3, generator=generator, dtype=torch.float64) + noise
    targets = scores[:, :2] if loss == "squared" else scores.argmax(1)
    if loss == "logistic":
        targets = targets.clamp(max=1)
    name = f"{loss}-{l1_ratio}-{'intercept' if fit_intercept else 'none'}"
    return problems.Problem(name, matrix, targets, loss, 0.01, fit_intercept, l1_ratio)


def value(problem, point):
    return measures.objective(problem, *(torch.tensor(np.asarray(each)) for each in point))


CASES = [
    pytest.param(peer, problem, marks=pytest.mark.slow if peer.name.startswith("skglm") else ())  # compiles
    for loss in LOSSES
    for l1_ratio in (1.0, 0.3, 0.0)
    for fit_intercept in (True, False)
    for problem in [programme(loss, l1_ratio, fit_intercept)]
    for peer in peers.PEERS
    if peer.suits(problem)
]


@pytest.mark.parametrize(("peer", "problem"), CASES, ids=lambda each: getattr(each, "name", ""))
def test_a_peer_solves_the_programme(peer, problem):
    pytest.importorskip({"celer": "celer", "skglm": "skglm", "HiGHS": "highspy"}.get(peer.name.split()[0], "sklearn"))
    best = value(problem, conic.cvxpy(problem, problem.dense(), 1e-9))
    found = value(problem, peers.quietly(lambda: peer.run(problem, peer.matrix(problem), peer.settings[-1])))
    assert found == pytest.approx(best, abs=3e-5 if peer.dtype == np.float32 else 1e-6)


@pytest.mark.parametrize("loss", ["squared", "logistic", "cross_entropy"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_bound_of_ridge_programmes_is_one_and_is_tight(loss, fit_intercept):
    problem = programme(loss, 0.0, fit_intercept)
    coef, intercept = map(torch.tensor, conic.cvxpy(problem, problem.dense(), 1e-10))
    best = measures.objective(problem, coef, intercept)
    assert measures.ridge_bound(problem, coef, intercept) == pytest.approx(best, abs=1e-8)
    for size in (1e-3, 0.1):
        moved = coef + size * torch.randn(coef.shape, generator=torch.Generator().manual_seed(0), dtype=coef.dtype)
        bound = measures.ridge_bound(problem, moved, intercept)
        assert best - 1000 * size**2 < bound < best + 1e-9


def test_two_hinge_classes_are_one_output():
    problem = replace(programme("hinge", 1.0, True), targets=torch.arange(40) % 2)
    assert problem.width == 1
    best = value(problem, conic.cvxpy(problem, problem.dense(), 1e-9))
    assert value(problem, conic.highs(problem, problem.dense(), 1e-9, "ipm")) == pytest.approx(best, abs=1e-6)
