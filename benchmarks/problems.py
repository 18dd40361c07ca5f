"""The matrices of benchmarks/solvers.py: membranes at the last step of random spiking units, as in the paper.

The paper's neuron: leak 0.99 (tau = 100, undecayed input), soft reset, threshold 1; standard Gaussian witnesses; two
branches; a column is `1[h[T] >= 0]`. Spike counts of layers as users have them are in benchmarks/layers.py.
"""

import gzip
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_cvxsnn.patterns import SpikeDictionary

BETAS = (1.0, 0.1, 0.01)
BRANCHES = 2


@dataclass(frozen=True)
class Problem:
    """A programme, of labels `[n]` or float targets `[n, C]`; `loss` is logistic for cross-entropy with one output."""

    name: str
    matrix: Tensor | SpikeDictionary
    targets: Tensor
    loss: str
    rho: float
    fit_intercept: bool
    l1_ratio: float = 1.0

    @property
    def arguments(self) -> dict:
        """Keyword arguments of `certificate`, but for the point."""
        loss = "cross_entropy" if self.loss == "logistic" else self.loss
        mixed = {} if self.l1_ratio == 1 else {"l1_ratio": self.l1_ratio}
        return {"loss": loss, "rho": self.rho, "fit_intercept": self.fit_intercept} | mixed

    @property
    def outputs(self) -> int | None:
        """Number of outputs if it is not the number of classes."""
        return 1 if self.loss == "logistic" else None

    @property
    def width(self) -> int:
        """Number of outputs C."""
        if self.targets.dim() == 2:
            return self.targets.shape[1]
        classes = int(self.targets.max()) + 1
        return 1 if self.loss == "logistic" or (self.loss.endswith("hinge") and classes == 2) else classes

    @property
    def size(self) -> int:
        """Rows x columns x outputs."""
        return math.prod(self.matrix.shape) * self.width

    @property
    def penalty(self) -> Literal["l1", "ridge", "elastic net"]:
        """The kind of penalty."""
        return "l1" if self.l1_ratio == 1 else "ridge" if self.l1_ratio == 0 else "elastic net"

    def dense(self, order: Any = "F", dtype: Any = np.float64) -> NDArray:
        """The matrix as most solvers want it."""
        if isinstance(self.matrix, SpikeDictionary):
            torch_dtype = torch.float32 if dtype == np.float32 else torch.float64
            return np.asarray(self.matrix.to_dense(torch_dtype).numpy(), order=order)
        return np.asarray(self.matrix.numpy(), order=order, dtype=dtype)

    def corner(self, rows: int = 60, columns: int = 20) -> "Problem":
        """A small part, to compile on."""
        matrix = self.matrix
        part = matrix.rows(slice(rows)).to_dense() if isinstance(matrix, SpikeDictionary) else matrix[:rows]
        return replace(self, matrix=part[:, :columns], targets=self.targets[:rows])


def membranes(x: Tensor, widths: tuple[int, ...], seed: int, noise: float = 0.0) -> Tensor:
    """Bool `[n, widths[-1]]` of inputs `[T, n, d]`; `noise` is added to the witnesses, relative to their size."""
    generator = torch.Generator().manual_seed(seed)
    shaken = torch.Generator().manual_seed(seed + 1)
    columns = []
    for _ in range(BRANCHES):
        spikes = x.double()
        for width in widths:
            shape = (spikes.shape[2], width // BRANCHES)
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            weight += noise * torch.randn(shape, generator=shaken, dtype=torch.float64)
            v, fired = torch.zeros(x.shape[1], shape[1], dtype=torch.float64), []
            for current in spikes @ weight:
                h = 0.99 * v + current
                fired.append((h >= 1).double())
                v = h - fired[-1]
            spikes = torch.stack(fired)
        columns.append(h >= 0)
    return torch.cat(columns, 1)


@lru_cache
def xor(rows: int, columns: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """FIRST-LAST-XOR, 14 steps, one hidden layer."""
    bits = torch.randint(0, 2, (rows, 14), generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.one_hot(bits, 2).transpose(0, 1)
    return membranes(x, (columns,), 1, noise), bits[:, 0] ^ bits[:, -1]


def images(folder: Path, rows: int) -> tuple[Tensor, Tensor]:
    """The first rows of MNIST's test images in one random order: float64 `[n, 784]` in [0, 1], and labels."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset).astype(np.float64)
        for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    order = torch.randperm(labels.size, generator=torch.Generator().manual_seed(0))[:rows]
    return torch.tensor(pixels).reshape(-1, 784)[order] / 255, torch.tensor(labels).long()[order]


@lru_cache
def mnist(folder: Path, rows: int, columns: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sequential MNIST, 4 steps of 196 pixels, two hidden layers, the first of half the width."""
    x, labels = images(folder, rows)
    return membranes(x.reshape(-1, 4, 196).transpose(0, 1), (columns // 2, columns), 1, noise), labels


@lru_cache
def teacher(rows: int, columns: int, classes: int) -> tuple[Tensor, Tensor]:
    """Bit strings whose class is the largest output of a random linear teacher, for the growth curves."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (rows, 14), generator=generator)
    x = torch.nn.functional.one_hot(bits, 2).transpose(0, 1)
    labels = ((bits - 0.5) @ torch.randn(14, classes, generator=generator)).argmax(1)
    return membranes(x, (columns,), 1), labels


def spike_counts(currents: Iterable[Tensor]) -> Tensor:
    """uint8 `[n, P]`: spikes of units (leak 0.9, soft reset, threshold 1) on currents `[n, P]`, one for each step."""
    v: Any = 0.0
    counts: Any = 0
    for current in currents:
        v = 0.9 * v + current
        fired = v >= 1
        v = v - fired.float()
        counts = counts + fired.to(torch.uint8)
    return counts


def mixture(
    rows: int, columns: int, classes: int, device: str = "cpu", clusters: int | None = None
) -> tuple[SpikeDictionary, Tensor]:
    """Counts of 4 steps of random units that see a Gaussian mixture, and its labels; a class has `clusters / classes`.

    More clusters than classes: classes that no plane separates.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters or classes, 64, generator=generator)
    weights = (torch.randn(64, columns, generator=generator) / 8).to(device)
    labels = torch.randint(clusters or classes, (rows,), generator=generator)
    counts = []
    for part in torch.arange(rows).split(2000):
        x = 0.4 * centres[labels[part]] + torch.randn(len(part), 64, generator=generator)
        counts.append(spike_counts([0.45 * x.to(device) @ weights - 0.05] * 4))
    return SpikeDictionary(torch.cat(counts), 1 / 4), labels % classes


def programme(name: str, data: tuple[Tensor, Tensor], loss: str, beta: float, distinct: bool = False) -> Problem:
    """The programme at `rho = beta / sqrt(P)`, P counting duplicates; logistic has no intercept (liblinear, celer)."""
    matrix, labels = data
    rho = beta / math.sqrt(matrix.shape[1])
    if distinct:
        matrix = torch.unique(matrix, dim=1)
    targets = 2.0 * labels[:, None].double() - 1 if loss == "squared" else labels
    return Problem(name, matrix.double(), targets, loss, rho, fit_intercept=loss != "logistic")


def problems(folder: Path, quick: bool) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Names of the programmes of the comparison and how to make them."""
    rows, columns = (200, 100) if quick else (2000, 1000)
    for loss in ("hinge", "squared", "logistic"):
        for distinct in (False, True):
            for beta in BETAS:
                name = f"xor-{loss}-{'distinct' if distinct else 'raw'}-{beta:g}"
                yield name, partial(_xor, name, rows, columns, loss, beta, distinct)
    for rows, columns in ((200, 32),) if quick else ((1000, 256), (6000, 1024)):
        for beta in BETAS[1:]:
            name = f"mnist{rows}-softmax-{beta:g}"
            yield name, partial(_mnist, name, folder, rows, columns, beta)


def _xor(name: str, rows: int, columns: int, loss: str, beta: float, distinct: bool) -> Problem:
    return programme(name, xor(rows, columns), loss, beta, distinct)


def _mnist(name: str, folder: Path, rows: int, columns: int, beta: float) -> Problem:
    return programme(name, mnist(folder, rows, columns), "cross_entropy", beta)
