"""Addition, digit by digit (Udupi, Yang, Zhai, arXiv 2605.08022)."""

import torch
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits, check_at_least, checked_sizes


class AdditionDataModule(Splits):
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
        random_carry: Whether the first column has a carry into it in half of the samples, as the paper's have; else
            none has.

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
        random_carry: bool = False,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        check_at_least("base", base, 2)
        for number in (digits, *test_digits):
            check_at_least("digits", number, 1)
        self.base, self.digits, self.test_digits, self.sizes = base, digits, tuple(test_digits), checked_sizes(sizes)
        self.random_carry = random_carry

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
        carry = torch.randint(2, (size,), generator=generator) if self.random_carry else a.new_zeros(size)
        rows, sums = [], []
        for column in columns.unbind(1):
            rows.append(torch.cat([column, carry[:, None]], 1))
            sums.append(rows[-1].sum(1))
            carry = sums[-1] // self.base
        return TensorDataset(torch.stack(rows, 1).float() / (self.base - 1), torch.stack(sums, 1))
