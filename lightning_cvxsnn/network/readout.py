"""Find the readout of any LightningModule, prove what it is, read it and write it.

A readout is linear, or linear and followed by one layer of spiking neurons. Either way it is the linear part that a
programme solves for; see `lightning_cvxsnn.reconstruction.guard` for the neurons' part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.network.dataflow import is_spiking
from lightning_cvxsnn.network.isolation import forward_of, reached, reset_neurons
from lightning_cvxsnn.network.probe import has_samples_first, misfit, random_readout, reductions
from lightning_cvxsnn.network.reduction import TimeReduction
from lightning_cvxsnn.network.writable import why_not_writable

_UNIMPLEMENTED = (pl.LightningModule.forward, nn.Module.forward)


@dataclass(frozen=True)
class Readout:
    """A readout that has been proved: ``forward(x) = reduce(readout's inputs) @ weight.T + bias_count * bias``.

    With spiking output neurons, ``forward(x) = reduce(spikes of readout's inputs @ weight.T + bias)``; the first
    equation then holds of the network in which they pass on what they receive.

    Attributes:
        name: Dotted name of the layer in the LightningModule.
        module: The layer itself.
        reduction: How its inputs over time become one dictionary row.
        neuron_name: Dotted name of the spiking output layer; "" where the readout is linear.
        neuron: That layer itself.
        output: Which entry of what the forward returns is this readout's; None where it returns one tensor.
    """

    name: str
    module: nn.Linear
    reduction: TimeReduction
    neuron_name: str = ""
    neuron: nn.Module | None = None
    output: str | int | None = None

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

    def pick(self, values: Any) -> Any:
        """This readout's entry of outputs, targets or weights; a single tensor (or None) is every readout's.

        Raises:
            MisconfigurationException: If there is no such entry.
        """
        if values is None or isinstance(values, Tensor):
            return values
        try:
            return values[self.output]
        except (KeyError, IndexError, TypeError):
            found = list(values) if isinstance(values, dict) else f"{len(values)} entries"
            raise MisconfigurationException(
                f"The readout '{self.name}' gives the output {self.output!r}; targets (or weights) have {found}. "
                "Expected one tensor, or an entry of the same name or position; define `convex_batch(self, batch)`."
            ) from None

    def forward_of(self, module: nn.Module) -> Callable[[Any], Tensor]:
        """The function from a batch's inputs to this readout's output."""
        forward = forward_of(module)
        return lambda x: self.pick(forward(x))

    @torch.no_grad()
    def others(self, module: nn.Module, x: Any) -> dict[str | int | None, Tensor]:
        """What else the network returns for ``x``, by name or position. Call it inside ``undisturbed``."""
        reset_neurons(module)
        return {key: value for key, value in _entries(module, forward_of(module)(x)).items() if key != self.output}

    @contextmanager
    def linearised(self) -> Iterator[None]:
        """While the context lasts, spiking output neurons pass on what they receive."""
        with _passing(self.neuron):
            yield


@contextmanager
def _passing(neuron: nn.Module | None) -> Iterator[None]:
    handle = None if neuron is None else neuron.register_forward_hook(lambda _module, args, _spikes: args[0])
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@torch.no_grad()
def find_readout(module: nn.Module, x: Any, name: str | None = None, tolerance: float = 1e-4) -> Readout:
    """Find the last ``nn.Linear`` that ``x`` reaches, or the one called ``name``, and prove that it reads out linearly.

    The proof replaces the layer's input by random, time-varying spikes and its weights by random ones, and looks for
    the reduction over time that reproduces the module's output: ``last``, ``mean``, ``sum``, ``all``, none, or a sum
    with weights that are measured. On the network's own features a silent layer would make every reduction look right.
    Neurons of a spiking output layer pass on what they receive meanwhile. Call it inside ``undisturbed``.

    Args:
        module: A LightningModule, or any module.
        x: One batch of inputs.
        name: Dotted name of the readout; None: the last linear layer reached.
        tolerance: Largest deviation from linear, relative to the output; raise it where forwards run in half precision.

    Raises:
        MisconfigurationException: If there is no such layer, no reduction fits, more follows the layer than one layer
            of spiking neurons, it neither receives nor makes spikes, its weights are frozen or shared, or not exactly
            one entry of the output is the readout's.
    """
    forward = forward_of(module)
    order = _call_order(module, x)
    name = _candidate(module, order, name)
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    neuron_name = _check_neurons(module, order, name)
    neuron = module.get_submodule(neuron_name) if neuron_name else None
    check_parameters(module, name)

    with random_readout(layer) as probe, _passing(neuron):
        reset_neurons(module)
        outputs = _entries(module, forward(x))
    if probe.error > tolerance:
        raise MisconfigurationException(
            f"'{name}' ({type(layer).__name__}) is not a plain linear layer: its output differs from "
            f"`input @ weight.T + bias` by {probe.error:.1%}. Name a plain `nn.Linear` with `readout=`."
        )
    errors = {
        (key, candidate): misfit(candidate, probe, output)
        for key, output in outputs.items()
        for candidate in reductions(probe, output)
    }
    fitting: dict[Any, list[TimeReduction]] = {}
    for (key, candidate), error in sorted(errors.items(), key=lambda item: (item[0][1].kind == "weighted", item[1])):
        if error <= tolerance:
            fitting.setdefault(key, []).append(candidate)
    if len(fitting) > 1:
        found = [key for key in outputs if key in fitting]
        raise MisconfigurationException(
            f"The entries {found} of what {type(module).__name__}'s forward returned are all read out by '{name}'. "
            "Expected one; define `convex_forward(self, x)` that returns what the loss is applied to."
        )
    for key, candidates in fitting.items():
        readout = Readout(name, layer, candidates[0], neuron_name, neuron, key)
        if len({candidate.batch_first for candidate in candidates}) == 1:
            return readout
        spiking = next(module.get_submodule(n) for n in order if is_spiking(module.get_submodule(n)))
        first = has_samples_first(module, x, readout.forward_of(module), spiking)
        return replace(readout, reduction=next(c for c in candidates if c.batch_first == first))
    least: dict[str, float] = {}
    for (_, candidate), error in errors.items():
        least[candidate.kind] = min(error, least.get(candidate.kind, error))
    misfits = {kind: "of another shape" if e == float("inf") else f"off by {e:.0%}" for kind, e in least.items()}
    tried = (
        ", ".join(f"{'as it is' if kind == 'none' else kind} {misfit}" for kind, misfit in misfits.items())
        or "no reduction gives its shape"
    )
    shapes = ", ".join(f"shape {list(output.shape)}" for output in outputs.values())
    after = [f"'{n}' ({type(module.get_submodule(n)).__name__})" for n in _followers(module, x, name)]
    raise MisconfigurationException(
        f"The output of {type(module).__name__} ({shapes}) is no linear function of what '{name}' receives "
        f"({len(probe.inputs)} input(s) of shape {list(probe.inputs[0].shape)}); tried: {tried}. "
        f"After it ran {', '.join(after) or 'no module'}. Expected logits that are the last, mean, sum or weighted sum "
        "over time of that layer's output, or all of them. Remove what follows it (softmax, non-linearity), name "
        "another layer with `readout=`, or define `convex_forward(self, x)` that returns the logits the loss is "
        "applied to."
    )


def _entries(module: nn.Module, output: Any) -> dict[str | int | None, Tensor]:
    """The tensors that a forward returned, by name or position."""
    if isinstance(output, Tensor):
        return {None: output}
    pairs: Any = ()
    if isinstance(output, (dict, tuple, list)):
        pairs = output.items() if isinstance(output, dict) else enumerate(output)
    entries = {key: value for key, value in pairs if isinstance(value, Tensor) and value.dim() > 0}
    if not entries:
        raise MisconfigurationException(
            f"The forward of {type(module).__name__} returned {type(output).__name__}; expected a tensor, what the "
            "loss is applied to, or a dict or tuple with one tensor for each readout. Define `convex_forward(self, x)` "
            "that returns it."
        )
    return entries


def _last(order: list[str], name: str) -> int:
    return len(order) - 1 - order[::-1].index(name)


def _followers(module: nn.Module, x: Any, name: str) -> list[str]:
    """The modules that ran after the last call of ``name``, without those that hold it and without their own parts."""
    order = reached(module, x, lambda _: True)
    after = [
        n for n in dict.fromkeys(order[_last(order, name) + 1 :]) if not f"{name}.".startswith(f"{n}." if n else "")
    ]
    return [n for n in after if not any(n.startswith(f"{m}.") for m in after)]


def _call_order(module: nn.Module, x: Any) -> list[str]:
    """Names of the linear and spiking modules in the order in which ``x`` reaches them; repeated for repeated calls."""
    if forward_of(module) is module and getattr(module.forward, "__func__", None) in _UNIMPLEMENTED:
        raise MisconfigurationException(
            f"{type(module).__name__} has no `forward`: expected `forward(self, x)` or `convex_forward(self, x)` that "
            "returns what the loss is applied to."
        )
    try:
        return reached(module, x, lambda m: isinstance(m, nn.Linear) or is_spiking(m))
    except MisconfigurationException:
        raise
    except Exception as error:  # whatever the user's forward raises
        method = "forward" if forward_of(module) is module else "convex_forward"
        raise MisconfigurationException(
            f"{type(module).__name__}.{method}, called with the inputs of a training batch ({_describe(x)}), raised "
            f"{type(error).__name__}: {error}. Expected it to take what the loader gives; where `training_step` "
            "changes the batch first (casts, transposes, encodes), define `convex_batch(self, batch)` that returns "
            "(x, y) with x as `training_step` passes it on, or `convex_forward(self, x)` that does the same."
        ) from error


def _describe(x: Any) -> str:
    """Types and shapes of inputs, in words."""
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {list(x.shape)}"
    if isinstance(x, dict):
        return "a dict of " + ", ".join(f"{key!r}: {_describe(value)}" for key, value in x.items())
    if isinstance(x, (tuple, list)):
        return f"a {type(x).__name__} of " + ", ".join(map(_describe, x))
    return f"a {type(x).__name__}"


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


def _check_neurons(module: nn.Module, order: list[str], name: str) -> str:
    """The name of the spiking layer that follows the readout; "" where there is none."""
    after = order[_last(order, name) + 1 :]
    spiking = [n for n in after if is_spiking(module.get_submodule(n))]
    if len(spiking) > 1 or (spiking and after[-1] != spiking[0]):
        raise MisconfigurationException(
            f"The readout '{name}' is followed by the spiking neuron '{spiking[0]}' and more layers ({after[1:]}), so "
            "it is a hidden layer. Expected the last linear layer, with at most one layer of spiking neurons after it."
        )
    before = [n for n in order[: order.index(name)] if is_spiking(module.get_submodule(n))]
    if not before and not spiking:
        raise MisconfigurationException(
            f"No spiking neuron runs before the readout '{name}', so it receives no spikes. Expected a spikingjelly "
            "neuron between the input and the readout, as those of other libraries (snntorch, norse) are not known; "
            "exchange them, or name another layer with `readout=`."
        )
    for neuron in dict.fromkeys(before + spiking):
        surrogate = getattr(module.get_submodule(neuron), "surrogate_function", None)
        if not getattr(surrogate, "spiking", True):
            raise MisconfigurationException(
                f"The neuron '{neuron}' emits no spikes: its surrogate function is in non-spiking mode. Call "
                "`surrogate_function.set_spiking_mode(True)`; note that neurons built with the default share one."
            )
    return spiking[0] if spiking else ""


def check_parameters(module: nn.Module, name: str) -> None:
    """Refuse a readout whose parameters cannot be written: others compute, freeze or share them.

    Raises:
        MisconfigurationException: Naming the parameter and the reason.
    """
    if reason := why_not_writable(module, name, f"the readout '{name}'"):
        raise MisconfigurationException(
            f"{reason}, so a solution cannot be written there. Expected a plain `nn.Linear` with parameters of its own "
            "that require a gradient; remove the parametrization, unfreeze or untie it, or name another layer with "
            "`readout=`."
        )
