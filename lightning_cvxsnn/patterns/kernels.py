"""Spike patterns on a GPU: the host's side of kernels.cu.

Outputs are torch tensors from torch's allocator; kernels run on torch's device and its current stream.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_cvxsnn.patterns.neuron import Neuron

Backend = Literal["auto", "cupy", "torch"]
Size = tuple[int, int]
Arguments = tuple[Tensor | int, ...]

#: No fused multiply-add, no flushed denormals, true division: the rounding of torch.
OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")

_MOST_BLOCKS = 2**16 - 1  # CUDA's limit in y; the kernels stride over rows beyond it


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
            f"`pip install '.[{extra}]'` in the folder of the checkout, or use backend='torch'."
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
        converted = tuple(cupy.from_dlpack(a.detach()) if isinstance(a, Tensor) else np.int64(a) for a in arguments)
        _module().get_function(name)(blocks, threads, converted)


def spike_bits(currents: Tensor, neuron: Neuron, membrane: bool) -> Tensor:
    """Packed bits ``[N, ceil(M / 8)]`` of the last step, or of the last charge, of ``[T, N, M]`` currents."""
    _, rows, columns = currents.shape
    bits = torch.empty(rows, -(-columns // 8), dtype=torch.uint8, device=currents.device)
    _launch_units("spike_bits", currents, neuron, (int(membrane), bits))
    return bits


def spike_counts(currents: Tensor, neuron: Neuron) -> Tensor:
    """Spike counts ``[N, M]`` of ``[T, N, M]`` currents: uint8, or uint16 beyond 255 steps."""
    dtype = torch.uint8 if len(currents) < 2**8 else torch.uint16
    counts = torch.empty(currents.shape[1:], dtype=dtype, device=currents.device)
    _launch_units(f"spike_counts_{str(dtype).removeprefix('torch.')}", currents, neuron, (counts,))
    return counts


def _launch_units(name: str, currents: Tensor, neuron: Neuron, arguments: Arguments) -> None:
    steps, rows, columns = currents.shape
    constants = torch.tensor(neuron.kernel_constants, dtype=torch.float32, device=currents.device)
    model = neuron.kernel_model, int(neuron.v_reset is not None), constants
    blocks = -(-columns // 32), min(-(-rows // 8), _MOST_BLOCKS)
    launch(name, blocks, (32, 8), (currents.contiguous(), steps, rows, columns, *model, *arguments))
