import pytest
import torch

from lightning_cvxsnn.convex.algorithms.kept import KeptHessian
from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.convex.matrix import Entries, Matrix


def block_of(entries):
    mean, ones = entries.mean(0), torch.ones(entries.shape[1], dtype=torch.float64)
    return Products(Matrix(Entries(entries)), mean, ones, True).of_columns(torch.arange(entries.shape[1]))


@pytest.mark.parametrize("few", [False, True], ids=["all rows bend", "few rows bend"])
def test_what_is_added_step_by_step_is_the_hessian(few):
    generator = torch.Generator().manual_seed(0)
    entries = torch.randint(0, 5, (300, 12), generator=generator).double()
    curvature = torch.rand(300, generator=generator, dtype=torch.float64)
    if few:
        curvature[100:] = 1e-9
    centred = torch.cat([entries - entries.mean(0), torch.ones(300, 1, dtype=torch.float64)], 1)
    exact = centred.T @ (curvature[:, None] * centred)

    kept = KeptHessian(curvature, block_of(entries[:, :6]))
    kept.at(torch.tensor([0, 2, 3]), block_of(entries[:, :6]))
    block = block_of(entries)  # columns have come, the intercept's place has moved
    for place in ([5, 2, 9, 12], [11, 12, 0]):
        expected = exact[place][:, place]
        found = kept.at(torch.tensor(place), block).double()
        assert (found - expected).abs().max() <= 0.02 * expected.diagonal().max()


def test_it_serves_until_it_is_worn_or_lacks_much():
    block = block_of(torch.rand(50, 40, dtype=torch.float64))
    kept = KeptHessian(torch.ones(50, dtype=torch.float64), block)
    every = torch.arange(40)
    assert not kept.serves(every, block)
    kept.at(every[:35], block)
    assert kept.serves(every[:35], block)
    assert kept.serves(every[:36], block)
    kept.steps = 1000
    assert not kept.serves(every[:35], block)
