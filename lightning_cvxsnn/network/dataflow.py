"""Which layers feed which spiking neurons: by data flow, since the order of execution does not tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, rnn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_map_only

_PASSES_VOLTAGES = (neuron.NonSpikingBaseNode, neuron.NoisyNonSpikingBaseNode)
_RECURRENT = (rnn.SpikingRNNBase, rnn.SpikingRNNCellBase)
_ORIGIN = "_convex_origin"  # attribute of a tensor: the module that gave it


def is_spiking(module: nn.Module) -> bool:
    """Whether ``module`` is a spiking layer.

    Every neuron of spikingjelly is one, except those that pass on their voltage; so are its spiking recurrent layers,
    and modules of a user's that are stateful by step mode, with a surrogate for their threshold.
    """
    if isinstance(module, _PASSES_VOLTAGES):
        return False
    if isinstance(module, _RECURRENT) or any(c.__module__.startswith(neuron.__name__) for c in type(module).__mro__):
        return True
    return isinstance(module, base.StepModule) and hasattr(module, "surrogate_function")


def has_rows(layer: nn.Module) -> bool:
    """Whether ``layer`` is affine, with one row of its weight and one bias for each of its units."""
    if isinstance(layer, _ConvTransposeNd):  # a column for each unit
        return False
    return isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm, nn.GroupNorm)) and layer.weight is not None


def unit_axis(affine: nn.Module, output: Tensor) -> int:
    """The axis, negative, of what ``affine`` gives along which its rows lie."""
    if isinstance(affine, _ConvNd):
        return -1 - len(affine.kernel_size)
    if isinstance(affine, (_BatchNorm, nn.GroupNorm)):  # [N, C, ...], or [T, N, C, ...]
        return (2 if getattr(affine, "step_mode", "s") == "m" else 1) - output.dim()
    return -1


@dataclass(frozen=True)
class Feed:
    """What reaches the input of a module in one call, without having passed another layer or neuron.

    Attributes:
        origins: Dotted names of the layers and spiking neurons, in the order reached.
        alone: Whether there is one of them, and no other tensor takes part.
        axes: For each layer with rows, the axis, negative, of the input along which its units lie; no entry where the
            input has no such axis, since units were mixed or flattened with their places.
        source: The neurons whose spikes the input is, as they are; "" if there are none.
    """

    origins: tuple[str, ...]
    alone: bool
    axes: dict[str, int]
    source: str


@contextmanager
def data_flow(module: nn.Module) -> Iterator[dict[str, list[Feed]]]:
    """What reaches each layer and each neuron of ``module`` in the forward passes of this context, call by call.

    What layers and neurons give becomes a leaf of an autograd graph, which is walked from the inputs of the next ones
    back to these leaves. Layers and neurons themselves run without gradients, and their results are not changed.
    A layer is a module that has rows (see `has_rows`), or parameters of which no submodule holds one.
    """
    follower = _Follower(module)
    handles = []
    for name, part in followed(module):
        handles += [
            part.register_forward_pre_hook(lambda _, args, name=name: follower.arrive(name, args)),
            part.register_forward_hook(lambda _, args, output, name=name: follower.leave(name, output)),
        ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield follower.feeds
    finally:
        for handle in handles:
            handle.remove()


class _Follower:
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.feeds: dict[str, list[Feed]] = {}
        self._sent: tuple[str, Tensor] | None = None
        self._follows = True

    def arrive(self, name: str, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            self.feeds.setdefault(name, []).append(self._feed(args[0]))
        self._follows = torch.is_grad_enabled()  # not where the user's forward computes without gradients
        torch.set_grad_enabled(False)

    def leave(self, name: str, output: Any) -> Any:
        torch.set_grad_enabled(self._follows)

        def given(values: Tensor) -> Tensor:
            if not values.is_floating_point():
                return values
            leaf = values.detach().requires_grad_()
            setattr(leaf, _ORIGIN, name)
            return leaf.clone()  # which may be changed in place

        output = tree_map_only(Tensor, given, output)
        if is_spiking(self._module.get_submodule(name)) and isinstance(output, Tensor):
            self._sent = name, output
        return output

    def _feed(self, values: Tensor) -> Feed:
        leaves, alone = _leaves(values)
        order = list(self.feeds)
        origins = tuple(sorted({getattr(leaf, _ORIGIN) for leaf in leaves}, key=order.index))
        axes: dict[str, int] = {}
        for leaf in leaves:
            name = getattr(leaf, _ORIGIN)
            layer = self._module.get_submodule(name)
            if has_rows(layer) and name not in axes:
                axis = _axis_of_units(values, leaf, unit_axis(layer, leaf))
                axes |= {} if axis is None else {name: axis}
        source = ""
        if self._sent is not None:
            name, spikes = self._sent
            same = values.data_ptr() == spikes.data_ptr() and values.numel() == spikes.numel()
            source = name if same else ""
        return Feed(origins, alone and len(origins) == 1, axes, source)


def followed(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers and spiking neurons, by name; what is inside one is its own."""
    outer = ""
    for name, part in module.named_modules():
        if outer and name.startswith(outer):
            continue
        if is_spiking(part) or has_rows(part) or _is_own_layer(part):
            outer = f"{name}."
            yield name, part


def _is_own_layer(part: nn.Module) -> bool:
    own = len(list(part.parameters(recurse=False)))
    return 0 < own == len(list(part.parameters())) and not any(map(is_spiking, part.modules()))


def _leaves(values: Tensor) -> tuple[list[Tensor], bool]:
    """The leaves from which ``values`` were computed; and whether nothing else took part, constants included."""
    leaves: list[Tensor] = []
    only_leaves, waiting, seen = True, [values.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is None:
            only_leaves = False
        elif type(node).__name__ != "AccumulateGrad":
            waiting += [function for function, _ in node.next_functions]
        elif hasattr(node.variable, _ORIGIN):
            leaves.append(node.variable)
        else:  # a parameter that the user's forward uses by itself
            only_leaves = False
    return leaves, only_leaves


def _axis_of_units(values: Tensor, leaf: Tensor, axis: int) -> int | None:
    """The axis of ``values`` along which the units lie that lie along ``axis`` in ``leaf``; None if there is none.

    Gradients tell: what lies in half of the places along the right axis depends on half of the units only.
    """
    if values.grad_fn is None or getattr(values.grad_fn.next_functions[0][0], "variable", None) is leaf:
        return axis  # nothing happened to it
    units = leaf.shape[axis]
    generator = torch.Generator().manual_seed(0)
    half = torch.randperm(units, generator=generator) % 2 == 0
    direction = torch.rand(values.shape, generator=generator)
    for candidate in sorted(range(-1, -values.dim() - 1, -1), key=lambda a: a != axis):
        if values.shape[candidate] != units:
            continue
        chosen = direction.movedim(candidate, -1).where(half, 0.0).movedim(-1, candidate)
        try:
            (gradient,) = torch.autograd.grad(values, leaf, chosen.to(values), retain_graph=True)
        except RuntimeError:  # changed in place since, or no gradient is defined
            return None
        if not bool(gradient.movedim(axis, -1)[..., ~half.to(leaf.device)].any()):
            return candidate
    return None
