"""The base class of the metrics."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from typing_extensions import override


class SpikingMetric(Metric):
    """A metric with a plot and with states that take their size from the first rows."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dist_sync_fn"] = kwargs.get("dist_sync_fn") or _gather
        super().__init__(**kwargs)

    @override
    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value or several in a row.

        Args:
            val: What ``forward`` or ``compute`` gave, or a list of it; None: ``compute()``.
            ax: Axes to draw on; None: new ones.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: Without matplotlib.
        """
        return self._plot(val, ax)


def _gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """``gather_all_tensors`` where processes without rows have states of no size yet."""
    states: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(states, (state.numel() > 0, state.dtype, tuple(state.shape)), group=group)
    _, dtype, shape = max(states, key=lambda s: (len(s[2]), s[0]))
    if state.dim() == 0:  # zeros, of the size that the others have
        state = state.expand(shape)
    elif state.numel() == 0:
        state = state.new_zeros((0, *shape[1:]), dtype=dtype)
    return gather_all_tensors(state, group)
