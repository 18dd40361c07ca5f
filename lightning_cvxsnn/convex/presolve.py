"""Exact reductions of a programme before it is solved, and the way back to all rows, columns and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_cvxsnn.convex.inputs import Data
from lightning_cvxsnn.convex.losses import LossFunction
from lightning_cvxsnn.convex.matrix import Matrix

__all__ = ["Presolve", "ReducedProgramme", "largest_count", "reduce"]

_KEY_BITS = 78  # unequal columns share a key with a probability of 2^-78
_LARGEST_COUNT = 2**16 - 1


@dataclass(frozen=True, eq=False)
class ReducedProgramme:
    """A programme of distinct, non-constant columns and rows of positive weight.

    Attributes:
        matrix: ``[n, p]``, dense or packed.
        encoded: ``[n, C]`` float64 encoded targets.
        weight: ``[n]`` float64, sample weight over the *original* number of rows, all positive.
        loss: The loss.
        fit_intercept: Whether an unpenalised intercept is fitted.
        multiplicity: ``[p]`` float64, how many columns of the whole programme each one stands for.
        kept: What algorithms work out once and use in every solve, by their names for it.
    """

    matrix: Matrix
    encoded: Tensor
    weight: Tensor
    loss: LossFunction
    fit_intercept: bool
    multiplicity: Tensor
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether no row or no output is left to solve for."""
        return self.encoded.numel() == 0

    def constant(self) -> tuple[Tensor, Tensor]:
        """Zero coefficients ``[p, C]`` and the best intercepts ``[C]``, zeros if none is fitted."""
        coef = self.encoded.new_zeros(self.matrix.shape[1], self.encoded.shape[1])
        if self.empty or not self.fit_intercept:
            return coef, self.encoded.new_zeros(self.encoded.shape[1])
        return coef, self.loss.constant(self.encoded, self.weight)

    def constant_dual(self) -> Tensor:
        """Dual point ``[n, C]`` of the best constant predictor."""
        if self.empty:
            return torch.zeros_like(self.encoded)
        return self.loss.constant_dual(self.encoded, self.weight, self.fit_intercept)


@dataclass(frozen=True, eq=False)
class Presolve:
    """Which rows, columns and outputs of a programme its :class:`ReducedProgramme` keeps, and the ways there and back.

    ``columns`` are the first of each group of equal columns. With an intercept, columns equal up to sign and a constant
    are one column: ``d_j = sign_j d_first + shift_j``; moving all weight to the first leaves the outputs (after a
    shift of the intercept) and an L1 penalty as they are. Squares are smallest where all of a group share the weight.
    """

    data: Data
    programme: ReducedProgramme
    rows: Tensor
    columns: Tensor
    outputs: Tensor
    owner: Tensor
    sign: Tensor
    shift: Tensor

    def restrict(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[P', C]`` (``P' <= P``: the dictionary grew) as a point of the reduced programme."""
        size = coef.shape[0]
        coef = coef.to(self.sign)[:, self.outputs]
        intercept = intercept.to(self.sign)[self.outputs]
        owner, sign, shift = self.owner[:size], self.sign[:size], self.shift[:size]
        if self.programme.fit_intercept:
            intercept = intercept + shift @ coef
        used = owner >= 0
        reduced = torch.zeros(self.columns.numel(), coef.shape[1], dtype=coef.dtype, device=coef.device)
        return reduced.index_add(0, owner[used], sign[used, None] * coef[used]), intercept

    def restrict_dual(self, dual_point: Tensor) -> Tensor:
        """A dual point ``[n, C]`` as one of the reduced programme."""
        return dual_point.to(self.sign)[self.rows][:, self.outputs]

    def expand(self, coef: Tensor, shared: bool) -> Tensor:
        """Coefficients ``[P, C]`` of the original programme: on the first of equal columns, or ``shared`` by all."""
        full = coef.new_zeros(self.data.matrix.shape[1], self.data.encoded.shape[1])
        if not shared:
            full[self.columns[:, None], self.outputs] = coef
            return full
        used = (self.owner >= 0).nonzero()[:, 0]
        owner = self.owner[used]
        share = self.sign[used] / self.programme.multiplicity[owner]
        full[used[:, None], self.outputs] = share[:, None] * coef[owner]
        return full

    def expand_dual(self, dual_point: Tensor) -> Tensor:
        """Dual point ``[n, C]`` of the original programme."""
        full = dual_point.new_zeros(self.data.encoded.shape)
        full[self.rows[:, None], self.outputs] = dual_point
        return full

    def expand_intercept(self, coef: Tensor, intercept: Tensor, slack: float) -> Tensor:
        """Intercepts ``[C]`` of all outputs; those that are not open are set so that they cost ``slack`` at most."""
        programme, loss, outputs = self.programme, self.programme.loss, self.data.encoded.shape[1]
        full = programme.encoded.new_zeros(outputs)
        full[self.outputs] = intercept
        trivial = torch.ones(outputs, dtype=torch.bool, device=full.device)
        trivial[self.outputs] = False
        if programme.weight.numel() == 0 or not bool(trivial.any()):
            return full
        others = programme.matrix @ coef + intercept if loss.coupled(outputs) and self.outputs.numel() else None
        encoded = self.data.encoded[self.rows]
        return torch.where(trivial, loss.trivial_intercepts(encoded, programme.weight, others, slack), full)


def reduce(data: Data, loss: LossFunction, fit_intercept: bool) -> Presolve:
    """Drop rows of zero weight, outputs with a trivial answer, and redundant columns.

    An output is trivial if an intercept is fitted and only one value of its target carries weight: a class that never
    occurs, or margins' signs that are all the same. What is kept of a packed matrix stays packed.
    """
    matrix, encoded, weight = data.matrix, data.encoded, data.weight
    rows = weight.nonzero()[:, 0]
    total = matrix.shape[0]
    if rows.numel() < total:
        matrix, encoded, weight = matrix[rows], encoded[rows], weight[rows]
    outputs = torch.arange(encoded.shape[1], device=matrix.device)
    if rows.numel() == 0:
        outputs = outputs[:0]
    elif fit_intercept:
        outputs = loss.open_outputs(encoded)
    columns, owner, sign, shift = _distinct_columns(matrix, fit_intercept)
    if columns.numel() < matrix.shape[1]:
        matrix = matrix.columns(columns)
    if outputs.numel() < encoded.shape[1]:
        encoded = encoded[:, outputs]
    multiplicity = torch.bincount(owner[owner >= 0], minlength=columns.numel()).to(sign)
    programme = ReducedProgramme(matrix, encoded, weight / total, loss, fit_intercept, multiplicity)
    return Presolve(data, programme, rows, columns, outputs, owner, sign, shift)


def _distinct_columns(matrix: Matrix, fit_intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First column of each group, then each column's group (-1: dropped), sign and shift."""
    size, device = matrix.shape[1], matrix.device
    sign = torch.ones(size, dtype=torch.float64, device=device)
    base = torch.zeros_like(sign)  # in units of the matrix's scale
    if matrix.shape[0] == 0:
        none = torch.full((size,), -1, device=device)
        return none[:0], none, sign, base
    if fit_intercept:
        base = matrix.source.block(slice(0, 1))[0].to(torch.float64)
    keys, sign = _column_keys(matrix, base)
    head, silent = _first_equal(keys), (keys == 0).all(1)
    kept = (head == torch.arange(size, device=device)) & ~silent
    owner = torch.where(silent, -1, kept.cumsum(0)[head] - 1)
    base = base * matrix.source.scale
    sign = torch.where(silent, 1.0, sign * sign[head])
    shift = torch.where(silent, base, base - sign * base[head])
    return kept.nonzero()[:, 0], owner, sign, shift


def _first_equal(keys: Tensor) -> Tensor:
    """For each row of ``keys [P, k]`` the index of the first row that equals it."""
    order = torch.arange(keys.shape[0], device=keys.device)
    for column in reversed(keys.T):
        order = order[column[order].argsort(stable=True)]  # equal rows come together, in their own order
    ordered = keys[order]
    changes = (ordered[1:] != ordered[:-1]).any(1).nonzero()[:, 0] + 1
    starts = torch.cat([changes.new_zeros(1), changes])
    lengths = torch.cat([starts[1:], starts.new_tensor([keys.shape[0]])]) - starts
    return torch.empty_like(order).scatter(0, order, order[starts].repeat_interleave(lengths))


def _column_keys(matrix: Matrix, base: Tensor) -> tuple[Tensor, Tensor]:
    """Keys ``[P, k]``, equal for columns that are equal up to sign once ``base [P]`` is taken off, and those signs.

    A key is the column's products with random integers: zero for a zero column. They are so small that float64 products
    of counts are exact, in whatever order they are summed, and equal columns have equal keys on any device.
    """
    largest = largest_count(matrix)
    if largest is None:
        return _fraction_keys(matrix, base)
    draws = _draws(matrix.shape[0], largest, matrix.device).T.contiguous()
    keys = draws.new_zeros(draws.shape[0], matrix.shape[1])
    for part, block in matrix.blocks():
        keys += draws[:, part] @ block
    keys = (keys - draws.sum(1, keepdim=True) * base).T.contiguous()
    first = (keys != 0).to(torch.uint8).argmax(1, keepdim=True)
    sign = torch.where(keys.gather(1, first)[:, 0] < 0, -1.0, 1.0).to(keys)
    return keys * sign[:, None] + 0.0, sign  # + 0.0 turns -0.0 into 0.0


def largest_count(matrix: Matrix) -> int | None:
    """A bound of the absolute entries in units of the scale if they are counts, ``None`` if they are not."""
    if matrix.dtype in (torch.bool, torch.uint8, torch.uint16):
        return {torch.bool: 1, torch.uint8: 2**8 - 1}.get(matrix.dtype, _LARGEST_COUNT)
    largest = 0.0
    for _, block in matrix.blocks():
        for part in torch.split(block, max(matrix.block_sizes.keys // block.shape[1], 1)):
            low, high = part.aminmax()
            largest = max(largest, -float(low), float(high))
            if largest > _LARGEST_COUNT or not torch.equal(part, part.round()):
                return None
    return int(largest)


def _draws(rows: int, largest: int, device: torch.device) -> Tensor:
    """Random integers ``[rows, k]`` whose products with differences of ``rows`` counts are exact in float64."""
    bits = 52 - rows.bit_length() - (2 * largest).bit_length()
    size = rows, -(-_KEY_BITS // bits)
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(2**bits, size, generator=generator, dtype=torch.float64, device="cpu").to(device)


def _fraction_keys(matrix: Matrix, base: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`_column_keys` of fractions: the integers are those in the bits of the entries, 16 at a time."""
    rows, size = matrix.shape
    draws = _draws(rows, 2**15, matrix.device).T.contiguous()
    keys, signs = [], []
    for index in torch.split(torch.arange(size, device=matrix.device), max(matrix.block_sizes.keys // rows, 1)):
        canonical = matrix.source.block(slice(0, rows), index).to(torch.float64) - base[index]
        first = (canonical != 0).to(torch.uint8).argmax(0, keepdim=True)
        sign = torch.where(canonical.gather(0, first)[0] < 0, -1.0, 1.0).to(canonical)
        positive = (canonical * sign + 0.0).clone(memory_format=torch.contiguous_format)  # 0.0 for -0.0
        parts = positive.view(torch.int16).to(torch.float64)
        keys.append((draws @ parts).T.reshape(index.numel(), -1))
        signs.append(sign)
    return torch.cat(keys), torch.cat(signs)
