"""The constants of a network's neurons, read from their modules."""

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import neuron as spiking
from torch import nn

from lightning_cvxsnn.network.lif import LIF, why_no_step
from lightning_cvxsnn.patterns.neuron import KLIFNeuron, Neuron


def neuron_of(module: nn.Module) -> Neuron:
    """Read the constants of a neuron whose dynamics are known: one of spikingjelly's classes below, or a `LIF`.

    These are ``IFNode``, ``HalfThresholdIFNode``, ``LIFNode``, ``SLTTLIFNode``, ``ParametricLIFNode`` and ``KLIFNode``.

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
    if type(module) not in _READERS:
        known = ", ".join(kind.__name__ for kind in _READERS)
        raise ValueError(
            f"Found a neuron of class {found}, whose dynamics are not known. Expected one of {known}, not a subclass; "
            "use the module itself for any other."
        )
    _check_spikes(module)
    return constants_of(module)


def constants_of(module: nn.Module) -> Neuron:
    """The constants as they are now of a neuron of which `neuron_of` knows the dynamics.

    Raises:
        ValueError: If a constant is out of range, or the precision is another one.
    """
    return _READERS[type(module)](module)


def surrogate_width(module: Any) -> float | None:
    """How far from the threshold the surrogate gradient of a neuron has fallen to half of its peak.

    It is measured, on the side where it is wider: 0.64 / alpha for spikingjelly's ``ATan``, 1.76 / alpha for its
    ``Sigmoid``. Neurons whose voltage is many times that away hardly learn.

    Args:
        module: The neuron; it is not changed.

    Returns:
        The width in volts of the membrane; None where there is no surrogate with a gradient that peaks.

    Example:
        >>> round(surrogate_width(spiking.LIFNode()), 2)  # Sigmoid, alpha = 4
        0.44
    """
    surrogate = getattr(module, "surrogate_function", None)
    if surrogate is None:
        return None
    distances = torch.logspace(-4, 4, 8001)
    with torch.inference_mode(False), torch.enable_grad():
        voltages = torch.stack([-distances, distances]).requires_grad_()
        try:
            (slopes,) = torch.autograd.grad(surrogate(voltages).sum(), voltages)
        except RuntimeError:  # it has no gradient
            return None
    slopes = slopes.abs().amax(0)
    wide = slopes * 2 >= slopes.max()
    if not slopes.max() > 0 or wide[-1]:
        return None
    return float(distances[wide].max())


def _check_spikes(module: Any) -> None:
    """Refuse a surrogate that gives anything but 0 below the threshold and 1 from it on."""
    if found := why_no_step(module.surrogate_function):
        kind = type(module.surrogate_function).__name__
        raise ValueError(
            f"The surrogate {kind} of {type(module).__name__} gives {found} above the threshold. Expected 0 below and "
            "1 from it on; if it is in non-spiking mode, call set_spiking_mode(True)."
        )


def _voltages(module: Any) -> dict[str, Any]:
    """The voltages that all of spikingjelly's neurons have."""
    if module._neuron_precision is not None:
        raise ValueError(f"{type(module).__name__} keeps its voltage in a precision of its own. Expected float32.")
    initial = module.get_reset_value("v")
    return {"v_threshold": module.v_threshold, "v_reset": module.v_reset, "v_initial": initial}


def _leak(module: Any) -> dict[str, Any]:
    return {"tau": module.tau, "decay_input": module.decay_input, **_voltages(module)}


def _learned(module: Any, name: str) -> torch.Tensor:
    """A learned scalar of a neuron."""
    parameter: torch.Tensor = getattr(module, name).detach()
    if parameter.dtype != torch.float32:
        raise ValueError(f"Found {type(module).__name__}.{name} of {parameter.dtype}. Expected float32.")
    return parameter


def _parametric_lif(module: Any) -> Neuron:
    decay = float(_learned(module, "w").sigmoid())
    return Neuron(decay=decay, decay_input=module.decay_input, **_voltages(module))


def _klif(module: Any) -> Neuron:
    return KLIFNeuron(k=float(_learned(module, "k")), scale_reset=module.scale_reset, **_leak(module))


#: How the constants of each class are read. A model that `patterns` knows is one entry here.
_READERS: dict[type[nn.Module], Callable[[Any], Neuron]] = {
    spiking.IFNode: lambda module: Neuron(**_voltages(module)),
    spiking.HalfThresholdIFNode: lambda module: Neuron(**_voltages(module)),
    spiking.LIFNode: lambda module: Neuron(**_leak(module)),
    spiking.SLTTLIFNode: lambda module: Neuron(**_leak(module)),
    spiking.ParametricLIFNode: _parametric_lif,
    spiking.KLIFNode: _klif,
    LIF: lambda module: module.constants,
}
