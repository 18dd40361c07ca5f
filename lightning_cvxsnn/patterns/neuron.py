"""Models of spiking neurons: how they charge, fire and reset, in spikingjelly's order of operations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Vector = TypeVar("_Vector", Tensor, NDArray[np.float64])
_Scalar = TypeVar("_Scalar", Tensor, float)
_ANY = (-math.inf, math.inf)


class LinearForm(NamedTuple):
    """One step of a neuron in exact arithmetic: linear in its voltage and input, once its spikes are known.

    An affine function of the input weights w, ``normal @ w + constant``, therefore stays one over the steps.

    Attributes:
        slope: The charge is ``h = slope * v + gain * x + offset``.
        gain: Factor of the input.
        offset: Voltage that every charge adds.
        kept: A spike leaves the voltage ``kept * h + after_spike``; without one it stays h.
        after_spike: See ``kept``.
    """

    slope: float
    gain: float
    offset: float
    kept: float
    after_spike: float

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The voltage that the input x makes of v, both float64."""
        return self.slope * v + self.offset + self.gain * x

    def reset(self, h: Tensor, fires: Tensor) -> Tensor:
        """The voltage that is left of h, float64, by the spikes ``fires``, bool."""
        return torch.where(fires, self.kept * h + self.after_spike, h)

    def charge_affine(self, normal: _Vector, constant: _Scalar, x: _Vector) -> tuple[_Vector, _Scalar]:
        """Normal and constant of the charged voltage ``h(w)`` for the input ``x @ w``."""
        return self.slope * normal + self.gain * x, self.slope * constant + self.offset

    def reset_affine(self, normal: _Vector, constant: _Scalar) -> tuple[_Vector, _Scalar]:
        """Normal and constant of the voltage that a spike leaves."""
        return self.kept * normal, self.kept * constant + self.after_spike


@dataclass(frozen=True)
class Neuron:
    """The constants of an integrate-and-fire neuron, and what it does with them: charge, fire, reset.

    With input x, voltage v and r = ``v_reset`` (0 for a soft reset) one step charges, fires where
    ``h >= v_threshold`` (a tie fires) and resets:

    - ``h = v + x``, an IF neuron: neither ``tau`` nor ``decay``;
    - ``h = v + (x - (v - r)) / tau``, or ``h = v - (v - r) / tau + x`` without ``decay_input``: LIF;
    - the same with ``* decay`` for ``/ tau``: the parametric LIF of Fang et al. (ICCV 2021), which learns
      ``decay = sigmoid(w)``. The two round differently, so a neuron has one or the other.

    Another model is a subclass with its own `charge` and whatever else differs, and a struct of neuron.h.

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

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "tau": (1.0, math.inf),
        "decay": (0.0, 1.0),
        "v_threshold": _ANY,
        "v_reset": _ANY,
        "v_initial": _ANY,
    }
    _optional: ClassVar[set[str]] = {"tau", "decay", "v_reset", "v_initial"}

    def __post_init__(self) -> None:
        if self.tau is not None and self.decay is not None:
            raise ValueError(f"Found tau={self.tau} and decay={self.decay}. Expected one of them: decay is 1/tau.")
        for name, (low, high) in self._ranges.items():
            value = getattr(self, name)
            if value is None:
                fine = name in self._optional
            else:
                fine = low <= value <= high and abs(value) <= torch.finfo(torch.float32).max
            if not fine:
                raise ValueError(
                    f"Found {name}={value!r}. Expected a number that is finite in float32, in [{low}, {high}]."
                )

    @property
    def resting_voltage(self) -> float:
        """The voltage r towards which it leaks: ``v_reset``, or 0 for a soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def initial_voltage(self) -> float:
        """The voltage before the first step."""
        return self.resting_voltage if self.v_initial is None else self.v_initial

    @property
    def leak(self) -> float:
        """The fraction of the voltage that is retained from one step to the next; 1 for an IF neuron."""
        if self.tau is not None:
            return 1 - 1 / self.tau
        return 1.0 if self.decay is None else 1 - self.decay

    @property
    def firing_current(self) -> float:
        """The least current of the first step that makes it fire; infinite if there is none.

        Example:
            >>> Neuron(tau=4.0).firing_current
            4.0
        """
        return self._current_for(self.v_threshold)

    def _current_for(self, voltage: float) -> float:
        """The current of the first step that charges an IF or LIF neuron of these constants to ``voltage``."""
        form = Neuron.linear_form(self)
        charged = form.slope * self.initial_voltage + form.offset
        return (voltage - charged) / form.gain if form.gain else math.inf

    def linear_form(self) -> LinearForm:
        """One step in exact arithmetic, for margins and for enumerating spike trains.

        Raises:
            ValueError: If the model has none: its voltage is not linear in the input even where its spikes are known.
        """
        r = self.resting_voltage
        leaky = self.tau is not None or self.decay is not None
        gain = 1 - self.leak if leaky and self.decay_input else 1.0
        kept, after_spike = (1.0, -self.v_threshold) if self.v_reset is None else (0.0, r)
        return LinearForm(self.leak, gain, (1 - self.leak) * r, kept, after_spike)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The voltage h that the input x makes of the voltage v."""
        if self.tau is None and self.decay is None:
            return v + x
        above = v - self.resting_voltage if self.resting_voltage else v
        change = x - above if self.decay_input else above
        if self.tau is not None:
            change = _divided(change, self.tau)
        elif self.decay is not None:
            change = change * self.decay
        return v + change if self.decay_input else v - change + x

    def fire(self, h: Tensor) -> Tensor:
        """Where it fires at the charged voltage h, bool."""
        return h >= self.v_threshold

    def reset(self, h: Tensor, spike: Tensor) -> Tensor:
        """The voltage that is left of h after the spikes, zeros and ones of the dtype of h."""
        return _reset(h, spike, self.v_threshold, self.v_reset)

    def steps(self, currents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the voltage after charging and where it fires, float32 and bool ``[*]``, for each of ``[T, *]``."""
        v = torch.full_like(currents[0], self.initial_voltage)
        for x in currents:
            h = self.charge(v, x)
            fires = self.fire(h)
            yield h, fires
            v = self.reset(h, fires.to(h))

    def run(self, currents: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run from a voltage on, on a CPU several times as fast as a module that prepares gradients.

        Args:
            currents: ``[T, *]`` float32, T at least 1.
            v: ``[*]``, the voltage before.

        Returns:
            The spikes ``[T, *]``, zeros and ones, and the voltages before and after the last reset.
        """
        spikes = torch.empty_like(currents)
        h = v
        for x, spike in zip(currents, spikes, strict=True):
            h = self.charge(v, x)
            v = self.reset(h, torch.ge(h, self.v_threshold, out=spike))
        return spikes, h, v

    @property
    def kernel_model(self) -> int:
        """Position of its model in the enumeration ``Kind`` of neuron.h."""
        if self.tau is not None:
            return 1 + int(self.decay_input)
        return 0 if self.decay is None else 3 + int(self.decay_input)

    @property
    def kernel_constants(self) -> tuple[float, ...]:
        """The constants of its model in neuron.h: threshold, r and initial voltage, then those of its charge."""
        common = self.v_threshold, self.resting_voltage, self.initial_voltage
        rate = self.decay if self.tau is None else self.tau
        return common if rate is None else (*common, rate)


@dataclass(frozen=True)
class KLIFNeuron(Neuron):
    """The constants of a KLIF neuron: a LIF neuron whose voltage is scaled by a learned factor and cut at zero.

    With the charge ``h'`` of a LIF neuron it charges to ``h = max(k * h', 0)``. With ``scale_reset`` the reset starts
    from ``h / k`` and, if soft, subtracts ``v_threshold / k``.

    Source: Jiang and Zhang, KLIF, arXiv 2302.09238; spikingjelly's ``KLIFNode``.

    Attributes:
        k: The factor.
        scale_reset: Whether the reset divides by it.

    Raises:
        ValueError: If a constant is out of range or not finite in float32.

    Example:
        >>> KLIFNeuron(tau=2.0, k=4.0).firing_current  # a quarter of that of a LIF neuron
        0.5
    """

    tau: float | None = 2.0
    k: float = 1.0
    scale_reset: bool = False

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {**Neuron._ranges, "k": _ANY}
    _optional: ClassVar[set[str]] = {"decay", "v_reset", "v_initial"}

    @property
    def firing_current(self) -> float:
        """The least current of the first step that makes it fire; infinite if k or the threshold is not positive."""
        return self._current_for(self.v_threshold / self.k) if min(self.k, self.v_threshold) > 0 else math.inf

    def linear_form(self) -> LinearForm:
        """Not available: the voltage is cut at zero.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "A KLIF neuron cuts its voltage at zero, so the voltage is not linear in its input weights even where the "
            "spikes are known. Expected IF, LIF or parametric LIF neurons for margins and for enumerating spike trains."
        )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The voltage h that the input x makes of the voltage v, at least 0."""
        return torch.relu(super().charge(v, x) * self.k)

    def reset(self, h: Tensor, spike: Tensor) -> Tensor:
        """The voltage that is left of h after the spikes, zeros and ones of the dtype of h."""
        if not self.scale_reset:
            return super().reset(h, spike)
        return _reset(_divided(h, self.k), spike, self._subtracted, self.v_reset)

    @property
    def _subtracted(self) -> float:
        """What a soft reset subtracts; torch divides a number by a tensor in two rounded steps."""
        if not self.scale_reset:
            return self.v_threshold
        return float(torch.tensor(self.k, dtype=torch.float32).reciprocal() * self.v_threshold)

    @property
    def kernel_model(self) -> int:
        """Position of its model in the enumeration ``Kind`` of neuron.h."""
        return 5 + int(self.decay_input)

    @property
    def kernel_constants(self) -> tuple[float, ...]:
        """As of a LIF neuron; then k, what the reset divides by, and what a soft reset subtracts."""
        return (*super().kernel_constants, self.k, self.k if self.scale_reset else 1.0, self._subtracted)


def _divided(values: Tensor, by: float) -> Tensor:
    # On a GPU torch multiplies by the reciprocal of a Python number, which rounds twice; by a tensor it divides.
    return values / (by if values.device.type == "cpu" else values.new_full((), by))


def _reset(h: Tensor, spike: Tensor, subtracted: float, v_reset: float | None) -> Tensor:
    # Multiplied out, because spikingjelly does: an infinite voltage leaves NaN behind a hard reset.
    if v_reset is None:
        return h - spike * subtracted
    left = (1 - spike) * h
    return spike * v_reset + left if v_reset else left
