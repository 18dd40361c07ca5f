"""How a readout's inputs over time become one dictionary row."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ReductionKind = Literal["last", "mean", "sum", "weighted", "all", "none"]
Layout = Literal["calls", "steps", "samples", "flat", "flat samples", "static"]


@dataclass(frozen=True)
class TimeReduction:
    """The map from what a linear readout receives in one forward pass to rows of the dictionary.

    Attributes:
        kind: ``last`` step, ``mean`` or ``sum`` over time, a sum with fixed weights (``weighted``, such as a leaky
            integrator's), ``all`` steps as rows, or ``none`` (no time axis).
        layout: How the readout is fed: ``calls`` (T calls of ``[N, P]``), ``steps`` (one ``[T, N, P]``), ``samples``
            (one ``[N, T, P]``), ``flat`` (one ``[T * N, P]``), ``flat samples`` (one ``[N * T, P]``) or ``static`` (one
            ``[N, P]``).
        steps: T, the number of time steps; 1 for ``static``.
        batch_first: For ``all``: whether the network's output is ``[N, T, C]`` rather than ``[T, N, C]``.
        weights: For ``weighted``: the T weights.
    """

    kind: ReductionKind
    layout: Layout
    steps: int
    batch_first: bool = False
    weights: tuple[float, ...] = ()

    def to_steps(self, inputs: list[Tensor]) -> Tensor:
        """Arrange the readout's recorded inputs as ``[T, N, P]``.

        Raises:
            ValueError: If the number of time steps is not the one the readout was proved with.
        """
        if self.layout == "calls":
            stacked = torch.stack(inputs)
        elif self.layout == "samples":
            stacked = inputs[0].transpose(0, 1)
        elif self.layout == "flat":
            stacked = inputs[0].unflatten(0, (self.steps, -1))
        elif self.layout == "flat samples":
            stacked = inputs[0].unflatten(0, (-1, self.steps)).transpose(0, 1)
        elif self.layout == "static":
            stacked = inputs[0].unsqueeze(0)
        else:
            stacked = inputs[0]
        if len(stacked) != self.steps:
            raise ValueError(
                f"The readout received {len(stacked)} time steps in this batch and {self.steps} in the first one. "
                "Expected the same number in every batch; pad the sequences to one length."
            )
        return stacked

    def sum_steps(self, steps: Tensor) -> tuple[Tensor, float]:
        """Reduce ``[T, N, P]`` to ``(values, scale)``: rows are ``values * scale`` and spikes keep integer values.

        For ``all`` the rows of one sample are contiguous: ``[N * T, P]``, sample first.
        """
        if self.kind == "last":
            return steps[-1], 1.0
        if self.kind == "mean":
            return steps.sum(0), 1.0 / self.steps
        if self.kind == "sum":
            return steps.sum(0), 1.0
        if self.kind == "weighted":
            return torch.tensordot(steps.new_tensor(self.weights), steps, 1), 1.0
        if self.kind == "all":
            return steps.transpose(0, 1).flatten(0, 1), 1.0
        return steps[0], 1.0

    def flatten_rows(self, per_step: Tensor) -> Tensor:
        """Flatten what the user's code gives per step (outputs or targets) to the row order of ``sum_steps``."""
        return (per_step if self.batch_first else per_step.transpose(0, 1)).flatten(0, 1)

    @property
    def rows_per_sample(self) -> int:
        """Dictionary rows that one sample gives."""
        return self.steps if self.kind == "all" else 1

    @property
    def bias_count(self) -> float:
        """How many times the readout's bias enters one output: T where outputs are summed over time, else 1."""
        if self.kind == "weighted":
            return sum(self.weights)
        return self.steps if self.kind == "sum" else 1
