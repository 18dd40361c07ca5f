"""Relays: layers of a deep network that send on the spikes of the layer below, unit by unit.

They are held while the others train, and the gradient of their spikes passes to the spikes below as it is. That is the
straight-through estimator (Bengio, Léonard and Courville, arXiv 1308.3432) in the one case in which it is exact. The
surrogates of twenty LIF layers in a row would leave hardly anything of a gradient, and that distorted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.dataflow import is_spiking
from lightning_cvxsnn.network.isolation import forward_of, release_graphs, reset_neurons
from lightning_cvxsnn.network.network import Network

_LOST = 0.01  # of the spikes that a relay receives, at most


class Relay(NamedTuple):
    """A linear layer, and the neurons of which each fires with one of the layer below, which has as many.

    Attributes:
        affine: Dotted name of the linear layer.
        neuron: Dotted name of the neurons.
    """

    affine: str
    neuron: str


class Relays:
    """The relays of a network that trains; none before `hold`.

    Attributes:
        held: Those that are held.
    """

    def __init__(self) -> None:
        self.held: tuple[Relay, ...] = ()
        self._links: list[_Link] = []
        self._hooks: list[RemovableHandle] = []
        self._guards: list[RemovableHandle] = []
        self._found: list[tuple[Tensor, Tensor]] = []

    def hold(self, module: nn.Module, relays: Iterable[Relay], optimizers: Iterable[Optimizer] = ()) -> None:
        """Hold these instead of others.

        Args:
            module: The network; where it is compiled it has no relays, as hooks do not reach all of it.
            relays: Its relays.
            optimizers: What trains it. No step of theirs will move a relay, by weight decay, say.
        """
        self.release()
        self.held = () if is_compiled(module) else tuple(relays)
        self._links = [_Link(module, relay) for relay in self.held]
        for optimizer in optimizers if self.held else ():
            self._guards.append(optimizer.register_step_pre_hook(lambda *_: self._note()))
            self._guards.append(optimizer.register_step_post_hook(lambda *_: self._put_back()))

    def attach(self) -> None:
        """From now on gradients pass through relays as spikes do. Those of their parameters are 0."""
        self.detach()
        for link in self._links:
            self._hooks += link.attach()

    def detach(self) -> None:
        """Let gradients take their usual way."""
        _remove(self._hooks)
        for link in self._links:
            link.forget()

    def release(self) -> None:
        """Hold them no longer."""
        self.detach()
        _remove(self._guards)
        self.held, self._links = (), []

    def _note(self) -> None:
        self._found = [(p, p.detach().clone()) for link in self._links for p in link.parameters]

    @torch.no_grad()
    def _put_back(self) -> None:
        for parameter, value in self._found:
            parameter.copy_(value)
        self._found = []


def find_relays(network: Network, trained: int) -> tuple[Relay, ...]:
    """All relays behind the first layers of a network. Call this inside ``undisturbed``.

    Args:
        network: The network, of whose rows the first batch is looked at.
        trained: Layers that train in front of a relay, at least.
    """
    module = network.module
    if sum(map(is_spiking, module.modules())) <= trained:
        return ()
    x = network.first().x
    activities = {layer.name: layer for layer in measure_activity(module, [x])}
    deep = [
        Relay(layer.affine_name, layer.name)
        for layer in activities.values()
        if layer.source and layer.alone and _trained_below(module, layer, activities) >= trained
    ]
    return prove_relays(module, deep, x)


@torch.no_grad()
def prove_relays(module: nn.Module, layers: Iterable[Relay], x: Any) -> tuple[Relay, ...]:
    """Those of ``layers`` that send on what they receive, as a batch shows, and that are there to be held.

    A layer of a compiled network is not, nor one that is frozen, or whose parameters others share.

    Args:
        module: The network. Call this inside ``undisturbed``.
        layers: Names of linear layers, and of the neurons behind them.
        x: A batch of inputs.
    """
    owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    links = {relay: _Link(module, relay) for relay in layers}
    links = {
        relay: link
        for relay, link in links.items()
        if link.is_square and all(p.requires_grad and owners[id(p)] == 1 for p in link.parameters)
    }
    if not links or is_compiled(module):
        return ()
    hooks = [hook for link in links.values() for hook in link.watch()]
    try:
        reset_neurons(module)
        forward_of(module)(x)
    finally:
        _remove(hooks)
    return tuple(relay for relay, link in links.items() if link.exact)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch compiles a module, or a part of it, as a whole."""
    if getattr(module, "_compiler_ctx", None) is not None:  # Lightning's mark
        return True
    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl is not None for part in module.modules())


class _Link:
    """One relay's modules, and what the first of them has received."""

    def __init__(self, module: nn.Module, relay: Relay) -> None:
        self.affine: Any = module.get_submodule(relay.affine)
        self.neuron = module.get_submodule(relay.neuron)
        self._received: Tensor | None = None
        self._spikes = self._lost = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        """Its own, or what stands in for them in a functional call."""
        return [*self.affine.parameters(recurse=False), *self.neuron.parameters()]

    def attach(self) -> Sequence[RemovableHandle]:
        return self.affine.register_forward_pre_hook(self._receive), self.neuron.register_forward_hook(self._pass_on)

    def watch(self) -> Sequence[RemovableHandle]:
        return self.affine.register_forward_pre_hook(self._receive), self.neuron.register_forward_hook(self._compare)

    def forget(self) -> None:
        self._received = None

    @property
    def is_square(self) -> bool:
        """Whether a linear layer has as many units as it receives: more of them would send some spikes twice."""
        return isinstance(self.affine, nn.Linear) and self.affine.in_features == self.affine.out_features

    @property
    def exact(self) -> bool:
        """Whether it has received spikes, and sent them."""
        return self._spikes > 0 and self._lost <= _LOST * self._spikes

    def _receive(self, _affine: nn.Module, args: tuple[Any, ...]) -> None:
        self._received = args[0]

    def _take(self, sent: Tensor) -> Tensor | None:
        """What it has received, in the shape of what it sends: samples and steps may be one axis on the way."""
        received, self._received = self._received, None
        return None if received is None or received.numel() != sent.numel() else received.reshape(sent.shape)

    def _compare(self, _neuron: nn.Module, _args: tuple[Any, ...], sent: Tensor) -> None:
        received = self._take(sent)
        if received is None:
            self._lost = torch.inf
            return
        self._spikes += float(received.sum())
        self._lost += float((received != sent).sum())

    def _pass_on(self, neuron: nn.Module, _args: tuple[Any, ...], sent: Tensor) -> Tensor | None:
        """The spikes that were sent, with the gradient given to those that were received."""
        received = self._take(sent)
        if received is None or not received.requires_grad:
            return None
        release_graphs(neuron)  # which no gradient will reach
        passed = sent.detach() + (received - received.detach()).to(sent.dtype)
        for parameter in self.parameters:
            passed = passed + 0.0 * parameter.sum()  # DDP waits for a gradient of each
        return passed


def _trained_below(module: nn.Module, layer: LayerActivity, activities: dict[str, LayerActivity]) -> int:
    """Layers that train among those below one, of which each sends its spikes to the next as they are."""
    trained, passed = 0, {layer.name}
    while layer.source and layer.source not in passed:  # a recurrent one feeds itself
        layer = activities[layer.source]
        passed.add(layer.name)
        affine: Any = module.get_submodule(layer.affine_name) if layer.affine_name else module
        trained += any(p.requires_grad for p in affine.parameters(recurse=False))
    return trained


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
