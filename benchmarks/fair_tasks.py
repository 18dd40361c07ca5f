"""The tasks of benchmarks/fair.py: rows, cut anew for each seed, and the network that a user would write for them.

Test rows are the same for all seeds, so that no choice on a seed's validation rows has seen the test rows of another.
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, TensorDataset, default_collate

from lightning_cvxsnn import (
    AdditionDataModule,
    AdditionSNN,
    DigitsDataModule,
    LitSNN,
    MackeyGlassDataModule,
    ParallelSNN,
    RegressionSNN,
    SequentialMNISTDataModule,
    XORDataModule,
)
from lightning_cvxsnn.network import is_spiking

STEPS = 4  # for which an image is shown to a convolutional network
Pool = tuple[TensorDataset, TensorDataset]  # rows to train and validate on, and test rows


@dataclass(frozen=True)
class Task:
    """Rows, a network and how long it trains.

    Attributes:
        pool: The rows, given the folder of all data.
        sizes: Rows to train and to validate on.
        network: Makes the network, whose ``lr`` is set afterwards.
        epochs: Epochs of training.
        batch: Rows of a batch.
        seeds: Paired seeds; 3 where an epoch exceeds two seconds.
        may_have_norm: Whether a norm fits what the task is about.
        loss: ``"squared"``: a regression.
    """

    pool: Callable[[Path], Pool]
    sizes: tuple[int, int]
    network: Callable[[], pl.LightningModule]
    epochs: int
    batch: int
    seeds: int = 5
    may_have_norm: bool = True
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"

    @property
    def deep(self) -> bool:
        """Whether spikes pass four layers of neurons, or more."""
        network: Any = self.network()
        one_way = getattr(network, "branches", [network])[0]
        return sum(map(is_spiking, one_way.modules())) >= 4

    def cut(self, folder: Path, seed: int) -> list[TensorDataset]:
        """Training, validation and test rows."""
        rows, test = self.pool(folder)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return [*(TensorDataset(*rows[part]) for part in order[: sum(self.sizes)].split(list(self.sizes))), test]


# -- rows -------------------------------------------------------------------------------------------------------------


def pooled(data: pl.LightningDataModule) -> Pool:
    """The rows of a data module of one's own choice: those to train and validate on together, and its test rows."""
    data.setup("fit")
    both, test = ConcatDataset([data.train, data.val]), data.test if hasattr(data, "test") else data.tests[0]
    return TensorDataset(*default_collate(list(both))), TensorDataset(*default_collate(list(test)))


@lru_cache
def digits(folder: Path) -> Pool:
    return pooled(DigitsDataModule())


@lru_cache
def sequential_mnist(folder: Path) -> Pool:
    """``[4, 196]``: seven rows of an image at each step."""
    return pooled(SequentialMNISTDataModule(str(folder / "mnist10k")))


@lru_cache
def mnist_images(folder: Path) -> Pool:
    """``[1, 28, 28]``; 1000 test rows."""
    rows, test = sequential_mnist(folder)
    return images(*rows.tensors), images(*test[:1000])


def images(x: Tensor, y: Tensor) -> TensorDataset:
    return TensorDataset(x.reshape(-1, 1, 28, 28), y)


@lru_cache
def cifar(folder: Path) -> Pool:
    """``[3, 32, 32]`` in [0, 1]: of each class 400 images to train and validate on, and 100 to test on."""
    with zipfile.ZipFile(folder / "cifar10" / "cifar10-12k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})

        def read(part: str, each: int) -> TensorDataset:
            chosen = [n for c in classes for n in [n for n in names if n.startswith(f"{part}/{c}/")][:each]]
            pixels = [np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in chosen]
            x = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
            return TensorDataset(x.contiguous(), torch.arange(len(classes)).repeat_interleave(each))

        return read("train", 400), read("test", 100)


@lru_cache
def events(folder: Path) -> Pool:
    """N-MNIST, ``[10, 578]``: events of each polarity at each 2 x 2 pixels; its 100 test rows and 200 more."""
    stored = np.load(folder / "nmnist" / "nmnist1k.npz")
    x, y = np.concatenate([stored["Xte"], stored["Xtr"]]), np.concatenate([stored["yte"], stored["ytr"]])
    order = np.concatenate([np.arange(100), 100 + np.random.default_rng(0).permutation(1000)])  # rows may be sorted
    counts = torch.tensor(x[order]).float().flatten(0, 1)
    summed = F.avg_pool2d(counts, 2, divisor_override=1).reshape(len(x), 10, -1)
    return split(TensorDataset(summed, torch.tensor(y[order])), 300)


def split(rows: TensorDataset, test: int) -> Pool:
    """The first rows are to test on."""
    return TensorDataset(*rows[test:]), TensorDataset(*rows[:test])


@lru_cache
def series(name: str, folder: Path) -> Pool:
    stored = np.load(folder / "series" / f"{name}.npz")
    x, y = (np.concatenate([stored[f"{kind}tr"], stored[f"{kind}va"]]) for kind in "Xy")
    return as_rows(x, y), as_rows(stored["Xte"], stored["yte"])


def as_rows(x: NDArray, y: NDArray) -> TensorDataset:
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


@lru_cache
def mnist1d(rows: int, folder: Path) -> Pool:
    """MNIST-1D (Greydanus), ``[8, 5]``: eight windows of five values; 1000 rows to test on."""
    from mnist1d.data import get_dataset_args, make_dataset  # of the extra `benchmarks`

    arguments = get_dataset_args()
    arguments.num_samples, arguments.train_split = rows + 1000, rows / (rows + 1000)
    made = make_dataset(arguments)
    x, test = (made[name].reshape(-1, 8, 5) for name in ("x", "x_test"))
    return as_rows(x, made["y"]), as_rows(test, made["y_test"])


@lru_cache
def xor(folder: Path) -> Pool:
    return pooled(XORDataModule(steps=14, sizes=(2000, 500, 1000)))


@lru_cache
def addition(folder: Path) -> Pool:
    """Carries are given, as in training."""
    return pooled(AdditionDataModule(base=10, test_digits=(5,), sizes=(2000, 500, 1000)))


@lru_cache
def mackey_glass(folder: Path) -> Pool:
    return pooled(MackeyGlassDataModule())


# -- networks ---------------------------------------------------------------------------------------------------------


def stack(
    inputs: int, hidden: list[int], classes: int = 10, *, last: bool = False, biases: bool = True, paper: bool = False
) -> LitSNN:
    """Linear and LIF layers; ``paper``: with the neuron of arXiv 2605.08022."""
    constants = {"tau": 100.0, "v_reset": None} if paper else {}
    net = LitSNN(inputs, hidden, classes, reduction="last" if last else "mean", **constants)
    for part in net.layers:
        if isinstance(part, neuron.LIFNode):
            part.decay_input = not paper
        elif not biases:
            part.bias = None
    return net


class ImageSNN(LitSNN):
    """Convolutions, shown the same image at each step."""

    def __init__(self, parts: list[nn.Module], features: int) -> None:
        super().__init__(hidden=[features])
        self.layers = nn.Sequential(*parts, layer.Flatten(step_mode="m"))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(1).expand(-1, STEPS, -1, -1, -1))


def lif(step_mode: str = "m") -> nn.Module:
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode=step_mode)


def conv(fan_in: int, fan_out: int, **options: int | bool) -> nn.Module:
    return layer.Conv2d(fan_in, fan_out, 3, padding=1, step_mode="m", **options)


def conv_norm(channels: int, features: int) -> ImageSNN:
    """Two convolutions, each with batch norm, LIF and pooling."""
    parts: list[nn.Module] = []
    for fan_in, fan_out in ((channels, 8), (8, 16)):
        norm, pool = layer.BatchNorm2d(fan_out, step_mode="m"), layer.MaxPool2d(2, step_mode="m")
        parts += [conv(fan_in, fan_out, bias=False), norm, lif(), pool]
    return ImageSNN(parts, features)


def conv_deep(channels: int, features: int) -> ImageSNN:
    """Six convolutions without a norm, two of them with a stride of 2."""
    widths = [channels, 16, 16, 16, 24, 24, 24]
    parts: list[nn.Module] = []
    for place, (fan_in, fan_out) in enumerate(pairwise(widths)):
        parts += [conv(fan_in, fan_out, stride=2 if place < 2 else 1), lif()]
    return ImageSNN(parts, features)


class RecurrentSNN(LitSNN):
    """A linear layer and LIF units that hear each other one step later."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__(hidden=[width], num_classes=classes)
        units = layer.LinearRecurrentContainer(lif("s"), width, width, step_mode="m")
        self.layers = nn.Sequential(layer.Linear(inputs, width, step_mode="m"), units)


# -- tasks: cheap and diverse ones first, so that a run that is cut short tells most ----------------------------------


def on_mnist(hidden: list[int], epochs: int, seeds: int = 5, may_have_norm: bool = True, **options: bool) -> Task:
    network = partial(stack, 196, hidden, **options)
    return Task(sequential_mnist, (6000, 2000), network, epochs, 128, seeds, may_have_norm)


def on_digits(hidden: list[int], epochs: int = 15) -> Task:
    return Task(digits, (1097, 350), partial(stack, 8, hidden), epochs, 64)


def on_series(
    name: str, sizes: tuple[int, int], inputs: int, classes: int, batch: int = 16, epochs: int = 15, layers: int = 2
) -> Task:
    return Task(partial(series, name), sizes, partial(stack, inputs, [128] * layers, classes), epochs, batch)


def on_windows(rows: int, validation: int, epochs: int) -> Task:
    return Task(partial(mnist1d, rows + validation), (rows, validation), partial(stack, 5, [128, 128]), epochs, 64)


TASKS: dict[str, Task] = {
    "digits, 2 layers": on_digits([128, 128]),
    "JapaneseVowels": on_series("JapaneseVowels", (216, 54), 12, 9, batch=32),
    "mnist mean, 2 layers": on_mnist([256, 512], 10),
    "Mackey-Glass": Task(mackey_glass, (2000, 500), partial(RegressionSNN, 1, [128, 128]), 8, 64, loss="squared"),
    "mnist, 200 rows": Task(sequential_mnist, (200, 100), partial(stack, 196, [256, 256]), 15, 16),
    "ArrowHead": on_series("ArrowHead", (26, 10), 6, 3, batch=8, epochs=30),
    "MNIST-1D, 1000 rows": on_windows(1000, 250, 15),
    "mnist mean, 9 layers": on_mnist([256] * 9, 6, 3),
    "Conv-BN, mnist": Task(mnist_images, (3000, 1000), partial(conv_norm, 1, 16 * 49), 5, 64, 3),
    "digits, 1 layer": on_digits([128]),
    "digits, 9 layers": on_digits([128] * 9),
    "ItalyPowerDemand": on_series("ItalyPowerDemand", (54, 13), 1, 2, batch=8, epochs=25),
    "USPS rows": on_series("usps_rows", (3000, 600), 16, 10, batch=64, epochs=6),
    "mnist1d_w5": on_series("mnist1d_w5", (3200, 800), 5, 10, batch=64, epochs=12),
    "mnist mean, 1 layer": on_mnist([512], 10),
    "mnist last, 2 layers": on_mnist([256, 512], 10, last=True),
    "addition, base 10": Task(
        addition, (2000, 500), partial(AdditionSNN, base=10, width=128, last_width=256), 12, 64, may_have_norm=False
    ),
    "recurrent, JapaneseVowels": Task(
        partial(series, "JapaneseVowels"), (216, 54), partial(RecurrentSNN, 12, 128, 9), 15, 32, may_have_norm=False
    ),
    "recurrent, USPS rows": Task(
        partial(series, "usps_rows"), (3000, 600), partial(RecurrentSNN, 16, 128, 10), 6, 64, may_have_norm=False
    ),
    "N-MNIST": Task(events, (700, 100), partial(stack, 578, [128, 128]), 10, 32),
    "mnist mean, 2 layers, no biases": on_mnist([256, 512], 10, may_have_norm=False, biases=False),
    "mnist mean, 9 layers, no biases": on_mnist([256] * 9, 6, 3, may_have_norm=False, biases=False),
    "mnist mean, 9 layers, paper's neuron": on_mnist([256] * 9, 6, 3, paper=True),
    "mnist mean, 9 layers, paper's neuron, no biases": on_mnist(
        [256] * 9, 6, 3, may_have_norm=False, biases=False, paper=True
    ),
    "XOR": Task(
        xor, (2000, 500), partial(ParallelSNN, width=128, last_width=256, depth=5), 15, 64, may_have_norm=False
    ),
    "MNIST-1D, 4000 rows": on_windows(4000, 1000, 12),
    "conv 6 layers, mnist": Task(
        mnist_images, (3000, 1000), partial(conv_deep, 1, 24 * 49), 5, 64, 3, may_have_norm=False
    ),
    "Conv-BN, CIFAR-10": Task(cifar, (3000, 1000), partial(conv_norm, 3, 16 * 64), 5, 64, 3),
    "conv 6 layers, CIFAR-10": Task(cifar, (3000, 1000), partial(conv_deep, 3, 24 * 64), 5, 64, 3, may_have_norm=False),
    "MNIST-1D, 30,000 rows": on_windows(30_000, 2000, 4),
    "mnist mean, 20 layers": on_mnist([128] * 20, 6, 3),
    "mnist last, 20 layers": on_mnist([128] * 20, 6, 3, last=True),
    "mnist mean, 4 layers": on_mnist([256] * 4, 10, 3),
    "mnist1d_w5, 6 layers": on_series("mnist1d_w5", (3200, 800), 5, 10, batch=64, epochs=12, layers=6),
    "mnist mean, 50 layers": on_mnist([128] * 50, 6, 3),
}
