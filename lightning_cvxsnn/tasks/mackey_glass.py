"""The series of Mackey and Glass, some steps ahead."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits, check_at_least, checked_sizes

_DELAY, _SUBSTEPS = 17, 10
_TRAJECTORIES = 100
_MEAN, _DEVIATION = 0.927, 0.227  # of the series, measured over 100,000 steps
_FORGET = 200  # first steps, which the random past still shows in
_SHIFT = 200  # at most, each trajectory by its own: all have begun alike


class MackeyGlassDataModule(Splits):
    """Windows of the chaotic Mackey-Glass series, and its value some steps after each.

    Samples are ``(x [window, 1] float32, y [1])``, of mean 0 and deviation 1 over long times. The series is
    ``dv/dt = 0.2 v(t - 17) / (1 + v(t - 17)^10) - 0.1 v``, by Euler's method with ten steps in each time step, from
    100 random pasts. Windows are disjoint, and the three splits are of different pasts.

    Source: Mackey and Glass, "Oscillation and chaos in physiological control systems", Science 197 (1977).

    Args:
        window: Values in a window.
        ahead: Steps from the last of them to the target.
        sizes: Windows to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the pasts.

    Raises:
        MisconfigurationException: If a number is out of range.

    Example:
        >>> data = MackeyGlassDataModule(sizes=(200, 50, 50))
        >>> data.setup("fit")
        >>> [tensor.shape for tensor in data.train.tensors], len(data.test)
        ([torch.Size([200, 20, 1]), torch.Size([200, 1])], 50)
    """

    def __init__(
        self,
        window: int = 20,
        ahead: int = 10,
        sizes: tuple[int, int, int] = (2000, 500, 1000),
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        check_at_least("window", window, 1)
        check_at_least("ahead", ahead, 1)
        self.window, self.ahead, self.sizes = window, ahead, checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Generate all splits; the same for every stage."""
        generator = torch.Generator().manual_seed(self.seed)
        self.train, self.val, self.test = (self._draw(size, generator) for size in self.sizes)

    def _draw(self, size: int, generator: torch.Generator) -> TensorDataset:
        length = self.window + self.ahead
        values = series(-(-size // _TRAJECTORIES) * length, generator)
        cut = ((values - _MEAN) / _DEVIATION).float().reshape(-1, length, 1)
        cut = cut[torch.randperm(len(cut), generator=generator)[:size]]
        return TensorDataset(cut[:, : self.window], cut[:, -1])


def series(steps: int, generator: torch.Generator) -> Tensor:
    """Trajectories float64 ``[100, steps]`` of the Mackey-Glass equation, each from a random past."""
    late = _DELAY * _SUBSTEPS
    past = list(1.2 + 0.4 * (torch.rand(late + 1, _TRAJECTORIES, dtype=torch.float64, generator=generator) - 0.5))
    for _ in range((_FORGET + _SHIFT + steps) * _SUBSTEPS):
        delayed = past[-late - 1]
        past.append(past[-1] + (0.2 * delayed / (1 + delayed**10) - 0.1 * past[-1]) / _SUBSTEPS)
    values = torch.stack(past[::-_SUBSTEPS][: _SHIFT + steps][::-1], 1)
    first = torch.randint(_SHIFT, (_TRAJECTORIES, 1), generator=generator)
    return values.gather(1, first + torch.arange(steps))
