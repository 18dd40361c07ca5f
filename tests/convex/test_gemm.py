"""Products by oneDNN: the same numbers as torch's own, whatever lies in memory how."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cvxsnn.convex import gemm, solve

available = pytest.mark.skipif(not gemm._available(), reason="this processor has no AVX-512, or torch no oneDNN")


def _layouts(matrix: Tensor) -> list[Tensor]:
    wider = torch.zeros(len(matrix) + 3, matrix.shape[1] + 5)
    wider[2:-1, 3:-2] = matrix
    return [matrix, matrix.T.contiguous().T, wider[2:-1, 3:-2], wider.T.contiguous().T[2:-1, 3:-2]]


@pytest.mark.parametrize("rows", [1, 3, 4, 10, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_torch(rows: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, 300, generator=g), torch.randint(0, 5, (300, 257), generator=g).float()
    expected = left.double() @ right.double()
    for one in _layouts(left):
        for other in _layouts(right):
            found = gemm.multiply(one.to(dtype), other.to(dtype))
            assert found.dtype == dtype
            assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()


@available
def test_what_has_gaps_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    own = torch.ops.mkldnn._linear_pointwise

    def spy(left: Tensor, right: Tensor, *rest: object) -> Tensor:
        asked.append((left, right))
        return own(left, right, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    for other in _layouts(torch.ones(300, 257)):
        gemm.multiply(torch.ones(10, 300), other)
    assert len(asked) == 2
    assert all(right.is_contiguous() or right.T.is_contiguous() for _, right in asked)


@available
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_solutions_without_it_are_the_same(l1_ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    spikes = (torch.rand(6000, 300, generator=g) < 0.3).to(torch.uint8)
    labels = (spikes[:, :30].double() @ torch.randn(30, 10, generator=g).double()).argmax(1)
    asked = {"loss": "cross_entropy", "rho": 1e-3, "l1_ratio": l1_ratio, "fit_intercept": True, "gap_tolerance": 1e-8}
    with_it = solve(spikes, labels, **asked)  # type: ignore[arg-type]
    monkeypatch.setattr(gemm, "_available", lambda: False)
    without = solve(spikes, labels, **asked)  # type: ignore[arg-type]
    assert with_it.converged
    assert without.converged
    assert with_it.primal == pytest.approx(without.primal, abs=1e-7)
    assert not torch.equal(with_it.coef, without.coef)  # it took part
