"""Run a user's network and leave no trace of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import nn

from lightning_cvxsnn.network.contents import put_back


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate ``module`` inside this context and find it afterwards as it was.

    On exit each submodule's mode, attributes (hence the ``v`` of non-spiking nodes, ``v_seq`` and the states of
    torchmetrics), neuron memories and buffers are those of the entry, also after an exception; so is what the
    attributes hold, random generators included, see `put_back`. Parameters are not touched in either direction, and
    the global random number generators are the caller's business. Compiled modules run eagerly meanwhile: what they
    were compiled to would not call hooks that are registered now.

    ``functional.reset_net`` is never used: it resets every submodule that has a ``reset``, torchmetrics included.

    Args:
        module: The root of the network; its submodules must not be added or removed inside the context.
    """
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    memories = [(m, dict(m.named_memories())) for m in module.modules() if isinstance(m, base.MemoryModule)]
    try:
        for memory_module, values in memories:
            for name, value in values.items():
                if isinstance(value, torch.Tensor):  # reset() works in place; the user's tensor must not see it
                    setattr(memory_module, name, value.detach().clone())
        others = put_back(module.modules(), known=(*module.parameters(), *module.buffers()))
        with others, torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for memory_module, values in memories:
            for name, value in values.items():
                setattr(memory_module, name, value)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def reset_neurons(module: nn.Module) -> None:
    """Put the memories of every spiking neuron in ``module`` at their reset values."""
    for submodule in module.modules():
        if isinstance(submodule, base.MemoryModule):
            submodule.reset()


def release_graphs(module: nn.Module) -> None:
    """Cut what spikingjelly's neurons hold from the graph of the pass that it came from; no value changes.

    A network whose neurons hold such a graph cannot be deep-copied, which weight averaging does as a fit begins.
    """
    for submodule in module.modules():
        held: list[tuple[str, object]] = []
        if isinstance(submodule, base.MemoryModule):
            held += submodule.named_memories()
        if isinstance(submodule, base.StepModule):
            held += vars(submodule).items()  # the ``v`` of non-spiking nodes, ``v_seq``
        for name, value in held:
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                setattr(submodule, name, value.detach())  # in place it would fail for a view of the spike train


def forward_of(module: nn.Module) -> Callable[[Any], Any]:
    """The function whose readout is solved for: ``convex_forward`` where the module defines it, else its own call."""
    return getattr(module, "convex_forward", module)


def reached(module: nn.Module, x: Any, wanted: Callable[[nn.Module], bool]) -> list[str]:
    """Names of the ``wanted`` modules in the order in which ``x`` reaches them; repeated for repeated calls."""
    order: list[str] = []
    handles = [
        m.register_forward_hook(lambda *_, name=n: order.append(name)) for n, m in module.named_modules() if wanted(m)
    ]
    try:
        reset_neurons(module)
        forward_of(module)(x)
    finally:
        for handle in handles:
            handle.remove()
    return order
