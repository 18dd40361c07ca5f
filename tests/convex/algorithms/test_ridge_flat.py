"""Ridge penalties that hardly bend the objective, over noise that no readout explains."""

import pytest
import torch

from lightning_cvxsnn.convex import certificate, solve


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_few_iterations_certify_a_tiny_penalty(outputs, intercept):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (1000, 8), generator=generator).float()
    weights, thresholds = torch.randn(8, 300, generator=generator), torch.rand(300, generator=generator)
    columns = (x @ weights > 2 * thresholds).to(torch.uint8)
    y = (x[:, 0] + 2 * x[:, 1]).long() % max(outputs, 2)
    y = torch.where(torch.rand(1000, generator=generator) < 0.2, y.roll(1), y)
    options = {"loss": "cross_entropy", "rho": 1e-8, "l1_ratio": 0.0, "fit_intercept": intercept}
    solution = solve(columns, y, **options, num_outputs=outputs, max_iterations=40)
    assert solution.converged
    proof = certificate(
        columns, y, solution.coef, solution.intercept if intercept else None, **options, dual_point=solution.dual_point
    )
    assert proof.gap <= 1e-6
