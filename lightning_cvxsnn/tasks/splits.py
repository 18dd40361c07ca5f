"""What the data modules share: loaders over three splits, and checks of their numbers."""

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override


class Splits(pl.LightningDataModule):
    """Loaders over the datasets ``train``, ``val`` and ``test``, which ``setup`` makes; only training is shuffled.

    ``batch_size`` goes in by name: to predict, Lightning makes a loader again, and cannot where it is positional.
    """

    train: Dataset
    val: Dataset
    test: Dataset

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        check_at_least("batch_size", batch_size, 1)
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


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse what is no integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected an integer >= {least}.")


def checked_sizes(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Three numbers of samples, each at least 1."""
    if len(sizes) != 3 or min(sizes) < 1:
        raise MisconfigurationException(
            f"Invalid value sizes={sizes!r}. Expected three numbers of samples: to train, validate and test on."
        )
    train, val, test = sizes
    return train, val, test
