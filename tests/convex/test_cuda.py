"""Every algorithm on a CUDA device against the CPU."""

import pytest
import torch
from programmes import RATIOS, counts, make

from lightning_cvxsnn.convex import certificate, path, solve
from lightning_cvxsnn.patterns import SpikeDictionary

no_gpu = None if torch.cuda.is_available() else "torch finds no CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(no_gpu is not None, reason=no_gpu or "")]


def on_gpu(problem):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in problem.items()}


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "squared_hinge", "hinge"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_solutions_are_those_of_the_cpu(loss, ratio):
    problem = make(3, loss, rows=60, columns=20, weighted=True)
    options = {"rho": 0.01, "l1_ratio": ratio, "fit_intercept": True}
    here, there = solve(**problem, **options), solve(**on_gpu(problem), **options)
    assert there.coef.is_cuda
    assert there.converged
    assert there.primal == pytest.approx(here.primal, rel=2e-6)
    proof = certificate(
        problem["dictionary"], problem["targets"], there.coef.cpu(), there.intercept.cpu(), loss=loss, **options,
        sample_weight=problem["sample_weight"], dual_point=there.dual_point.cpu(),
    )  # fmt: skip
    assert proof.gap == pytest.approx(there.gap, abs=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_packed_counts_and_large_sizes(ratio):
    problem = counts(rows=6000, columns=600)
    options = {"loss": "cross_entropy", "rho": 2e-3, "l1_ratio": ratio, "fit_intercept": True}
    here, there = solve(**problem, **options), solve(**on_gpu(problem), **options)
    assert there.converged
    assert there.primal == pytest.approx(here.primal, rel=2e-6)


def test_bits_and_paths():
    values = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)).round()
    labels = (values[:, :4] @ torch.tensor([1.0, -1.0, 2.0, -1.0]) > 0).long()
    packed = SpikeDictionary.from_values(values.cuda())
    options = {"loss": "cross_entropy", "fit_intercept": True, "held_out": torch.arange(300) % 5 == 0}
    there, here = path(packed, labels.cuda(), **options), path(values, labels, **options)
    assert there.rhos == pytest.approx(here.rhos)
    assert there.held_out_losses == pytest.approx(here.held_out_losses, rel=1e-3)
