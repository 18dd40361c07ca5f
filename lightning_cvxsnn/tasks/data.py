"""Data modules: the embedded digits, and the paper's tasks (Udupi, Yang, Zhai, arXiv 2605.08022)."""

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from typing_extensions import override

from lightning_cvxsnn.tasks.idx import read_idx


class _Splits(pl.LightningDataModule):
    """Loaders over the datasets ``train``, ``val`` and ``test``, which ``setup`` makes; only training is shuffled.

    ``batch_size`` goes in by name: to predict, Lightning makes a loader again, and cannot where it is positional.
    """

    train: Dataset
    val: Dataset
    test: Dataset

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        _check_at_least("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self.seed = seed

    @override
    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.val, batch_size=self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """In order."""
        return DataLoader(self.test, batch_size=self.batch_size)

    @override
    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """The samples to test on, in order."""
        return self.test_dataloader()


class DigitsDataModule(_Splits):
    """The 1797 handwritten 8x8 digits that ship with scikit-learn, each row of pixels one time step.

    Samples are ``(x [8 steps, 8 pixels] float32 in [0, 1], y)``; 1097 train, 350 validate, 350 test.

    Args:
        batch_size: Samples per batch.
        seed: Seed of the split.

    Example:
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, len(data.train)
        (torch.Size([64, 8, 8]), 1097)
    """

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()

    @override
    def setup(self, stage: str) -> None:
        """Load and split; the same for every stage."""
        digits = load_digits()
        x = torch.tensor(digits.images / 16.0, dtype=torch.float32)
        dataset: Dataset = TensorDataset(x, torch.tensor(digits.target))
        generator = torch.Generator().manual_seed(self.seed)
        self.train, self.val, self.test = random_split(dataset, [len(x) - 700, 350, 350], generator)


class XORDataModule(_Splits):
    """FIRST-LAST-XOR: is the first of T random bits another than the last?

    Samples are ``(x [T, 2] float32, y)``, each bit one-hot; exactly half of the labels of each split are 1 (one fewer
    where their number is odd). With T steps there are only 2^T sequences: for small T splits share some.

    Args:
        steps: T, at least 2.
        sizes: Samples to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the bits.

    Raises:
        MisconfigurationException: If a number is out of range.

    Example:
        >>> data = XORDataModule(steps=6)
        >>> data.setup("fit")
        >>> x, y = data.train[0]
        >>> x.shape, int(y) == int(x[0, 1] != x[-1, 1]), len(data.test)
        (torch.Size([6, 2]), True, 4000)
    """

    def __init__(
        self,
        steps: int = 8,
        sizes: tuple[int, int, int] = (2000, 2000, 4000),
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        _check_at_least("steps", steps, 2)
        self.steps, self.sizes = steps, _checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Generate all splits; the same for every stage."""
        generator = torch.Generator().manual_seed(self.seed)
        self.train, self.val, self.test = (self._draw(size, generator) for size in self.sizes)

    def _draw(self, size: int, generator: torch.Generator) -> TensorDataset:
        y = (torch.randperm(size, generator=generator) < size // 2).long()
        bits = torch.randint(2, (size, self.steps), generator=generator)
        bits[:, -1] = bits[:, 0] ^ y
        return TensorDataset(torch.stack([1 - bits, bits], -1).float(), y)


class AdditionDataModule(_Splits):
    """Addition of two numbers, digit by digit from the least significant.

    Samples are ``(x [T, 3] float32, y [T])`` with T = digits + 1, as a sum has one digit more. Step t holds the digits
    a_t and b_t and the carry into them, each divided by base - 1; ``y[t] = a_t + b_t + carry`` below ``2 * base`` is
    both answers in one class: the sum's digit ``y % base`` and the carry out ``y // base``. Digits are uniform.

    Networks are trained on few digits and tested on more, one loader for each of ``test_digits``. There `AdditionSNN`
    is fed the carry that it has computed itself.

    Args:
        base: Base of the numbers, at least 2.
        digits: Digits of a number to train and validate on.
        test_digits: Digits to test on.
        sizes: Pairs of numbers to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the digits.

    Raises:
        MisconfigurationException: If a number is out of range.

    Example:
        >>> data = AdditionDataModule(base=10)
        >>> data.setup("fit")
        >>> x, y = data.train[0]
        >>> x.shape, bool((y == (9 * x).sum(1).round()).all())
        (torch.Size([6, 3]), True)
        >>> tuple(test.tensors[0].shape[1] - 1 for test in data.tests)
        (5, 10, 25, 50)
    """

    def __init__(
        self,
        base: int = 3,
        digits: int = 5,
        test_digits: tuple[int, ...] = (5, 10, 25, 50),
        sizes: tuple[int, int, int] = (2000, 1000, 1000),
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        _check_at_least("base", base, 2)
        for number in (digits, *test_digits):
            _check_at_least("digits", number, 1)
        self.base, self.digits, self.test_digits, self.sizes = base, digits, tuple(test_digits), _checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Generate all splits; the same for every stage."""
        generator = torch.Generator().manual_seed(self.seed)
        train, val, test = self.sizes
        self.train, self.val = self._draw(train, self.digits, generator), self._draw(val, self.digits, generator)
        self.tests = [self._draw(test, digits, generator) for digits in self.test_digits]

    @override
    def test_dataloader(self) -> list[DataLoader]:
        """In order, one for each of ``test_digits``."""
        return [DataLoader(dataset, batch_size=self.batch_size) for dataset in self.tests]

    def _draw(self, size: int, digits: int, generator: torch.Generator) -> TensorDataset:
        a, b = torch.randint(self.base, (2, size, digits), generator=generator)
        columns = torch.nn.functional.pad(torch.stack([a, b], -1), (0, 0, 0, 1))
        carry = a.new_zeros(size)
        rows, sums = [], []
        for column in columns.unbind(1):
            rows.append(torch.cat([column, carry[:, None]], 1))
            sums.append(rows[-1].sum(1))
            carry = sums[-1] // self.base
        return TensorDataset(torch.stack(rows, 1).float() / (self.base - 1), torch.stack(sums, 1))


class SequentialMNISTDataModule(_Splits):
    """MNIST images shown in T = 4 steps of 196 pixels, seven rows of an image each.

    Samples are ``(x [4, 196] float32 in [0, 1], y)``. The images of one pair of IDX files, plain or gzip, are permuted
    by the seed and then cut; the paper cuts the 10,000 test images.

    Args:
        folder: Where ``<source>-images-idx3-ubyte`` and ``<source>-labels-idx1-ubyte`` are, or these with ``.gz``.
        source: Which pair of files.
        sizes: Samples to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the permutation.

    Raises:
        MisconfigurationException: If a number is out of range; in ``setup`` if the files are not there, are damaged or
            hold too few images.

    Example:
        >>> data = SequentialMNISTDataModule("somewhere")
        >>> data.setup("fit")
        Traceback (most recent call last):
        ...
        lightning.fabric.utilities.exceptions.MisconfigurationException: Found neither t10k-images-idx3-ubyte nor ...
    """

    def __init__(
        self,
        folder: str,
        source: Literal["t10k", "train"] = "t10k",
        sizes: tuple[int, int, int] = (6000, 2000, 2000),
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        self.folder, self.source, self.sizes = Path(folder), source, _checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Read and split; the same for every stage."""
        images = read_idx(self.folder, f"{self.source}-images-idx3-ubyte")
        labels = read_idx(self.folder, f"{self.source}-labels-idx1-ubyte")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or len(labels) < sum(self.sizes):
            raise MisconfigurationException(
                f"Found images of shape {list(images.shape)} and labels of shape {list(labels.shape)} in "
                f"'{self.folder}'. Expected [n, 28, 28] and [n] with n at least {sum(self.sizes)}, the sum of sizes."
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        cuts = order[: sum(self.sizes)].split(list(self.sizes))
        self.train, self.val, self.test = (TensorDataset(_in_steps(images[cut]), labels[cut].long()) for cut in cuts)


def _in_steps(images: Tensor) -> Tensor:
    """uint8 ``[n, 28, 28]`` as float32 ``[n, 4, 196]``."""
    return images.reshape(-1, 4, 196).float() / 255


def _check_at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected an integer >= {least}.")


def _checked_sizes(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(sizes) != 3 or min(sizes) < 1:
        raise MisconfigurationException(
            f"Invalid value sizes={sizes!r}. Expected three numbers of samples: to train, validate and test on."
        )
    train, val, test = sizes
    return train, val, test
