"""Spike patterns and column statistics on a GPU: the host's side of kernels.cu.

Outputs are torch tensors from torch's allocator; kernels run on torch's device and its current stream.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Backend = Literal["auto", "cupy", "torch"]
Size = tuple[int, int]
Arguments = tuple[Tensor | int | float, ...]

#: No fused multiply-add, no flushed denormals, true division: the rounding of torch.
OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")

_MOST_BLOCKS = 2**16 - 1  # in y
_ROWS_OF_A_PART = 2**10  # for the sums of scores, of which there are at most _PARTS
_PARTS = 32


def resolve_backend(backend: Backend, device: torch.device | str) -> Literal["cupy", "torch"]:
    """The backend that computes on tensors of ``device``.

    Args:
        backend: ``torch``, ``cupy``, or ``auto``: CuPy for tensors on a CUDA device where it is installed, else torch.
        device: Where the tensors are.

    Raises:
        ValueError: For an unknown backend, and for ``cupy`` without CuPy or for tensors that are not on a CUDA device.

    Example:
        >>> resolve_backend("auto", "cpu")
        'torch'
    """
    if backend not in get_args(Backend):
        raise ValueError(f"Found backend={backend!r}. Expected one of {list(get_args(Backend))}.")
    device = torch.device(device)
    installed = importlib.util.find_spec("cupy") is not None
    if backend == "cupy" and not installed:
        extra = f"cuda{(torch.version.cuda or '13').split('.')[0]}"
        raise ValueError(
            "backend='cupy' needs CuPy, which is not installed. Install it with "
            f"`pip install 'lightning-cvxsnn[{extra}]'`, or use backend='torch'."
        )
    if backend == "cupy" and device.type != "cuda":
        raise ValueError(
            f"backend='cupy' needs tensors on a CUDA device and found them on '{device}'. Move them to a GPU (CuPy "
            "comes with the extra cuda12 or cuda13 of lightning-cvxsnn), or use backend='torch'."
        )
    return "cupy" if installed and device.type == "cuda" and backend != "torch" else "torch"


def source() -> str:
    """The kernels as one CUDA C++ text. CuPy's cache of binaries would not notice a changed header."""
    folder = Path(__file__).parent
    include = '#include "neuron.h"'
    before, after = (folder / "kernels.cu").read_text().split(include)
    return before + (folder / "neuron.h").read_text() + after


@cache
def _module() -> Any:
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS)


def launch(name: str, blocks: Size, threads: Size, arguments: Arguments) -> None:
    """Run a kernel where its tensors are, in the order of torch's current stream, without copies."""
    import cupy

    device = next(a.device for a in arguments if isinstance(a, Tensor))
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device.index), stream:
        converted = tuple(
            cupy.from_dlpack(a.detach())
            if isinstance(a, Tensor)
            else np.int64(a)
            if isinstance(a, int)
            else np.float32(a)
            for a in arguments
        )
        _module().get_function(name)(blocks, threads, converted)


def spike_bits(currents: Tensor, constants: Arguments, membrane: bool) -> Tensor:
    """Packed bits ``[N, ceil(M / 8)]`` of the last step, or of the last charge, of ``[T, N, M]`` currents."""
    currents = currents.contiguous()
    _, rows, columns = currents.shape
    bits = torch.empty(rows, -(-columns // 8), dtype=torch.uint8, device=currents.device)
    _launch_units("spike_bits", currents, (*constants, int(membrane), bits))
    return bits


def spike_counts(currents: Tensor, constants: Arguments) -> Tensor:
    """Spike counts ``[N, M]`` of ``[T, N, M]`` currents: uint8, or uint16 beyond 255 steps."""
    currents = currents.contiguous()
    dtype = torch.uint8 if len(currents) < 2**8 else torch.uint16
    counts = torch.empty(currents.shape[1:], dtype=dtype, device=currents.device)
    _launch_units(f"spike_counts_{_name(counts)}", currents, (*constants, counts))
    return counts


def _launch_units(name: str, currents: Tensor, arguments: Arguments) -> None:
    steps, rows, columns = currents.shape
    blocks = -(-columns // 32), min(-(-rows // 8), _MOST_BLOCKS)
    launch(name, blocks, (32, 8), (currents, steps, rows, columns, *arguments))


def column_sums(stored: Tensor, packed_columns: int | None) -> Tensor:
    """Sums over the rows of packed bits or counts, int64 ``[P]``."""
    return _add_columns("column_sums", stored, packed_columns)


def column_hashes(stored: Tensor, packed_columns: int | None, seed: int) -> Tensor:
    """64-bit hashes of the columns of packed bits or counts, int64 ``[P]``."""
    return _add_columns("column_hashes", stored, packed_columns, seed)


def _add_columns(name: str, stored: Tensor, packed_columns: int | None, *arguments: int) -> Tensor:
    rows, columns = len(stored), packed_columns or stored.shape[1]
    totals = torch.zeros(columns, dtype=torch.int64, device=stored.device)
    blocks = -(-columns // 1024), min(-(-rows // 256), _MOST_BLOCKS)
    kind = "bits" if packed_columns else _name(stored)
    launch(f"{name}_{kind}", blocks, (128, 1), (stored.contiguous(), rows, columns, *arguments, totals))
    return totals


def column_scores(stored: Tensor, packed_columns: int | None, dual: Tensor) -> Tensor:
    """Products of the columns of packed bits or counts with ``dual [n, C]``, float32 or float64, ``[P, C]``."""
    (rows, outputs), columns = dual.shape, packed_columns or stored.shape[1]
    parts = min(-(-rows // _ROWS_OF_A_PART), _PARTS)
    partial = dual.new_empty(parts, columns, outputs)
    name = f"column_scores_{'bits' if packed_columns else _name(stored)}_{_name(dual)}"
    arguments = stored.contiguous(), rows, columns, dual.contiguous(), outputs, partial
    launch(name, (-(-columns // 1024), parts), (128, 1), arguments)
    return partial.sum(0)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
