"""The L1 norm as the solvers use it, and as the certificate does."""

import pytest
import torch

from lightning_cvxsnn.convex.penalties import ElasticNet, proof_of


@pytest.mark.parametrize("rho", [0.1, 2.0])
def test_the_penalty_and_its_proof(rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    penalty = ElasticNet().at(rho)
    proof = proof_of(penalty)
    assert float(penalty.value(coef)) == pytest.approx(rho * float(coef.abs().sum()))
    assert proof.value(coef) == pytest.approx(float(penalty.value(coef)))
    torch.testing.assert_close(penalty.values(coef).sum(), penalty.value(coef))
    # prox: the minimiser of |w - x|^2 / 2 + step * rho |w|, entry by entry
    near = penalty.prox(coef, 0.5)
    for other in (near + 1e-3, near - 1e-3, torch.zeros_like(near), coef):
        gain = ((other - coef).square() - (near - coef).square()) / 2 + 0.5 * rho * (other.abs() - near.abs())
        assert float(gain.min()) >= -1e-15
    # zero is optimal for slopes within rho
    assert torch.equal(penalty.excess(coef) > 0, coef.abs() > rho)
    assert penalty.largest_rho(coef) == float(coef.abs().max())
    factors = penalty.shrinkage(coef.T.abs())
    assert bool((coef.abs() * factors <= rho * (1 + 1e-12)).all())
    largest = coef.abs().amax(0)
    assert bool((proof.limits(largest) * largest <= rho).all())
    assert proof.violation(largest) == pytest.approx(max(0.0, float(largest.max()) / rho - 1))
