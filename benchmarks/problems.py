"""The matrices of benchmarks/solvers.py: membranes at the last step of random spiking units, as in the paper.

The paper's neuron: leak 0.99 (tau = 100, undecayed input), soft reset, threshold 1; standard Gaussian witnesses; two
branches; a column is `1[h[T] >= 0]`.
"""

import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_cvxsnn.patterns import SpikeDictionary

BETAS = (1.0, 0.1, 0.01)
BRANCHES = 2


@dataclass(frozen=True)
class Problem:
    """A programme: `loss` is logistic for cross-entropy with one output."""

    name: str
    matrix: Tensor
    targets: Tensor
    loss: str
    rho: float
    fit_intercept: bool

    @property
    def arguments(self) -> dict:
        """Keyword arguments of `certificate`, but for the point."""
        loss = "cross_entropy" if self.loss == "logistic" else self.loss
        return {"loss": loss, "rho": self.rho, "fit_intercept": self.fit_intercept}

    @property
    def outputs(self) -> int | None:
        """Number of outputs if it is not the number of classes."""
        return 1 if self.loss == "logistic" else None


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


@lru_cache
def mnist(folder: Path, rows: int, columns: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sequential MNIST, 4 steps of 196 pixels, two hidden layers, the first of half the width."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset).astype(np.float64)
        for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    order = torch.randperm(labels.size, generator=torch.Generator().manual_seed(0))[:rows]
    x = torch.tensor(images).reshape(-1, 4, 196)[order].transpose(0, 1) / 255
    return membranes(x, (columns // 2, columns), 1, noise), torch.tensor(labels).long()[order]


@lru_cache
def teacher(rows: int, columns: int, classes: int) -> tuple[Tensor, Tensor]:
    """Bit strings whose class is the largest output of a random linear teacher, for the growth curves."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (rows, 14), generator=generator)
    x = torch.nn.functional.one_hot(bits, 2).transpose(0, 1)
    labels = ((bits - 0.5) @ torch.randn(14, classes, generator=generator)).argmax(1)
    return membranes(x, (columns,), 1), labels


def mixture(rows: int, columns: int, classes: int, device: str = "cpu") -> tuple[SpikeDictionary, Tensor]:
    """Counts of 4 steps of random units (leak 0.9, soft reset) that see a Gaussian mixture, and its labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 64, generator=generator)
    weights = (torch.randn(64, columns, generator=generator) / 8).to(device)
    labels = torch.randint(classes, (rows,), generator=generator)
    counts = torch.zeros(rows, columns, dtype=torch.uint8, device=device)
    for part in torch.arange(rows).split(2000):
        x = 0.4 * centres[labels[part]] + torch.randn(len(part), 64, generator=generator)
        drive, v = 0.45 * x.to(device) @ weights - 0.05, torch.zeros(len(part), columns, device=device)
        for _ in range(4):
            v = 0.9 * v + drive
            fired = v >= 1
            v -= fired.float()
            counts[part[0] : part[-1] + 1] += fired
    return SpikeDictionary(counts, 1 / 4), labels


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
