"""Programmes with so many entries that softmax outputs take turns."""

import pytest
import torch

from lightning_cvxsnn.convex import newton, solve


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
    assert int((reference.coef != 0).sum()) > newton._SMALL_MODEL
    assert reference.converged


@pytest.mark.parametrize("largest", [0, 10**9])
def test_taking_turns_and_joint_steps_agree(monkeypatch, reference, largest):
    monkeypatch.setattr(newton, "_LARGEST_MODEL", largest)  # always in turn, and never
    monkeypatch.setattr(newton, "_SMALL_MODEL", largest)
    monkeypatch.setattr(newton, "_ITERATION_LIMIT", 3000)
    found = solve(*many_entries(), loss="cross_entropy", rho=1e-3, fit_intercept=True)
    assert found.converged
    assert found.primal == pytest.approx(reference.primal, abs=2e-6 * 2.3)
