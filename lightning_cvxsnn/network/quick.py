"""Neurons that compute their spikes alone, while nobody asks for gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from lightning_cvxsnn.network.lif import LIF
from lightning_cvxsnn.network.neurons import constants_of, neuron_of

_FORWARD = "multi_step_forward"


@contextmanager
def quick_neurons(module: nn.Module) -> Iterator[None]:
    """Let neurons of known dynamics skip their surrogates inside this context; their spikes are the same, bit for bit.

    That concerns calls over several steps on the CPU, in float32 and without gradients. All others, neurons whose
    forward somebody has replaced, and copies that are made inside, are computed as ever; a `LIF` is quick anyway.

    Args:
        module: The root of the network.
    """
    neurons: list[nn.Module] = []
    for neuron in module.modules():
        known = isinstance(neuron, base.MemoryModule) and not isinstance(neuron, LIF)
        if known and vars(neuron).keys().isdisjoint({"forward", _FORWARD}):
            try:
                neuron_of(neuron)
            except ValueError:  # its dynamics are not known
                continue
            neurons.append(neuron)
            setattr(neuron, _FORWARD, _Quick(neuron))
    try:
        yield
    finally:
        for neuron in neurons:
            vars(neuron).pop(_FORWARD, None)


class _Quick:
    """The forward over several steps of one neuron."""

    def __init__(self, module: Any) -> None:
        self._module, self._own, self._surrogate = module, module.multi_step_forward, module.surrogate_function

    def __call__(self, x: Tensor, *args: Any) -> Any:
        module, v = self._module, self._module.v
        v = v if isinstance(v, Tensor) else torch.full_like(x[0], v)
        plain = x.dtype == v.dtype == torch.float32 and x.device.type == "cpu" and v.shape == x.shape[1:]
        same = module.surrogate_function is self._surrogate and not module.store_v_seq
        if args or not plain or not same or torch.is_grad_enabled():
            return self._own(x, *args)
        try:
            constants = constants_of(module)  # a forward may change them
        except ValueError:
            return self._own(x)
        spikes, _, module.v = constants.run(x, v)
        return spikes

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self._module)]  # the module that is being copied comes first
        return getattr(type(copied), _FORWARD).__get__(copied)
