"""FIRST-LAST-XOR (Udupi, Yang, Zhai, arXiv 2605.08022)."""

import torch
from torch.utils.data import TensorDataset
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits, check_at_least, checked_sizes


class XORDataModule(Splits):
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
        check_at_least("steps", steps, 2)
        self.steps, self.sizes = steps, checked_sizes(sizes)

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
