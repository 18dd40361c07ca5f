"""The embedded digits."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, TensorDataset, random_split
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits


class DigitsDataModule(Splits):
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
