"""Change a network's parameters entirely or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Transaction:
    """A snapshot of parameters, buffers, gradients and optimiser states that can be put back."""

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._tensors = [(t, t.detach().clone()) for t in (*module.parameters(), *module.buffers())]
        self._gradients = [(p, p.grad) for p in module.parameters()]
        self._states = [dict(optimizer.state) for optimizer in self._optimizers]

    @torch.no_grad()
    def roll_back(self) -> None:
        """Put everything back, bit for bit."""
        for tensor, value in self._tensors:
            tensor.copy_(value)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(state)

    def found(self, tensor: Tensor) -> Tensor:
        """The value that a parameter or buffer had."""
        return next(value for known, value in self._tensors if known is tensor)

    def changed(self) -> list[nn.Parameter]:
        """The parameters whose values are no longer those of the snapshot."""
        return [t for t, value in self._tensors if isinstance(t, nn.Parameter) and not torch.equal(t, value)]

    def forget_history(self, parameters: Iterable[Tensor]) -> None:
        """Drop what optimisers remember of ``parameters``, and their gradients: both belong to the old values."""
        written = {id(p) for p in parameters}
        for parameter, _ in self._gradients:
            if id(parameter) in written:
                parameter.grad = None
        for optimizer in self._optimizers:
            owned = [p for group in optimizer.param_groups for p in group["params"] if id(p) in written]
            if owned and isinstance(optimizer, torch.optim.LBFGS):  # one flat history for all its parameters
                optimizer.state.clear()
            for parameter in owned:
                optimizer.state.pop(parameter, None)


@contextmanager
def all_or_nothing(module: nn.Module, optimizers: Sequence[Optimizer] = ()) -> Iterator[Transaction]:
    """Roll back parameters, buffers, gradients and optimiser states if the block raises, whatever it raises.

    Args:
        module: The network that the block writes to.
        optimizers: Its optimisers, unwrapped.
    """
    transaction = Transaction(module, optimizers)
    try:
        yield transaction
    except BaseException:
        transaction.roll_back()
        raise
