"""Witnesses: samplers of the hidden weights behind the columns of the dictionary.

Random kinds after Udupi, Yang, Zhai, arXiv 2605.08022 (2026); weights from pairs of training points after Bolager et
al., "Sampling weights of deep neural networks" (NeurIPS 2023).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from scipy.special import kolmogorov
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.isolation import reached
from lightning_cvxsnn.witnesses.layer import check_writable

GaussianKind = Literal["gaussian_standard", "gaussian_normalized", "gaussian_orthogonal"]

_TINY = 1e-12
_FLOAT32 = 1e-6  # rounding of a bound
_LEVEL = 1e-3
_BINS = 2**14  # finer than what any layer's weights can tell


def is_initialised(affine: nn.Module) -> bool:
    """Whether a layer's weights and biases can be told from none that its constructor draws.

    Every one of a Linear or Conv layer's is drawn from the uniform distribution over +-1/sqrt(fan_in) (the kaiming
    initialisation of torch, Glorot and He). Weights that are frozen, computed from others, leave the interval or fail
    the Kolmogorov-Smirnov test of that distribution at the level 0.001 are somebody's own.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> affine = nn.Linear(20, 30)
        >>> is_initialised(affine), is_initialised(nn.BatchNorm1d(20))
        (True, False)
        >>> with torch.no_grad():
        ...     _ = affine.weight.mul_(0.5)
        >>> is_initialised(affine)
        False
    """
    if not isinstance(affine, (nn.Linear, _ConvNd)):
        return False
    drawn = [affine._parameters.get(name) for name in ("weight", "bias") if getattr(affine, name) is not None]
    for parameter in drawn:
        if parameter is None or not parameter.requires_grad:  # computed, or frozen
            return False
        scaled = parameter.detach().float().flatten().cpu() * affine.weight[0].numel() ** 0.5
        if not bool((scaled.abs() <= 1 + _FLOAT32).all()) or not _looks_uniform(scaled.clamp(-1, 1)):
            return False
    return True


def _looks_uniform(values: Tensor) -> bool:
    """The Kolmogorov-Smirnov test on [-1, 1], by counts in bins: sorting millions of weights takes half a second."""
    share = torch.histc(values, _BINS, -1, 1).double().cumsum(0) / len(values)
    distance = (share - torch.arange(1, _BINS + 1, dtype=torch.float64) / _BINS).abs().max()
    root = len(values) ** 0.5
    return bool(kolmogorov((root + 0.12 + 0.11 / root) * float(distance)) >= _LEVEL)  # Stephens, JRSS B 32, 1970


def affine_names(module: nn.Module, x: Any, readout: nn.Linear) -> list[str]:
    """Names of the Linear and Conv layers that a pass over ``x`` reaches before ``readout``, in order."""
    order = reached(module, x, lambda m: isinstance(m, (nn.Linear, _ConvNd)))
    return [name for name in dict.fromkeys(order) if module.get_submodule(name) is not readout]


def gaussian(kind: GaussianKind, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The paper's random witnesses: independent N(0, 1), rows of unit norm, or orthonormal rows.

    More rows than their length cannot all be orthogonal: they are in blocks of that many.

    Args:
        kind: Which of the three.
        shape: ``[M, ...]``, the shape of a weight of M units; the rest of it is one row.
        generator: Source of randomness, on the CPU.

    Example:
        >>> w = gaussian("gaussian_orthogonal", (4, 2), torch.Generator().manual_seed(0))
        >>> (w[:2] @ w[:2].T).round(decimals=3).abs(), w.norm(dim=1)
        (tensor([[1., 0.],
                [0., 1.]]), tensor([1.0000, 1.0000, 1.0000, 1.0000]))
    """
    flat = torch.randn(shape, generator=generator).flatten(1)
    if kind == "gaussian_normalized":
        flat = flat / flat.norm(dim=1, keepdim=True)
    if kind == "gaussian_orthogonal":
        flat = torch.cat([torch.linalg.qr(block.T)[0].T for block in flat.split(flat.shape[1])])
    return flat.reshape(shape)


@torch.no_grad()
def write_gaussian(module: nn.Module, names: Sequence[str], kind: GaussianKind, seed: int) -> None:
    """Write random witnesses into the affine layers called ``names``, and zeros into their biases.

    Raises:
        ValueError: If one of them cannot be written.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        check_writable(module, name)
        affine: Any = module.get_submodule(name)
        affine.weight.copy_(gaussian(kind, affine.weight.shape, generator))
        if affine.bias is not None:
            affine.bias.zero_()


def pairs(inputs: Tensor, targets: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training points two by two, with different targets wherever random pairs allow it.

    Args:
        inputs: ``[T, N, ...]``; both points of a pair are taken at the same, random step.
        targets: ``[N, ...]``, a target of each sample.
        count: Number of pairs.
        generator: Source of randomness, on the CPU.

    Returns:
        Two of ``[count, ...]``.
    """
    steps, samples = inputs.shape[:2]
    first, second = torch.randint(samples, (2, 2 * count), generator=generator)
    differ = (
        (targets[first] != targets[second]).flatten(1).any(1)
        if targets.dim() > 1
        else targets[first] != targets[second]
    )
    chosen = differ.int().argsort(descending=True, stable=True)[:count]
    step = torch.randint(steps, (count,), generator=generator)
    return inputs[step, first[chosen]], inputs[step, second[chosen]]


def between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[M, F]`` and biases ``[M]`` of units whose current is 1 at one point and -1 at another.

    Args:
        first: ``[M, F]``.
        second: ``[M, F]``.
    """
    apart = first - second
    weight = 2 * apart / apart.square().sum(1, keepdim=True).clamp_min(_TINY)
    return weight, -(weight * (first + second)).sum(1) / 2
