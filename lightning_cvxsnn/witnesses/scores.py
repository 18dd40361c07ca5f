"""What the columns of candidates are worth at a dual point, and which of them are alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.patterns import SpikeDictionary

_BLOCK = 2**22  # entries of columns scored at once
_ALIKE = 0.9  # correlation of columns above which one of them is enough
_FEWEST = 32  # rows that tell maps of many places apart
_TINY = 1e-6


@dataclass(frozen=True)
class UnitScores:
    """Scores of units of one or several columns each, and their correlations.

    Attributes:
        columns_per_unit: Columns that a unit makes, one behind the other.
        centred: Whether the programme fits an intercept, which takes over the mean of a column.
    """

    columns_per_unit: int
    centred: bool

    def score(self, columns: SpikeDictionary, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Score and ``max |d^T U_c|`` of each unit, at ``dual [n, C]``."""
        per_unit = self.columns_per_unit
        parts = torch.arange(columns.shape[1]).split(max(_BLOCK // columns.shape[0] // per_unit, 1) * per_unit)
        dense = (columns.columns(part).to_dense(torch.float32) for part in parts)
        scores, violations = zip(*(self.correlate(block, dual.float()) for block in dense), strict=True)
        return torch.cat(scores), torch.cat(violations)

    def correlate(self, columns: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """``||d^T U||`` over the size of ``d``, so that a high rate alone wins nothing, and ``max_c |d^T U_c|``.

        Of a unit of several columns: the norm of theirs, and the largest. Differentiable in ``columns [n, P]``.
        """
        if self.centred:
            columns = columns - columns.mean(0)
        products = dual.T @ columns
        size = (columns.square().sum(0) + 1.0).sqrt()
        scores = (products.norm(dim=0) / size).view(-1, self.columns_per_unit).norm(dim=1)
        return scores, products.abs().amax(0).view(-1, self.columns_per_unit).amax(1)

    def distinct(self, columns: SpikeDictionary, others: SpikeDictionary | None, count: int) -> list[int]:
        """Positions of the first ``count`` units that correlate neither with ``others`` nor with each other."""
        new = self._directions(columns)
        alike = new.T @ new > _ALIKE
        alike |= new.T @ -new > _ALIKE
        free = torch.ones(new.shape[1], dtype=torch.bool)
        if others is not None and others.shape[1]:
            free &= (self._directions(others).T @ new).abs().amax(0) <= _ALIKE
        chosen: list[int] = []
        for position in range(new.shape[1]):
            if len(chosen) < count and free[position] and not alike[position, chosen].any():
                chosen.append(position)
        return chosen

    def _directions(self, columns: SpikeDictionary) -> Tensor:
        """Maps of unit norm, a column for each unit; of those of many places, fewer rows tell them apart."""
        if self.columns_per_unit > 1:
            stride = min(self.columns_per_unit, -(-columns.shape[0] // _FEWEST))
            columns = columns.rows(torch.arange(0, columns.shape[0], stride))
        dense = columns.to_dense(torch.float32)
        if self.centred:
            dense = dense - dense.mean(0)
        dense = dense.unflatten(1, (-1, self.columns_per_unit)).transpose(1, 2).flatten(0, 1)
        return dense / dense.norm(dim=0).clamp_min(_TINY)


def deviations(columns: SpikeDictionary) -> Tensor:
    """Standard deviation of each column, of zeros and ones of its rate, float64 ``[P]``."""
    return (columns.rates * (1 - columns.rates)).clamp_min(0).sqrt()


def score_columns(columns: SpikeDictionary, dual: Tensor) -> tuple[Tensor, Tensor]:
    """Score and ``max |d^T U_c|`` of each column, in float64; a column that repeats an earlier one scores -1.

    The score is ``||d^T U||`` over the deviation of ``d``, which is raised so that a column of few spikes wins nothing.
    """
    products = columns.column_scores(dual)
    scores = products.norm(dim=1) / (deviations(columns) + columns.shape[0] ** -0.5)
    first = torch.zeros(columns.shape[1], dtype=torch.bool)
    first[columns.distinct_columns().witness] = True
    return torch.where(first, scores, -1.0), products.abs().amax(1)
