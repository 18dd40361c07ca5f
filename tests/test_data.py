import torch
from sklearn.datasets import load_digits

from lightning_cvxsnn import DigitsDataModule


def test_every_digit_is_in_one_split():
    data = DigitsDataModule(batch_size=100)
    data.setup("fit")
    x = torch.cat([x for loader in (data.train, data.val, data.test) for x, _ in loader]).reshape(-1, 8, 8)
    assert (len(data.train), len(data.val), len(data.test)) == (1097, 350, 350)
    original = torch.tensor(load_digits().images / 16.0, dtype=torch.float32)
    assert torch.equal(x.flatten(1).sum(1).sort().values, original.flatten(1).sum(1).sort().values)
    assert 0 <= x.min() < x.max() <= 1


def test_the_split_depends_on_the_seed_only():
    first, same, other = (DigitsDataModule(seed=seed) for seed in (1, 1, 2))
    for data in (first, same, other):
        data.setup("fit")
    assert first.train.indices == same.train.indices != other.train.indices
