"""Spike counts of one LIF layer on sequential MNIST, trained and random: what a readout sees of a user's network.

Everything comes from a seed and is made by one thread, so that a name and a size mean one matrix on a machine. What
takes more than a moment is kept in a folder outside the repository, for the MNIST files that were named first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from problems import images, spike_counts
from spikingjelly.activation_based import functional
from torch import Tensor
from torch.nn import functional as F

from lightning_cvxsnn import LitSNN
from lightning_cvxsnn.patterns import SpikeDictionary

STEPS, PIXELS = 4, 196
CACHE = Path.home() / ".cache/lightning_cvxsnn/benchmarks"
Data = tuple[SpikeDictionary, Tensor]


@dataclass(frozen=True)
class Sources:
    """Folder of the MNIST IDX files, and where matrices are kept."""

    mnist: Path
    cache: Path = CACHE


def kept(make: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Data]:
    """Counts and labels of `make(folder, *sizes)`, by one thread from seed 0, from the cache where they are there."""

    @wraps(make)
    def load(sources: Sources, *sizes: int) -> Data:
        path = sources.cache / f"{'-'.join([make.__name__, *map(str, sizes)])}.pt"
        if not path.exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made = make(sources.mnist, *sizes)
            torch.set_num_threads(threads)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(made, path)
        counts, labels = torch.load(path, weights_only=True)
        return SpikeDictionary(counts, 1 / STEPS), labels

    return load


@kept
def trained(folder: Path, rows: int, columns: int, epochs: int) -> tuple[Tensor, Tensor]:
    """A layer after surrogate-gradient training (Adam at 1e-2, batches of 128); more epochs continue the same run."""
    x, labels = images(folder, rows)
    x = x.float().reshape(-1, STEPS, PIXELS)
    net = LitSNN(PIXELS, [columns])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), labels[batch]).backward()
            optimizer.step()
    counts = []
    with torch.no_grad():
        for part in x.split(1000):
            functional.reset_net(net.layers)
            counts.append(net.layers(part.transpose(0, 1)).sum(0).to(torch.uint8))
    return torch.cat(counts), labels


@kept
def random_layer(folder: Path, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A layer with Gaussian weights that spikes at a rate near 0.15; beyond 10,000 rows of shifted, noisy images."""
    x, labels = images(folder, rows)
    weight = torch.randn(PIXELS, columns) / PIXELS**0.5
    counts = []
    if rows > len(x):
        drawn = torch.randint(len(x), (rows,))
        labels = labels[drawn]
        parts = (_shaken(x[part].float()) for part in drawn.split(2000))
    else:
        parts = iter(x.float().split(2000))
    for part in parts:
        currents = (part.reshape(-1, STEPS, PIXELS).transpose(0, 1) - 0.13) / 0.31 @ weight
        counts.append(spike_counts(GAIN * currents))
    return torch.cat(counts), labels


#: Of the currents of a random layer, for its rate.
GAIN = 0.8


def _shaken(x: Tensor) -> Tensor:
    """Images `[n, 784]`, each moved by up to two pixels in both directions, with noise."""
    moves = torch.randint(-2, 3, (len(x), 2)).tolist()
    moved = torch.stack([image.roll(move, (0, 1)) for image, move in zip(x.reshape(-1, 28, 28), moves, strict=True)])
    return (moved.flatten(1) + 0.05 * torch.randn(x.shape)).clamp(0, 1)


def regression(sources: Sources, rows: int, columns: int, targets: int) -> Data:
    """A random layer, and real targets `[n, targets]`: random units of the images, with noise.

    Their deviation is about 0.1, at which an L1 readout of beta 0.01 has a few hundred columns.
    """
    dictionary, _ = random_layer(sources, rows, columns)
    x, _ = images(sources.mnist, rows)
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(784, targets, generator=generator, dtype=torch.float64) / 14
    y = torch.tanh((x - 0.13) / 0.31 @ teacher)
    return dictionary, 0.1 * y + 0.05 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
