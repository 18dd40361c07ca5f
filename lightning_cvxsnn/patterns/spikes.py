"""The spikes that a neuron makes of its input currents, as trains and as the dictionary that a readout receives."""

from collections import deque
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_cvxsnn.patterns import kernels
from lightning_cvxsnn.patterns.bits import pack_bits
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary
from lightning_cvxsnn.patterns.neuron import Neuron

PatternKind = Literal["last", "membrane", "mean", "sum"]

_BLOCK = 2**17  # voltages at a time: the scan's temporaries stay in the processor's cache
_DEVICE_BLOCK = 2**26  # the same on any other device


@torch.no_grad()
def spike_trains(neuron: Neuron, currents: Tensor) -> Tensor:
    """The spikes of a neuron from its initial voltage on, bit for bit those of spikingjelly's module on the CPU.

    Args:
        neuron: Its constants.
        currents: ``[T, *]`` float32 input currents; infinities and NaN are allowed.

    Returns:
        ``[T, *]`` float32 zeros and ones.

    Raises:
        ValueError: If ``currents`` is not float32 or has no time step.

    Example:
        >>> spike_trains(Neuron(tau=2.0), torch.full((5, 1), 1.5))[:, 0]
        tensor([0., 1., 0., 1., 0.])
    """
    if currents.dtype != torch.float32 or currents.dim() == 0 or len(currents) == 0:
        raise ValueError(
            f"Found currents of shape {list(currents.shape)}, {currents.dtype}. Expected float32 [T, *], T at least 1."
        )
    return torch.stack([fires.to(currents) for _, fires in neuron.steps(currents)])


@torch.no_grad()
def spike_patterns(
    neuron: Neuron, currents: Tensor, kind: PatternKind, backend: kernels.Backend = "auto"
) -> SpikeDictionary:
    """What a readout receives from M units for N rows, without the ``[T, N, M]`` spikes in between.

    Args:
        neuron: The constants that the units share.
        currents: ``[T, N, M]`` float32 input currents. On a GPU they are read where they are if contiguous.
        kind: ``last``: the spike at the last step; ``membrane``: ``1[h[T] >= 0]`` of the voltage h after the last
            charge (the paper's choice, arXiv 2605.08022); ``mean`` and ``sum``: the number of spikes, with a scale of
            1/T and 1.
        backend: See `resolve_backend`; every backend gives the same bits.

    Returns:
        ``[N, M]`` on the device of ``currents``: packed bits for ``last`` and ``membrane``, else uint8 counts (uint16
        beyond 255 steps).

    Raises:
        ValueError: If ``currents`` is not a float32 ``[T, N, M]`` with sizes of at least 1 and T below 65536, for an
            unknown ``kind``, or if the backend is not available.

    Example:
        >>> spike_patterns(Neuron(tau=2.0), torch.tensor([[[1.5, 3.0]], [[1.5, 0.0]]]), "last").to_dense()
        tensor([[1., 0.]], dtype=torch.float64)
    """
    if currents.dtype != torch.float32 or currents.dim() != 3 or 0 in currents.shape or len(currents) >= 2**16:
        raise ValueError(
            f"Found currents of shape {list(currents.shape)}, {currents.dtype}. Expected float32 [T, N, M] with sizes "
            "of at least 1 and fewer than 65536 steps."
        )
    if kind not in get_args(PatternKind):
        raise ValueError(f"Found kind={kind!r}. Expected one of {list(get_args(PatternKind))}.")
    steps, _, columns = currents.shape
    scale = 1 / steps if kind == "mean" else 1.0
    packed_columns = columns if kind in ("last", "membrane") else None
    if kernels.resolve_backend(backend, currents.device) == "cupy":
        if packed_columns is None:
            counts = kernels.spike_counts(currents, neuron)
        else:
            counts = kernels.spike_bits(currents, neuron, kind == "membrane")
        return SpikeDictionary(counts, scale, packed_columns)
    size = _BLOCK if currents.device.type == "cpu" else _DEVICE_BLOCK
    blocks = [_reduce(neuron, part, kind) for part in torch.split(currents, max(size // columns, 1), dim=1)]
    return SpikeDictionary(torch.cat(blocks), scale, packed_columns)


def _reduce(neuron: Neuron, currents: Tensor, kind: PatternKind) -> Tensor:
    if kind in ("last", "membrane"):
        ((voltage, fires),) = deque(neuron.steps(currents), maxlen=1)
        return pack_bits(voltage >= 0 if kind == "membrane" else fires)
    counts = torch.zeros(currents.shape[1:], dtype=torch.int32, device=currents.device)
    for _, fires in neuron.steps(currents):
        counts += fires
    return counts.to(torch.uint8 if len(currents) < 2**8 else torch.uint16)
