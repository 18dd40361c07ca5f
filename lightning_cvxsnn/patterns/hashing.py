"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64 tensors, whose arithmetic is modulo 2^64."""

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # what the generator adds to its state at each step


def mix64(z: Tensor) -> Tensor:
    """The generator's output at the states ``z``, int64: a fixed permutation of all 64-bit numbers.

    Example:
        >>> mix64(torch.tensor([0, 1]))
        tensor([                  0, 6238072747940578789])
    """
    z = (z ^ z >> 30 & 2**34 - 1) * (0xBF58476D1CE4E5B9 - 2**64)  # the masks make the shifts logical
    z = (z ^ z >> 27 & 2**37 - 1) * (0x94D049BB133111EB - 2**64)
    return z ^ z >> 31 & 2**33 - 1


def random_keys(size: int, seed: int) -> Tensor:
    """The first ``size`` outputs of the generator, int64 ``[size]`` on the CPU."""
    return mix64(seed + torch.arange(1, size + 1, device="cpu") * _GAMMA)
