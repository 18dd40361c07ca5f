"""Solved weights that take the place of trained ones between two training steps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Shadow:
    """Some tensors of a network as they were trained and as they were solved; the network holds one or the other.

    Attributes:
        trained: Values by dotted name of the parameter or buffer, on the CPU.
        solved: The same tensors, solved.
        whole: Whether they are a whole network: what somebody changes in it meanwhile is not kept.
    """

    trained: dict[str, Tensor]
    solved: dict[str, Tensor]
    whole: bool = False

    @classmethod
    def of(cls, module: nn.Module, tensors: Iterable[Tensor], trained: Callable[[Tensor], Tensor]) -> "Shadow":
        """Of ``tensors`` of ``module``, which hold solved values; ``trained`` tells what one of them held before."""
        names = {id(tensor): name for name, tensor in named_tensors(module)}
        pairs = {names[id(tensor)]: (trained(tensor), tensor.detach().clone()) for tensor in tensors}
        before, now = ({name: pair[k].cpu() for name, pair in pairs.items()} for k in range(2))
        return cls(before, now)

    @torch.no_grad()
    def leave(self, module: nn.Module, *, anyway: bool = False) -> bool:
        """Put the trained values back, all or none, bit for bit, unless the network holds other parameters by now.

        A buffer that has changed in between, such as a statistic that another forward pass has moved on, is left as it
        is: it is no longer the solution's.

        Args:
            module: The network.
            anyway: Whether parameters that somebody has changed meanwhile are put back, too.

        Returns:
            Whether nobody had changed any.
        """
        present, parameters = dict(named_tensors(module)), dict(module.named_parameters())
        if not present.keys() >= self.solved.keys():  # pruning, say, gives parameters other names
            return False
        tensors, touched = {}, False
        for name, solved in self.solved.items():
            if torch.equal(present[name], solved.to(present[name].device)):
                tensors[name] = present[name]
            elif name in parameters:
                trained = ((p.cpu(), self.trained[n]) for n, p in parameters.items() if n in self.trained)
                if all(torch.allclose(*pair, rtol=0.0, atol=0.0, equal_nan=True) for pair in trained):
                    return True
                if not anyway:
                    return False
                tensors[name], touched = present[name], True
        try:
            for name, tensor in tensors.items():
                tensor.copy_(self.trained[name])
        except BaseException:
            for name, tensor in tensors.items():
                tensor.copy_(self.solved[name])
            raise
        return not touched

    def state_dict(self) -> dict[str, Any]:
        """Tensors for a checkpoint; ``Shadow(**state)`` reads them."""
        return {"trained": self.trained, "solved": self.solved, "whole": self.whole}


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by dotted name."""
    return chain(module.named_parameters(), module.named_buffers())
