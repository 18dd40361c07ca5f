"""Matrices of zeros and ones, eight columns to a byte."""

import torch
from torch import Tensor


def pack_bits(values: Tensor) -> Tensor:
    """Bytes ``[n, ceil(P / 8)]`` of zeros and ones ``[n, P]``; column j is bit ``j % 8`` of byte ``j // 8``.

    Example:
        >>> pack_bits(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 1, 1]]))
        tensor([[1, 3]], dtype=torch.uint8)
    """
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.shape[1] % 8))
    packed = torch.zeros(len(values), padded.shape[1] // 8, dtype=torch.uint8, device=values.device)
    for bit in range(8):
        packed |= padded[:, bit::8] << bit
    return packed


def unpack_bits(packed: Tensor, size: int) -> Tensor:
    """The uint8 matrix ``[n, size]`` of packed bits."""
    values = packed.new_empty(len(packed), packed.shape[1], 8)
    for bit in range(8):
        values[:, :, bit] = (packed >> bit) & 1
    return values.flatten(1)[:, :size]


def gather_bits(packed: Tensor, index: Tensor) -> Tensor:
    """Some columns of packed bits, as a uint8 matrix ``[n, k]``."""
    return (packed.index_select(1, index // 8) >> (index % 8).to(torch.uint8)) & 1
