"""The elastic net as the solvers use it, and as the certificate does."""

import pytest
import torch
from programmes import RATIOS

from lightning_cvxsnn.convex.penalties import ElasticNet, proof_of


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("merged", [False, True])
def test_the_penalty_and_its_proof(ratio: float, merged: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    count = torch.tensor([1.0, 2.0, 3.0, 1.0, 7.0], dtype=torch.float64) if merged else torch.ones(5).double()
    penalty = ElasticNet(l1_ratio=ratio).at(0.3)
    penalty = penalty.merged(count) if merged else penalty
    squares = (coef.square() / count[:, None]).sum()
    value = 0.3 * (ratio * float(coef.abs().sum()) + (1 - ratio) / 2 * float(squares))
    proof = proof_of(penalty)
    assert float(penalty.value(coef)) == pytest.approx(value)
    assert proof.value(coef) == pytest.approx(value)
    torch.testing.assert_close(penalty.values(coef.T).sum(), penalty.value(coef))
    # zero is optimal for slopes within rho a
    assert torch.equal(penalty.excess(coef) > 0, coef.abs() > 0.3 * ratio)
    assert penalty.largest_rho(coef) == (pytest.approx(float(coef.abs().max()) / ratio) if ratio else float("inf"))
    assert penalty.largest_rho(coef, 0.5) == pytest.approx(float(coef.abs().max()) / max(ratio, 0.5))
    assert penalty.largest_rho(0 * coef) == 0


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_cost_of_a_dual_point_is_the_conjugate(ratio: float) -> None:
    """``<c, w> - penalty(w)`` is nowhere above the cost, and equal to it at its maximiser."""
    generator = torch.Generator().manual_seed(1)
    correlation = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    count = torch.tensor([1.0, 2.0, 3.0, 1.0, 7.0], dtype=torch.float64)
    proof = proof_of(ElasticNet(0.3, ratio).merged(count))
    free = proof.free(correlation)
    assert bool((free * correlation <= 0.3 * ratio).all())
    if ratio == 1:
        assert proof.violation(correlation) == pytest.approx(float(correlation.max()) / 0.3 - 1)
        return
    assert proof.violation(correlation) is None
    factor = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    scaled = factor * correlation
    best = (scaled - 0.3 * ratio).clamp_min(0) * count[:, None] / (0.3 * (1 - ratio))
    cost = proof.cost(factor, correlation)
    assert float((scaled * best).sum()) - proof.value(best) == pytest.approx(cost)
    for _ in range(20):
        other = best + torch.randn(5, 3, generator=generator, dtype=torch.float64) * best.max()
        assert float((scaled * other).sum()) - proof.value(other) <= cost + 1e-12
    slope, curvature = proof.slopes(factor, correlation)
    for c in range(3):
        step = 1e-6 * (torch.arange(3) == c)
        ahead, behind = proof.cost(factor + step, correlation), proof.cost(factor - step, correlation)
        assert float(slope[c]) == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)
        bend = proof.slopes(factor + step, correlation)[0][c] - proof.slopes(factor - step, correlation)[0][c]
        assert float(curvature[c]) == pytest.approx(float(bend) / 2e-6, rel=1e-5)
