"""What a spiking neuron does with its input currents, in spikingjelly's order of operations."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_cvxsnn.patterns import kernels
from lightning_cvxsnn.patterns.bits import pack_bits
from lightning_cvxsnn.patterns.dictionary import SpikeDictionary

PatternKind = Literal["last", "membrane", "mean", "sum"]

_BLOCK = 2**17  # voltages at a time: the scan's temporaries stay in the processor's cache
_DEVICE_BLOCK = 2**26  # the same on any other device


@dataclass(frozen=True)
class Neuron:
    """The constants of an integrate-and-fire neuron: all that decides which currents make it fire.

    With input x, voltage v and r = ``v_reset`` (0 for a soft reset) one step charges, fires where
    ``h >= v_threshold`` (a tie fires) and resets:

    - ``h = v + x``, an IF neuron: neither ``tau`` nor ``decay``;
    - ``h = v + (x - (v - r)) / tau``, or ``h = v - (v - r) / tau + x`` without ``decay_input``: LIF;
    - the same with ``* decay`` for ``/ tau``: the parametric LIF of Fang et al. (ICCV 2021), which learns
      ``decay = sigmoid(w)``. The two round differently, so a neuron has one or the other.

    Attributes:
        tau: Membrane time constant in steps, at least 1.
        decay: The factor of a parametric LIF, in [0, 1].
        decay_input: Whether the input is divided by ``tau`` (multiplied by ``decay``) too.
        v_threshold: The voltage at which it fires.
        v_reset: The voltage after a spike; ``None``: soft reset, ``v_threshold`` is subtracted.
        v_initial: The voltage before the first step; ``None``: r, as spikingjelly has it.

    Raises:
        ValueError: If a constant is out of range or not finite in float32, or both ``tau`` and ``decay`` are given.

    Example:
        >>> Neuron(tau=2.0, v_reset=None).leak
        0.5
    """

    tau: float | None = None
    decay: float | None = None
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    v_initial: float | None = None

    def __post_init__(self) -> None:
        if self.tau is not None and self.decay is not None:
            raise ValueError(f"Found tau={self.tau} and decay={self.decay}. Expected one of them: decay is 1/tau.")
        for name, low, high in (
            ("tau", 1.0, math.inf),
            ("decay", 0.0, 1.0),
            ("v_threshold", -math.inf, math.inf),
            ("v_reset", -math.inf, math.inf),
            ("v_initial", -math.inf, math.inf),
        ):
            value = getattr(self, name)
            if value is None and name != "v_threshold":
                continue
            if not (low <= value <= high and abs(value) <= torch.finfo(torch.float32).max):
                raise ValueError(
                    f"Found {name}={value!r}. Expected a number that is finite in float32, in [{low}, {high}]."
                )

    @property
    def leak(self) -> float:
        """The fraction of the voltage that is retained from one step to the next; 1 for an IF neuron."""
        if self.tau is not None:
            return 1 - 1 / self.tau
        return 1.0 if self.decay is None else 1 - self.decay

    @property
    def firing_current(self) -> float:
        """The least current of the first step that makes it fire.

        Example:
            >>> Neuron(tau=4.0).firing_current
            4.0
        """
        charge, _, constant, threshold, reset, initial = self.kernel_arguments
        share = {2: 1 / constant, 4: constant}.get(int(charge), 1.0) if charge else 1.0
        charged = initial - (1 - self.leak) * (initial - reset)
        return (threshold - charged) / share if share else math.inf

    @property
    def kernel_arguments(self) -> tuple[int | float, ...]:
        """What neuron.h takes: kind of charge, hard reset or not, tau or decay, threshold, reset, initial voltage."""
        charge, constant = 0, 0.0
        if self.tau is not None:
            charge, constant = 1 + int(self.decay_input), self.tau
        elif self.decay is not None:
            charge, constant = 3 + int(self.decay_input), self.decay
        reset = 0.0 if self.v_reset is None else self.v_reset
        initial = reset if self.v_initial is None else self.v_initial
        return charge, int(self.v_reset is not None), *map(float, (constant, self.v_threshold, reset, initial))

    def steps(self, currents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the voltage after charging and where it fires, float32 and bool ``[*]``, for each of ``[T, *]``."""
        charge, _, constant, _, reset, initial = self.kernel_arguments
        # On a GPU torch multiplies by the reciprocal of a Python number, which rounds twice; a tensor it divides by.
        factor = torch.tensor(constant, dtype=torch.float32, device=currents.device)
        v = torch.full_like(currents[0], initial)
        for x in currents:
            if charge == 0:
                h = v + x
            else:
                change = x - (v - reset) if self.decay_input else v - reset
                change = change / factor if self.decay is None else change * factor
                h = v + change if self.decay_input else v - change + x
            fires = h >= self.v_threshold
            yield h, fires
            # Multiplied out, because spikingjelly does: an infinite voltage leaves NaN behind a hard reset.
            spike = fires.to(h)
            v = h - spike * self.v_threshold if self.v_reset is None else spike * reset + (1 - spike) * h


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
        constants = neuron.kernel_arguments
        if packed_columns is None:
            counts = kernels.spike_counts(currents, constants)
        else:
            counts = kernels.spike_bits(currents, constants, kind == "membrane")
        return SpikeDictionary(counts, scale, packed_columns)
    size = _BLOCK if currents.device.type == "cpu" else _DEVICE_BLOCK
    blocks = [_reduce(neuron, part, kind) for part in currents.split(max(size // columns, 1), dim=1)]
    return SpikeDictionary(torch.cat(blocks), scale, packed_columns)


def _reduce(neuron: Neuron, currents: Tensor, kind: PatternKind) -> Tensor:
    if kind in ("last", "membrane"):
        ((voltage, fires),) = deque(neuron.steps(currents), maxlen=1)
        return pack_bits(voltage >= 0 if kind == "membrane" else fires)
    counts = torch.zeros(currents.shape[1:], dtype=torch.int32, device=currents.device)
    for _, fires in neuron.steps(currents):
        counts += fires
    return counts.to(torch.uint8 if len(currents) < 2**8 else torch.uint16)
