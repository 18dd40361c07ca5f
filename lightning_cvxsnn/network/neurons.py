"""The constants of a network's neurons, read from their modules."""

import math
from typing import Any

import torch
from spikingjelly.activation_based import neuron as spiking
from torch import nn

from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.lif import LIF
from lightning_cvxsnn.patterns import Neuron


def neuron_of(module: nn.Module) -> Neuron:
    """Read the constants of a spikingjelly ``IFNode``, ``LIFNode`` or ``ParametricLIFNode``, or of a `LIF`.

    Args:
        module: The neuron, in any step mode and state; it is not changed. A later change of its constants is not
            followed.

    Raises:
        ValueError: If its dynamics are not of this kind: another class, a subclass (which may compute anything), a
            surrogate that does not give 0 below the threshold and 1 from it on, or mixed-precision voltages.

    Example:
        >>> neuron_of(spiking.LIFNode(tau=4.0, v_reset=None))
        Neuron(tau=4.0, decay=None, decay_input=True, v_threshold=1.0, v_reset=None, v_initial=0.0)
    """
    found = type(module).__name__
    if type(module) not in (spiking.IFNode, spiking.LIFNode, spiking.ParametricLIFNode, LIF):
        raise ValueError(
            f"Found a neuron of class {found}, whose dynamics are not known. Expected spikingjelly's IFNode, "
            "LIFNode or ParametricLIFNode, not a subclass; use the module itself for any other."
        )
    probe = torch.tensor([-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf])
    surrogate: Any = module.surrogate_function
    with torch.no_grad():
        fired = surrogate(probe)
    if not torch.equal(fired, (probe >= 0).to(probe)):
        raise ValueError(
            f"The surrogate {type(surrogate).__name__} of {found} gives {fired.tolist()} for "
            f"voltages {probe.tolist()} above the threshold. Expected 0 below and 1 from it on; if it is in "
            "non-spiking mode, call set_spiking_mode(True)."
        )
    if isinstance(module, LIF):
        return Neuron(
            tau=float(module.tau),
            decay_input=module.decay_input,
            v_threshold=float(module.v_threshold),
            v_reset=None if module.soft_reset else float(module.v_reset),
        )
    if module._neuron_precision is not None:
        raise ValueError(f"{found} keeps its voltage in a precision of its own. Expected float32.")
    decay = None
    if isinstance(module, spiking.ParametricLIFNode):
        if module.w.dtype != torch.float32:
            raise ValueError(f"Found ParametricLIFNode.w of {module.w.dtype}. Expected float32.")
        decay = float(module.w.detach().sigmoid())
    with undisturbed(module):
        module.reset()
        initial = module.v
    return Neuron(
        tau=module.tau if isinstance(module, spiking.LIFNode) else None,
        decay=decay,
        decay_input=getattr(module, "decay_input", True),
        v_threshold=module.v_threshold,
        v_reset=module.v_reset,
        v_initial=initial,
    )
