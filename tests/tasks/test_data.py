import gzip
import struct

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits

from lightning_cvxsnn import (
    AdditionDataModule,
    AutomatonDataModule,
    DigitsDataModule,
    MackeyGlassDataModule,
    SequentialMNISTDataModule,
    XORDataModule,
)


def splits(data):
    data.setup("fit")
    return [data.train.tensors, data.val.tensors, data.test.tensors]


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


@pytest.mark.parametrize("steps", [2, 6, 14])
def test_xor(steps):
    state = torch.get_rng_state()
    for size, (x, y) in zip((2000, 2000, 4000), splits(XORDataModule(steps)), strict=True):
        assert x.shape == (size, steps, 2)
        assert torch.equal(x.sum(-1), torch.ones(size, steps))
        assert set(x.unique().tolist()) == {0.0, 1.0}
        bits = x[..., 1].long()
        assert torch.equal(y, bits[:, 0] ^ bits[:, -1])
        assert int(y.sum()) == size // 2
        assert all(0.45 < rate < 0.55 for rate in bits.float().mean(0).tolist())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("base", [2, 3, 10])
def test_addition(base):
    data = AdditionDataModule(base)
    data.setup("fit")
    datasets = [(5, data.train), (5, data.val), *zip((5, 10, 25, 50), data.tests, strict=True)]
    assert [len(d) for _, d in datasets] == [2000, *[1000] * 5]
    for digits, dataset in datasets:
        x, y = dataset.tensors
        assert x.shape == (*y.shape, 3) == (len(dataset), digits + 1, 3)
        a, b, carries = (x * (base - 1)).round().long().unbind(-1)
        assert not a[:, -1].any()
        assert not b[:, -1].any()
        for row in range(0, len(dataset), 50):
            numbers = [sum(int(d) * base**t for t, d in enumerate(number[row])) for number in (a, b)]
            total = sum(int(s) % base * base**t for t, s in enumerate(y[row]))
            assert total == sum(numbers)
        assert torch.equal(carries[:, 1:], y[:, :-1] // base)
        assert not carries[:, 0].any()
        assert not (y[:, -1] // base).any()
    assert set(data.train.tensors[1].unique().tolist()) == set(range(2 * base))
    assert [len(loader.dataset[0][0]) for loader in data.test_dataloader()] == [6, 11, 26, 51]


def test_addition_with_a_random_carry_into_the_first_column():
    data = AdditionDataModule(5, random_carry=True, sizes=(1000, 10, 10))
    data.setup("fit")
    x, y = data.train.tensors
    columns = (x * 4).round().long()
    assert 400 < int(columns[:, 0, 2].sum()) < 600
    assert torch.equal(columns.sum(-1), y)
    assert torch.equal(columns[:, 1:, 2], y[:, :-1] // 5)


@pytest.mark.parametrize("module", [XORDataModule, AdditionDataModule, AutomatonDataModule, MackeyGlassDataModule])
def test_generated_data_depends_on_the_seed_only(module):
    first, same, other = (module(seed=seed, sizes=(50, 20, 20)) for seed in (1, 1, 2))
    for data in (first, same, other):
        data.setup("fit")
    assert torch.equal(first.train.tensors[0], same.train.tensors[0])
    assert not torch.equal(first.train.tensors[0], other.train.tensors[0])
    assert not torch.equal(first.train.tensors[0][:20], first.val.tensors[0])
    batch = next(iter(first.val_dataloader()))
    assert torch.equal(batch[0], first.val.tensors[0])


def idx(values):
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder, images, labels, compress=gzip.compress, ending=".gz"):
    (folder / f"t10k-images-idx3-ubyte{ending}").write_bytes(compress(idx(images)))
    (folder / f"t10k-labels-idx1-ubyte{ending}").write_bytes(compress(idx(labels)))


@pytest.mark.parametrize(("compress", "ending"), [(gzip.compress, ".gz"), (bytes, "")])
def test_sequential_mnist(tmp_path, compress, ending):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8)
    write(tmp_path, images, labels, compress, ending)
    data = SequentialMNISTDataModule(str(tmp_path), sizes=(30, 10, 15))
    parts = splits(data)
    assert [len(y) for _, y in parts] == [30, 10, 15]
    found = torch.cat([y for _, y in parts])
    assert len(found.unique()) == 55  # no image twice
    assert found.tolist() != sorted(found.tolist())
    for x, y in parts:
        assert x.shape == (len(y), 4, 196)
        expected = torch.from_numpy(images)[y].float() / 255
        assert torch.equal(x.reshape(-1, 28, 28), expected)
    assert y.dtype == torch.int64
    again = splits(SequentialMNISTDataModule(str(tmp_path), sizes=(30, 10, 15)))
    other = splits(SequentialMNISTDataModule(str(tmp_path), sizes=(30, 10, 15), seed=1))
    assert torch.equal(again[0][1], parts[0][1])
    assert not torch.equal(other[0][1], parts[0][1])


@pytest.mark.parametrize("steps", [4, 14, 28, 56])
def test_images_in_steps_and_permuted(tmp_path, steps):
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    write(tmp_path, images, np.arange(60, dtype=np.uint8))
    rows = {}
    for permuted, seed in ((False, 0), (True, 0), (True, 1)):
        data = SequentialMNISTDataModule(str(tmp_path), sizes=(40, 10, 10), steps=steps, permuted=permuted, seed=seed)
        parts = splits(data)
        x, y = (torch.cat(each) for each in zip(*parts, strict=True))
        assert x.shape == (60, steps, 784 // steps)
        rows[permuted, seed] = x[y.argsort()].flatten(1)
    plain = torch.from_numpy(images).flatten(1).float() / 255
    assert torch.equal(rows[False, 0], plain)
    assert torch.equal(rows[True, 0], rows[True, 1])  # the pixels' places are the task's, the split is the seed's
    assert not torch.equal(rows[True, 0], plain)
    order = [int((column == plain.T).all(1).nonzero()[0]) for column in rows[True, 0].T]
    assert sorted(order) == list(range(784))


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "Found neither t10k-labels-idx1-ubyte nor"),
        (
            lambda folder: damaged(folder / "t10k-images-idx3-ubyte", lambda b: b[:-1]),
            "is no IDX file",
        ),
        (
            lambda folder: damaged(folder / "t10k-images-idx3-ubyte", lambda b: b[:9]),
            "is no IDX file",
        ),
        (
            lambda folder: damaged(folder / "t10k-images-idx3-ubyte", lambda b: b"\0\0\x0d" + b[3:]),
            "is no IDX file",
        ),
        (
            lambda folder: damaged(folder / "t10k-labels-idx1-ubyte", lambda b: b"<html>"),
            "is no IDX file",
        ),
        (lambda folder: write(folder, np.zeros((9, 28, 28), np.uint8), np.zeros(10, np.uint8), bytes, ""), "labels of"),
        (
            lambda folder: write(folder, np.zeros((10, 8, 8), np.uint8), np.zeros(10, np.uint8), bytes, ""),
            r"\[10, 8, 8",
        ),
        (lambda folder: write(folder, np.zeros((8, 28, 28), np.uint8), np.zeros(8, np.uint8), bytes, ""), "at least 9"),
    ],
)
def test_wrong_files(tmp_path, damage, message):
    write(tmp_path, np.zeros((10, 28, 28), np.uint8), np.zeros(10, np.uint8), bytes, "")
    damage(tmp_path)
    with pytest.raises(MisconfigurationException, match=message):
        SequentialMNISTDataModule(str(tmp_path), sizes=(5, 2, 2)).setup("fit")


def test_a_cut_gzip_file_and_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MisconfigurationException, match="no such folder"):
        SequentialMNISTDataModule(str(tmp_path / "nowhere")).setup("fit")
    write(tmp_path, np.zeros((10, 28, 28), np.uint8), np.zeros(10, np.uint8))
    damaged(tmp_path / "t10k-images-idx3-ubyte.gz", lambda b: b[:-20])
    with pytest.raises(MisconfigurationException, match=r"is no IDX file \(EOFError"):
        SequentialMNISTDataModule(str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: XORDataModule(1), "steps=1. Expected an integer >= 2"),
        (lambda: XORDataModule(2.5), "steps=2.5"),
        (lambda: SequentialMNISTDataModule("mnist", steps=5), "steps=5. Expected a divisor of 784"),
        (lambda: MackeyGlassDataModule(ahead=0), "ahead=0. Expected an integer >= 1"),
        (lambda: AdditionDataModule(1), "base=1. Expected an integer >= 2"),
        (lambda: AdditionDataModule(digits=0), "digits=0. Expected an integer >= 1"),
        (lambda: AdditionDataModule(test_digits=(5, 0)), "digits=0"),
        (lambda: XORDataModule(sizes=(1, 2)), r"sizes=\(1, 2\). Expected three numbers"),
        (lambda: AdditionDataModule(sizes=(1, 0, 2)), r"sizes=\(1, 0, 2\)"),
    ],
)
def test_wrong_numbers(make, message):
    with pytest.raises(MisconfigurationException, match=message):
        make()
