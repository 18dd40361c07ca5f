"""Solved weights that take the place of trained ones between two training steps."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Shadow:
    """Some tensors of a network as they were trained and as they were solved; the network holds one or the other.

    Attributes:
        trained: Values by dotted name of the parameter or buffer, on the CPU.
        solved: The same tensors, solved.
    """

    trained: dict[str, Tensor]
    solved: dict[str, Tensor]

    def enter(self, module: nn.Module) -> None:
        """Put the solved values in the place of the trained ones, unless the network holds something else by now."""
        _exchange(module, self.trained, self.solved)

    def leave(self, module: nn.Module) -> None:
        """The reverse, bit for bit."""
        _exchange(module, self.solved, self.trained)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors for a checkpoint; ``Shadow(**state)`` reads them."""
        return {"trained": self.trained, "solved": self.solved}


@torch.no_grad()
def _exchange(module: nn.Module, old: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    tensors = {name: tensor for name, tensor in chain(module.named_parameters(), module.named_buffers()) if name in old}
    if all(torch.equal(tensor, old[name].to(tensor.device)) for name, tensor in tensors.items()):
        for name, tensor in tensors.items():
            tensor.copy_(new[name])
