"""Neurons that compute their spikes alone, while nobody asks for gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from lightning_cvxsnn.network.lif import LIF
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns.neuron import Neuron

_FORWARD = "multi_step_forward"


@contextmanager
def quick_neurons(module: nn.Module) -> Iterator[None]:
    """Let neurons of known dynamics skip their surrogates inside this context; their spikes are the same, bit for bit.

    That concerns calls over several steps on the CPU, in float32 and without gradients. All others, and neurons whose
    forward somebody has replaced, are computed as ever. Only a `LIF` may change its constants inside.

    Args:
        module: The root of the network.
    """
    neurons: list[Any] = []
    for neuron in module.modules():
        if isinstance(neuron, base.MemoryModule) and vars(neuron).keys().isdisjoint({"forward", _FORWARD}):
            try:
                constants = neuron_of(neuron)
            except ValueError:  # its dynamics are not known
                continue
            neurons.append(neuron)
            setattr(neuron, _FORWARD, _quick(neuron, constants))
    try:
        yield
    finally:
        for neuron in neurons:
            vars(neuron).pop(_FORWARD, None)


def _quick(module: Any, constants: Neuron) -> Callable[..., Any]:
    own, ours = module.multi_step_forward, isinstance(module, LIF)

    def forward(x: Tensor, *args: Any) -> Any:
        now = module.constants if ours else constants
        v = now.initial_voltage if module.v is None else module.v
        v = torch.full_like(x[0], v) if isinstance(v, float) else v
        plain = x.dtype == v.dtype == torch.float32 and x.device.type == "cpu" and v.shape == x.shape[1:]
        if args or not plain or torch.is_grad_enabled() or getattr(module, "store_v_seq", False):
            return own(x, *args)
        spikes, charged, module.v = now.run(x, v)
        if ours:
            module.charged = charged
        return spikes

    return forward
