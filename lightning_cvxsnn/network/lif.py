"""An LIF neuron that keeps its constants in its state dict."""

import math
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base, surrogate
from torch import Tensor

from lightning_cvxsnn.patterns.neuron import Neuron


class LIF(base.MemoryModule):
    """LIF neurons that do, bit for bit, what spikingjelly's ``LIFNode`` of the same constants does on the CPU.

    The constants ``tau``, ``v_threshold``, ``v_reset`` and ``soft_reset`` are scalar buffers, so that networks whose
    layers differ in them are restored by ``load_state_dict``; a ``LIFNode`` forgets its own. ``v`` and ``charged``, the
    voltages after and before the last reset, are memories: None until the first step.

    Args:
        tau: Membrane time constant in steps, above 1.
        v_threshold: The voltage at which it fires.
        v_reset: The voltage after a spike; None: soft reset, ``v_threshold`` is subtracted.
        decay_input: Whether the input is divided by ``tau`` too.
        surrogate_function: The spike, with its surrogate gradient, of a voltage above the threshold.
        step_mode: ``"m"``: input ``[T, *]``; ``"s"``: one step, ``[*]``.

    Example:
        >>> LIF(tau=2.0)(torch.full((5, 1), 1.5))[:, 0].tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0]
    """

    tau: Tensor
    v_threshold: Tensor
    v_reset: Tensor
    soft_reset: Tensor
    v: Any
    charged: Any

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "m",
    ) -> None:
        super().__init__()
        self.register_buffer("tau", torch.tensor(float(tau)))
        self.register_buffer("v_threshold", torch.tensor(float(v_threshold)))
        self.register_buffer("v_reset", torch.tensor(0.0 if v_reset is None else float(v_reset)))
        self.register_buffer("soft_reset", torch.tensor(v_reset is None))
        self.decay_input = decay_input
        self.surrogate_function = surrogate_function or surrogate.ATan()
        self.register_memory("v", None)
        self.register_memory("charged", None)
        self.step_mode = step_mode

    def extra_repr(self) -> str:
        """The constants."""
        reset = "soft" if self.soft_reset else f"to {self.v_reset:g}"
        return (
            f"tau={self.tau:g}, v_threshold={self.v_threshold:g}, reset {reset}, decay_input={self.decay_input}, "
            f"step_mode={self.step_mode}"
        )

    @property
    def constants(self) -> Neuron:
        """Its constants as they are now: a network may have loaded others since."""
        return Neuron(
            tau=float(self.tau),
            decay_input=self.decay_input,
            v_threshold=float(self.v_threshold),
            v_reset=None if self.soft_reset else float(self.v_reset),
        )

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Spikes ``[*]`` of one step's currents ``[*]``."""
        return self._step(x, self.constants)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Spikes ``[T, *]`` of currents ``[T, *]``."""
        neuron = self.constants
        if x_seq.dtype == torch.float32 and x_seq.device.type == "cpu" and not torch.is_grad_enabled():
            v = torch.full_like(x_seq[0], neuron.initial_voltage) if self.v is None else self.v
            if v.dtype == x_seq.dtype and v.shape == x_seq.shape[1:] and not why_no_step(self.surrogate_function):
                spikes, self.charged, self.v = neuron.run(x_seq, v)
                return spikes
        return torch.stack([self._step(x, neuron) for x in x_seq])

    def _step(self, x: Tensor, neuron: Neuron) -> Tensor:
        v = torch.full_like(x, neuron.initial_voltage) if self.v is None else self.v
        self.charged = neuron.charge(v, x)
        spike = self.surrogate_function(self.charged - neuron.v_threshold)
        self.v = neuron.reset(self.charged, spike)
        return spike


def why_no_step(surrogate_function: Callable[[Tensor], Tensor]) -> str:
    """What a surrogate gives, if it is anything but 0 below the threshold and 1 from it on; "" if it is that."""
    probe = torch.tensor([-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf])
    with torch.no_grad():
        fired = surrogate_function(probe)
    return "" if torch.equal(fired, (probe >= 0).to(probe)) else f"{fired.tolist()} for voltages {probe.tolist()}"
