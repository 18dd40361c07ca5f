"""Find the readout of any LightningModule, prove that it is linear, read it and write it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cvxsnn.patterns import Reduction, fresh_state
from lightning_cvxsnn.patterns.calibrate import is_spiking
from lightning_cvxsnn.patterns.isolation import reached
from lightning_cvxsnn.patterns.reduction import Layout

_PROBE_SEED = 0
_UNIMPLEMENTED = (pl.LightningModule.forward, nn.Module.forward)


@dataclass(frozen=True)
class Readout:
    """A linear readout that has been proved: ``forward(x) = reduce(readout's inputs) @ weight.T + bias_count * bias``.

    Attributes:
        name: Dotted name of the layer in the LightningModule.
        module: The layer itself.
        reduction: How its inputs over time become one dictionary row.
    """

    name: str
    module: nn.Linear
    reduction: Reduction

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight, and bias where there is one."""
        return list(self.module.parameters(recurse=False))

    def read(self) -> tuple[Tensor, Tensor | None]:
        """The stored readout in the programme's terms: coef ``[P, C]`` and intercept ``[C]`` or None, float64, CPU."""
        weight, bias = self.module.weight, self.module.bias
        coef = weight.detach().double().cpu().T.contiguous()
        return coef, None if bias is None else bias.detach().double().cpu() * self.reduction.bias_count

    @torch.no_grad()
    def write(self, coef: Tensor, intercept: Tensor) -> None:
        """Copy coef ``[P, C]`` and intercept ``[C]`` into the layer's own parameters, in place."""
        self.module.weight.copy_(coef.T)
        if self.module.bias is not None:
            self.module.bias.copy_(intercept / self.reduction.bias_count)


def forward_of(module: nn.Module) -> Callable[[Any], Tensor]:
    """The function whose readout is sought: ``convex_forward`` where the module defines it, else the module's call."""
    return getattr(module, "convex_forward", module)


@torch.no_grad()
def find_readout(module: nn.Module, x: Any, name: str | None = None, tolerance: float = 1e-4) -> Readout:
    """Find the last ``nn.Linear`` that ``x`` reaches, or the one called ``name``, and prove that it reads out linearly.

    The proof replaces the layer's input by random, time-varying spikes and its weights by random ones, and looks for
    the reduction over time (``last``, ``mean``, ``sum``, ``all``, none) that reproduces the module's output. On the
    network's own features a silent layer would make every reduction look right. Call it inside ``undisturbed``.

    Args:
        module: A LightningModule, or any module.
        x: One batch of inputs.
        name: Dotted name of the readout; None: the last linear layer reached.
        tolerance: Largest deviation from linear, relative to the output; raise it where forwards run in half precision.

    Raises:
        MisconfigurationException: If there is no such layer, no reduction fits, a spiking neuron follows the layer, no
            spiking neuron feeds it, its weights are frozen or shared, or the output is not a tensor.
    """
    forward = forward_of(module)
    order = _call_order(module, forward, x)
    name = _candidate(module, order, name)
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    _check_neurons(module, order, name)
    _check_parameters(module, layer, name)

    with _random_readout(layer) as probe:
        fresh_state(module)
        output = forward(x)
    if not isinstance(output, Tensor):
        raise MisconfigurationException(
            f"The forward of {type(module).__name__} returned {type(output).__name__}; expected one tensor, what the "
            "loss is applied to. Define `convex_forward(self, x)` that returns it."
        )
    if probe.error > tolerance:
        raise MisconfigurationException(
            f"'{name}' ({type(layer).__name__}) is not a plain linear layer: its output differs from "
            f"`input @ weight.T + bias` by {probe.error:.1%}. Name a plain `nn.Linear` with `readout=`."
        )
    errors = {}
    for candidate in _reductions(probe.inputs, output):
        errors[candidate] = _misfit(candidate, probe, output)
    best = min(errors, key=errors.__getitem__, default=None)
    if best is None or errors[best] > tolerance:
        tried = ", ".join(f"{c.kind} off by {e:.0%}" for c, e in errors.items()) or "no reduction gives its shape"
        raise MisconfigurationException(
            f"The output of {type(module).__name__} (shape {list(output.shape)}) is no linear function of what "
            f"'{name}' receives ({len(probe.inputs)} input(s) of shape {list(probe.inputs[0].shape)}); tried: {tried}. "
            "Expected logits that are the last, mean or sum over time of that layer's output, or all of them. Remove "
            "what follows it (softmax, non-linearity), name another layer with `readout=`, or define "
            "`convex_forward(self, x)` that returns the logits the loss is applied to."
        )
    return Readout(name, layer, best)


def _call_order(module: nn.Module, forward: Callable[[Any], Tensor], x: Any) -> list[str]:
    """Names of the linear and spiking modules in the order in which ``x`` reaches them; repeated for repeated calls."""
    if forward is module and getattr(module.forward, "__func__", None) in _UNIMPLEMENTED:
        raise MisconfigurationException(
            f"{type(module).__name__} has no `forward`: expected `forward(self, x)` or `convex_forward(self, x)` that "
            "returns what the loss is applied to."
        )
    return reached(module, forward, x, lambda m: isinstance(m, nn.Linear) or is_spiking(m))


def _candidate(module: nn.Module, order: list[str], name: str | None) -> str:
    reached = list(dict.fromkeys(n for n in order if isinstance(module.get_submodule(n), nn.Linear)))
    if name is None:
        if not reached:
            raise MisconfigurationException(
                f"No `nn.Linear` of {type(module).__name__} was reached by a training batch, so there is no readout to "
                "solve for. Expected a network that ends in a linear layer over spikes."
            )
        return next(n for n in reversed(order) if n in reached)
    if name not in reached:
        raise MisconfigurationException(
            f"`readout={name!r}` is not an `nn.Linear` that a training batch reaches. Found: {reached or 'none'}."
        )
    return name


def _check_neurons(module: nn.Module, order: list[str], name: str) -> None:
    last_call = len(order) - 1 - order[::-1].index(name)
    after = [n for n in order[last_call + 1 :] if is_spiking(module.get_submodule(n))]
    if after:
        raise MisconfigurationException(
            f"The readout '{name}' is followed by the spiking neuron '{after[0]}', so the output is no linear function "
            "of its input. Spiking output layers are not supported yet: end the network in the linear layer."
        )
    before = [n for n in order[: order.index(name)] if is_spiking(module.get_submodule(n))]
    if not before:
        raise MisconfigurationException(
            f"No spiking neuron runs before the readout '{name}', so it receives no spikes. Expected a spikingjelly "
            "neuron between the input and the readout; name another layer with `readout=`."
        )
    for neuron in dict.fromkeys(before):
        if not getattr(module.get_submodule(neuron).surrogate_function, "spiking", True):
            raise MisconfigurationException(
                f"The neuron '{neuron}' emits no spikes: its surrogate function is in non-spiking mode. Call "
                "`surrogate_function.set_spiking_mode(True)`; note that neurons built with the default share one."
            )


def _check_parameters(module: nn.Module, layer: nn.Linear, name: str) -> None:
    if not isinstance(layer.weight, nn.Parameter):
        raise MisconfigurationException(
            f"The weight of the readout '{name}' is computed from other parameters (weight norm, parametrization) and "
            "cannot be written. Expected a plain `nn.Linear`; remove the parametrization, or name another layer with "
            "`readout=`."
        )
    for kind, parameter in layer.named_parameters(recurse=False):
        if not parameter.requires_grad:
            raise MisconfigurationException(
                f"The readout's `{name}.{kind}` is frozen (requires_grad=False) and would be overwritten. Unfreeze it, "
                "or name another layer with `readout=`."
            )
        names = [n for n, p in module.named_parameters(remove_duplicate=False) if p is parameter]
        if len(names) > 1:
            raise MisconfigurationException(
                f"The readout's `{name}.{kind}` is shared: it is also {[n for n in names if n != f'{name}.{kind}']}. "
                "Writing it would change other layers; untie it, or name another layer with `readout=`."
            )


@dataclass
class _RandomReadout:
    """What the probe fed the layer and with which weights; ``error`` is the layer's own deviation from linear."""

    inputs: list[Tensor]
    weight: Tensor
    bias: Tensor
    error: float = 0.0


@contextmanager
def _random_readout(layer: nn.Linear) -> Iterator[_RandomReadout]:
    """Feed ``layer`` random spikes and let it answer with random weights while the context lasts."""
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    like = layer.weight
    weight = torch.randn(like.shape, generator=generator).to(like) / like.shape[1] ** 0.5
    bias = (
        torch.randn(like.shape[0], generator=generator).to(like)
        if layer.bias is not None
        else like.new_zeros(len(like))
    )
    probe = _RandomReadout([], weight, bias)

    def replace_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        probe.inputs.append(torch.randint(0, 2, args[0].shape, generator=generator).to(args[0]))
        return (probe.inputs[-1], *args[1:])

    def replace_output(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        probe.error = max(probe.error, _relative(output, F.linear(args[0], layer.weight, layer.bias)))
        return F.linear(args[0], weight, bias)

    handles = [
        layer.register_forward_pre_hook(replace_input),
        layer.register_forward_hook(replace_output),
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def _reductions(inputs: list[Tensor], output: Tensor) -> list[Reduction]:
    """The reductions that give the output's shape."""
    shape, rank = inputs[0].shape, output.dim()
    samples = output.shape[0]
    layouts: list[tuple[Layout, int]] = []
    if len(inputs) > 1:
        layouts.append(("calls", len(inputs)))
    elif len(shape) == 3:
        layouts.append(("steps", shape[0]))
    elif rank == 3:
        layouts += [("flat", output.shape[0]), ("flat", output.shape[1])]
    elif shape[0] == samples:
        layouts.append(("static", 1))
    elif shape[0] % samples == 0:
        layouts.append(("flat", shape[0] // samples))
    if rank == 3:
        return [
            Reduction("all", layout, steps, batch_first) for layout, steps in layouts for batch_first in (False, True)
        ]
    if layouts and layouts[0][0] == "static":
        return [Reduction("none", "static", 1)]
    return [Reduction(kind, layout, steps) for layout, steps in layouts for kind in ("last", "mean", "sum")]


def _misfit(reduction: Reduction, probe: _RandomReadout, output: Tensor) -> float:
    """Largest deviation of the output from what ``reduction`` predicts, relative to the largest prediction."""
    values, scale = reduction.sum_steps(reduction.to_steps(probe.inputs).double())
    predicted = values * scale @ probe.weight.double().T + reduction.bias_count * probe.bias.double()
    try:
        actual = reduction.flatten_rows(output) if reduction.kind == "all" else output
        return _relative(actual.reshape(predicted.shape), predicted)
    except RuntimeError:  # the output does not have the shape that this reduction gives
        return float("inf")


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-12))
