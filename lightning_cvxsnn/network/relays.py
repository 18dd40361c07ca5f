"""Relays: layers of a deep network that send on the spikes of the layer below, unit by unit.

They are held while the others train, and the gradient of their spikes passes to the spikes below as it is. That is the
straight-through estimator (Bengio, Léonard and Courville, arXiv 1308.3432) in the one case in which it is exact. The
surrogates of twenty layers in a row would leave of a gradient one part in ten million, and that distorted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle

from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
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
    """The relays of a network, to be held while it trains.

    Args:
        module: The network.
        relays: Its relays.
    """

    def __init__(self, module: nn.Module, relays: Iterable[Relay] = ()) -> None:
        self._links = [_Link(module, relay) for relay in relays]
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """From now on gradients pass through relays as spikes do. Their parameters get zeros, as DDP waits for some."""
        self.detach()
        for link in self._links:
            self._handles += link.attach()

    def detach(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def drop_gradients(self) -> None:
        """Leave optimisers nothing to do with relays; momentum and weight decay skip what has no gradient."""
        for link in self._links:
            for parameter in link.parameters:
                parameter.grad = None


@torch.no_grad()
def prove_relays(network: Network, layers: Iterable[Relay]) -> tuple[Relay, ...]:
    """Those of ``layers`` that can be held, and send on what they receive, as the first batch shows.

    A layer of a compiled network cannot be held: that is deaf to hooks. Neither can one whose parameters others share.

    Args:
        network: The network. Call this inside ``undisturbed``.
        layers: Names of linear layers, and of the neurons behind them.
    """
    module = network.module
    owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    links = {relay: _Link(module, relay) for relay in layers}
    links = {
        relay: link
        for relay, link in links.items()
        if link.is_square and all(owners[id(p)] == 1 for p in link.parameters)
    }
    if not links or _is_compiled(module):
        return ()
    handles = [handle for link in links.values() for handle in link.watch()]
    try:
        reset_neurons(module)
        forward_of(module)(network.first().x)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(relay for relay, link in links.items() if link.exact)


class _Link:
    """One relay's modules, and what the first of them has received."""

    def __init__(self, module: nn.Module, relay: Relay) -> None:
        self.affine: Any = module.get_submodule(relay.affine)
        self.neuron = module.get_submodule(relay.neuron)
        self.parameters = [*self.affine.parameters(recurse=False), *self.neuron.parameters()]
        self._received: Tensor | None = None
        self._spikes = self._lost = 0.0

    def attach(self) -> Sequence[RemovableHandle]:
        return self.affine.register_forward_pre_hook(self._receive), self.neuron.register_forward_hook(self._pass_on)

    def watch(self) -> Sequence[RemovableHandle]:
        return self.affine.register_forward_pre_hook(self._receive), self.neuron.register_forward_hook(self._compare)

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

    def _take(self) -> Tensor | None:
        received, self._received = self._received, None
        return received

    def _compare(self, _neuron: nn.Module, _args: tuple[Any, ...], sent: Tensor) -> None:
        received = self._take()
        if received is None or received.shape != sent.shape:
            self._lost = torch.inf
            return
        self._spikes += float(received.sum())
        self._lost += float((received != sent).sum())

    def _pass_on(self, _neuron: nn.Module, _args: tuple[Any, ...], sent: Tensor) -> Tensor | None:
        received = self._take()
        if received is None or not received.requires_grad or received.shape != sent.shape:
            return None
        passed: Tensor = _StraightThrough.apply(sent.detach(), received, *self.parameters)
        return passed


class _StraightThrough(torch.autograd.Function):
    """The spikes that were sent, with the gradient given to those that were received."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, received: Tensor, *parameters: Tensor) -> Tensor:
        ctx.received, ctx.parameters = received.dtype, parameters
        return sent.view_as(sent)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        zeros = [torch.zeros_like(p) if p.requires_grad else None for p in ctx.parameters]  # type: ignore[attr-defined]
        return None, gradient.to(ctx.received), *zeros  # type: ignore[attr-defined]


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch compiles it, or a part of it, as a whole."""
    if getattr(module, "_compiler_ctx", None) is not None:  # Lightning's mark
        return True
    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl is not None for part in module.modules())
