"""Tasks of benchmarks/fair.py that were kept aside: nothing was chosen by them.

Series are those that the package aeon carries, from the UCR and UEA archives: unpack its wheel's `aeon/datasets/data`
as the folder `aeon` beside the others (`pip download --no-deps aeon`). Its speech is JapaneseVowels, which others have
seen already. USPS was seen row by row, here it is images. Vectors are shown at each of eight steps.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from fair_tasks import TASKS, Pool, RecurrentSNN, Task, as_rows, conv_deep, conv_norm, series, split, stack
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch.utils.data import TensorDataset

from lightning_cvxsnn import RegressionSNN

STEPS = 8  # for which a vector is shown


def read(path: Path) -> tuple[NDArray, list[str]]:
    """Series ``[N, T, channels]`` and labels of a file of aeon's format: a line each, channels between colons."""
    lines = path.read_text().lower().splitlines()
    cells = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line]
    found = [[channel.split(",") for channel in channels] for *channels, _ in cells]
    return np.array(found, dtype=np.float64).transpose(0, 2, 1), [label.strip() for *_, label in cells]


@lru_cache
def archive(name: str, window: int, file: str | None, values: bool, folder: Path) -> Pool:
    """Series cut into windows, ``[T / window, window x channels]``, standardised by the rows to train on.

    Args:
        name: Of the data.
        window: Time steps that come together.
        file: What its files begin with; None: its name.
        values: Whether labels are values, standardised too.
        folder: Of all data.
    """
    paths = [folder / "aeon" / name / f"{file or name}_{part}.ts" for part in ("TRAIN", "TEST")]
    (x, labels), (test, test_labels) = map(read, paths)
    mean, spread = x.mean((0, 1)), x.std((0, 1))
    together = [((part - mean) / spread)[:, : x.shape[1] // window * window] for part in (x, test)]
    together = [part.reshape(len(part), -1, window * part.shape[2]) for part in together]
    if values:
        y, test_y = (np.array(part, dtype=np.float32)[:, None] for part in (labels, test_labels))
        return as_rows(together[0], (y - y.mean()) / y.std()), as_rows(together[1], (test_y - y.mean()) / y.std())
    names = sorted(set(labels))
    classes, test_classes = (np.array([names.index(label) for label in part]) for part in (labels, test_labels))
    return as_rows(together[0], classes), as_rows(together[1], test_classes)


@lru_cache
def vectors(load: Callable[..., tuple[NDArray, NDArray]], folder: Path) -> Pool:
    """``[8, features]``, the same at each step, standardised over all rows; a quarter of the rows is to test on."""
    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    if y.dtype.kind == "f":
        y = ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    return split(as_rows(np.repeat(x[:, None], STEPS, 1), y), len(x) // 4)


@lru_cache
def usps_images(folder: Path) -> Pool:
    """``[1, 16, 16]``."""
    rows, test = (TensorDataset(part.tensors[0].unsqueeze(1), part.tensors[1]) for part in series("usps_rows", folder))
    return rows, test


def kept(
    name: str, sizes: tuple[int, int], window: int, epochs: int, layers: int = 0, *, file: str | None = None,
    classes: int, channels: int = 1,
) -> Task:  # fmt: skip
    """Of an archive; without ``layers`` a recurrent network."""
    inputs, batch = window * channels, 8 if sizes[0] < 100 else 16
    network = partial(stack, inputs, [128] * layers, classes) if layers else partial(RecurrentSNN, inputs, 128, classes)
    return Task(partial(archive, name, window, file, False), sizes, network, epochs, batch, may_have_norm=bool(layers))


UNSEEN: dict[str, Task] = {
    "GunPoint, 1 layer": kept("GunPoint", (40, 10), 10, 30, 1, classes=2),
    "BasicMotions, 2 layers": kept("BasicMotions", (32, 8), 4, 30, 2, classes=4, channels=6),
    "OSULeaf, 3 layers": kept("OSULeaf", (160, 40), 7, 20, 3, classes=6),
    "ACSF1, 4 layers": kept("ACSF1", (80, 20), 20, 30, 4, classes=10),
    "PickupGesture, 2 layers": kept(
        "PickupGestureWiimoteZ", (40, 10), 10, 30, 2, file="PickupGestureWiimoteZ_eq", classes=10
    ),
    "recurrent, BasicMotions": kept("BasicMotions", (32, 8), 4, 30, classes=4, channels=6),
    "recurrent, OSULeaf": kept("OSULeaf", (160, 40), 7, 20, classes=6),
    "Conv-BN, USPS images": Task(usps_images, (3000, 600), partial(conv_norm, 1, 16 * 16), 6, 64, 3),
    "conv 6 layers, USPS images": Task(
        usps_images, (3000, 600), partial(conv_deep, 1, 24 * 16), 6, 64, 3, may_have_norm=False
    ),
    "breast cancer, 1 layer": Task(
        partial(vectors, load_breast_cancer), (327, 100), partial(stack, 30, [128], 2), 15, 16
    ),
    "diabetes, 2 layers": Task(
        partial(vectors, load_diabetes), (232, 100), partial(RegressionSNN, 10, [128, 128]), 15, 16, loss="squared"
    ),
    "Covid3Month, 3 layers": Task(
        partial(archive, "Covid3Month", 7, None, True), (110, 30), partial(RegressionSNN, 7, [128] * 3), 20, 16,
        loss="squared",
    ),
}  # fmt: skip
#: By all names.
EVERY = TASKS | UNSEEN
