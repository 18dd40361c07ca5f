"""Matrix products in float32 by oneDNN on CPUs with AVX-512: torch's own, by MKL, leave it unused on AMD's processors.

Of ten outputs they take half the time, of a hundred, too, and so do Grams. The sums have another order, no other
precision. Processors without AVX-512, other dtypes and devices, and all that lies in memory with gaps take torch's own
products: oneDNN is a thousand times slower on gaps. There is no public name for its product of plain tensors; that used
here is the one of `torch.compile`, with the same arguments in torch 2.6 and 2.14.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["few", "multiply"]

_FEW = 4  # rows of the left factor below which MKL is as fast
_SMALL = 2**15  # entries of the right one below which calls cost more than they save


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, ``[m, k]`` times ``[k, n]``."""
    if few(left) or right.numel() < _SMALL or not (_dense(right) and left.is_contiguous()):
        return left @ right
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
    return product


def few(left: Tensor) -> bool:
    """Whether oneDNN has nothing to gain, whatever the right factor is."""
    return len(left) < _FEW or left.dtype != torch.float32 or left.device.type != "cpu" or not _available()


def _dense(matrix: Tensor) -> bool:
    """Whether rows or columns lie one after the other, without gaps."""
    return matrix.is_contiguous() or matrix.T.is_contiguous()


@cache
def _available() -> bool:
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return wide and there and hasattr(torch.ops.mkldnn, "_linear_pointwise")
