"""Images as sequences: MNIST, shown in a few steps (Udupi, Yang, Zhai, arXiv 2605.08022)."""

import gzip
import tempfile
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits, checked_sizes

_PIXELS = 28 * 28


class SequentialMNISTDataModule(Splits):
    """MNIST images shown in T steps, one after the other: for T = 4 seven rows of an image, 196 pixels, each.

    Samples are ``(x [T, 784 / T] float32 in [0, 1], y)``. The images of one pair of IDX files, plain or gzip, are
    permuted by the seed and then cut; the paper cuts the 10,000 test images.

    Args:
        folder: Where ``<source>-images-idx3-ubyte`` and ``<source>-labels-idx1-ubyte`` are, or these with ``.gz``.
        source: Which pair of files.
        sizes: Samples to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the permutation of the images.
        steps: T, the number of steps; it divides 784.
        permuted: Whether the pixels of all images change places, in one random way that is the same for all seeds.

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
        steps: int = 4,
        permuted: bool = False,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        if isinstance(steps, bool) or steps < 1 or _PIXELS % steps:
            raise MisconfigurationException(f"Invalid value steps={steps!r}. Expected a divisor of {_PIXELS} pixels.")
        self.steps, self.permuted = steps, permuted
        self.folder, self.source, self.sizes = Path(folder), source, checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Read and split; the same for every stage."""
        images = _read_idx(self.folder, f"{self.source}-images-idx3-ubyte")
        labels = _read_idx(self.folder, f"{self.source}-labels-idx1-ubyte")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or len(labels) < sum(self.sizes):
            raise MisconfigurationException(
                f"Found images of shape {list(images.shape)} and labels of shape {list(labels.shape)} in "
                f"'{self.folder}'. Expected [n, 28, 28] and [n] with n at least {sum(self.sizes)}, the sum of sizes."
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        cuts = order[: sum(self.sizes)].split(list(self.sizes))
        self.train, self.val, self.test = (
            TensorDataset(self._in_steps(images[cut]), labels[cut].long()) for cut in cuts
        )

    def _in_steps(self, images: Tensor) -> Tensor:
        """uint8 ``[n, 28, 28]`` as float32 ``[n, T, 784 / T]``."""
        pixels = images.flatten(1)
        if self.permuted:
            pixels = pixels[:, torch.randperm(_PIXELS, generator=torch.Generator().manual_seed(0))]
        return pixels.unflatten(1, (self.steps, -1)).float() / 255


def _read_idx(folder: Path, name: str) -> Tensor:
    """MNIST's file ``name``, plain or gzip, by torchvision's reader, which wants a plain one.

    Raises:
        MisconfigurationException: If there is no such file or it is damaged.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        held = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else "no such folder"
        raise MisconfigurationException(
            f"Found neither {name} nor {name}.gz in '{folder}' ({held}). Expected MNIST's IDX files there."
        )
    try:
        with tempfile.TemporaryDirectory() as plain:
            if path.suffix == ".gz":
                Path(plain, name).write_bytes(gzip.decompress(path.read_bytes()))
                path = Path(plain, name)
            return read_sn3_pascalvincent_tensor(str(path))
    except Exception as error:  # whatever a reader of bytes that mean nothing raises
        raise MisconfigurationException(
            f"'{folder / name}' is no IDX file ({type(error).__name__}: {error}). Fetch it again."
        ) from error
