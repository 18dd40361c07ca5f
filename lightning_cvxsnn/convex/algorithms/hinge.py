r"""Hinge loss: one linear or quadratic programme per output, by column generation inside an interior point method.

With signs folded in, ``A = t [1, D]``, each output solves

.. math:: \min_{x, \xi \ge 0} \; c^T \xi + \sum_j \big( l |x_j| + \tfrac12 \kappa_j x_j^2 \big)
          \quad\text{subject to}\quad A x + \xi - r = 1, \; r \ge 0

with ``l > 0``, whose multipliers ``alpha`` of the rows satisfy ``0 <= alpha <= c`` and ``|A^T alpha - kappa x| <= l``.
The interior point method works on the programme restricted to a few columns (`restricted`). The multipliers of every
iterate price all columns; those that violate most are added and the iteration continues from the same point. After
Dedieu, Mazumder, Wang, "Solving L1-regularized SVMs and related linear programs", JMLR 23, 2022, and Gondzio,
González-Brevis, Munari, "New developments in the primal-dual column generation technique", EJOR 224(1), 2013. Outputs
are separate programmes, solved together.

From an earlier solution, rows far from the margin are expected to stay on their side of it: they are aggregated into
groups (`grouped`). The solution of that small programme shows which rows must leave their group and which columns must
be added. If they are many, the start was not close, and the iteration above solves the programme of all rows. Large
programmes get a start of that kind from the method of multipliers (`multipliers`), or, where most of their columns will
be in use, all columns from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule
from lightning_cvxsnn.convex.algorithms.grouped import group
from lightning_cvxsnn.convex.algorithms.interior import predictor_corrector
from lightning_cvxsnn.convex.algorithms.multipliers import rough_start
from lightning_cvxsnn.convex.algorithms.restricted import Iterate, RestrictedSystem, add_columns, gather, initial
from lightning_cvxsnn.convex.algorithms.separate import objectives, proven
from lightning_cvxsnn.convex.losses.hinge import Hinge
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap

__all__ = ["ColumnGeneration"]

_PATIENCE = 6  # iterations without progress near the end
_SINGLE_ROWS, _MORE_SINGLE_ROWS = 4, 30  # of a first grouped programme: for each coefficient, and on top
_LARGEST_SHARE = 0.4  # of the rows; larger grouped programmes are not worth it
_ASTRAY = 0.1  # largest share of rows on the wrong side of the margin if the start was close
_AHEAD = 0.05  # share of the gap to which a grouped programme is solved
_GROUPED_LIMIT = 12  # iterations for one of them
_ROUGH = 4e-3  # gap of an output's rough start, relative to its objective at zero
_HEAVY = 1e-4  # of the largest weight: rows above it are multiplied in float64
_CLOSE = 1e-3  # from this gap on, relative to the objective at zero,
_SLOW = 0.98  # or where an iteration takes the sum of the products to no less than this share of it,
_BEHIND = 3.0  # or where the gap is so many times that sum: directions were too inexact to be feasible
_FULL = 0.5  # share of the columns in use from which all of them are
_SPARSITY = 0.4  # share of the tolerance that small coefficients may cost when they are set to zero


@dataclass(frozen=True)
class ColumnGeneration:
    """Column generation inside an interior point method.

    Attributes:
        iteration_limit: Interior point iterations over all outputs, if the stopping rule has no limit of its own.
        batch_rows: Rows times outputs that are solved together, if the matrix is not large.
        columns: Columns that enter together, or as many as there are already.
        warm_columns: The same, if the start is close.
        large: Entries from which on a matrix is large: a rough start is found first if there is none.
    """

    iteration_limit: int = 2000
    batch_rows: int = 100_000
    columns: int = 100
    warm_columns: int = 32
    large: int = 2**21

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Hinge loss."""
        return isinstance(programme.loss, Hinge) and isinstance(penalty, ElasticNet) and penalty.l1_ratio > 0

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme with hinge loss; see :class:`Algorithm`. The dual point is in its box."""
        left = self.iteration_limit if stop.max_iterations is None else stop.max_iterations
        rows, outputs = programme.encoded.shape
        used, together, settings = 0, max(1, self.batch_rows // rows), self
        if programme.matrix.shape.numel() >= self.large:
            together = 1  # padding to the widest costs more than it saves
            if not bool(start.coef.any()):
                rough = StoppingRule(_ROUGH * float(programme.weight.sum()) * outputs, left, stop.deadline)
                start, used, dense = rough_start(programme, penalty, start, rough)
                if dense:
                    settings = replace(self, columns=programme.matrix.shape[1])
        coef, intercept = start.coef.clone(), start.intercept.clone()
        dual_point = torch.zeros_like(programme.encoded)
        for batch in torch.split(torch.arange(outputs, device=coef.device), together):
            sign = programme.encoded[:, batch].T.contiguous()
            alpha = None if start.dual_point is None else sign * start.dual_point[:, batch].T
            rule = StoppingRule(stop.tolerance / outputs, left - used, stop.deadline)
            search = _Search(settings, programme, penalty, sign, start.coef[:, batch].T, rule)
            search.run(alpha)
            used += search.used
            coef[:, batch], intercept[batch] = search.coef.T, search.intercept
            dual_point[:, batch] = (sign * search.alpha).T
        return Minimum(coef, intercept, dual_point, used, "column-generation-interior-point")


@dataclass(frozen=True, eq=False)
class _Grouping:
    """The outputs whose grouped programmes are still worth solving, the first dimension of every tensor.

    Attributes:
        alive: ``[C]`` which outputs.
        coef: ``[C, p]``.
        intercept: ``[C]``.
        alpha: Multipliers ``[C, n]``.
        margin: Outputs times labels ``[C, n]``.
        single: Rows on their own ``[C, n]``.
        chosen: Columns ``[C, p]``.
        correlation: ``|A^T alpha|`` of the feasible point, ``[C, p]``.
    """

    alive: Tensor
    coef: Tensor
    intercept: Tensor
    alpha: Tensor
    margin: Tensor
    single: Tensor
    chosen: Tensor
    correlation: Tensor

    def subset(self, outputs: Tensor) -> _Grouping:
        """Those of the outputs marked in ``outputs [C]``."""
        return _Grouping(*(getattr(self, field.name)[outputs] for field in fields(self)))


class _Precision:
    """How exact the Grams of an interior point method are: those of a large matrix are in float32 at first."""

    def __init__(self, large: bool) -> None:
        self._levels, self._product = [torch.inf, _HEAVY, 0.0] if large else [0.0], torch.inf

    @property
    def full(self) -> bool:
        """Whether nothing is left to be made more exact."""
        return len(self._levels) == 1

    def at(self, gap: float, product: float, total: float) -> float:
        """The ``double`` of `weighted_gram`: more exact near the end, and where an iteration has gained little.

        Args:
            gap: The largest.
            product: Sum of the products of values and slacks, which iterations take to zero, and the gap with it.
            total: The objective at zero.
        """
        little, self._product = product > _SLOW * self._product or gap > _BEHIND * product, product
        if not self.full and (little or (gap <= _CLOSE * total and self._levels[0] > _HEAVY)):
            self._levels.pop(0)
        return self._levels[0]


class _Search:
    """Best points and bounds of a batch of outputs, the first dimension of every tensor."""

    def __init__(
        self, settings: ColumnGeneration, programme: ReducedProgramme, penalty: ElasticNet, sign: Tensor, coef: Tensor,
        stop: StoppingRule,
    ) -> None:  # fmt: skip
        self.settings, self.programme, self.sign, self.stop = settings, programme, sign, stop
        self.penalty, self.l1, self.weight = penalty, penalty.l1, programme.weight
        self.large = programme.matrix.shape.numel() >= settings.large
        self.used = 0
        self.coef = coef.contiguous()
        self.value, self.intercept = self._values(self.coef)
        self.alpha = torch.zeros_like(sign)
        self.bound = torch.zeros_like(self.value)
        self.warm = False

    def run(self, alpha: Tensor | None) -> None:
        """Iterate until every output is within the tolerance or a limit is reached."""
        everything = torch.arange(self.sign.shape[0], device=self.sign.device)
        if self._start_is_bad():
            alpha = None
        self.warm = alpha is not None
        alpha = self.weight.expand_as(self.sign) if alpha is None else alpha.clamp_min(0).minimum(self.weight)
        self._price(everything, alpha)
        alive = self._open(everything)
        self._by_groups(alive[self.coef[alive].any(1)])
        alive = self._open(alive)
        if alive.numel() and not self._over():
            self._by_columns(alive)
        if self.used:
            self._make_sparse()

    def _start_is_bad(self) -> bool:
        """Whether the best constants are better; if so, they are the start."""
        constant = torch.zeros_like(self.coef)
        value, intercept = self._values(constant)
        if bool(self.value.sum() <= value.sum()):
            return False
        self.coef, self.value, self.intercept = constant, value, intercept
        return True

    def _open(self, alive: Tensor) -> Tensor:
        """Those outputs whose gap is too large."""
        return alive[(self.value - self.bound)[alive] > self.stop.tolerance]

    def _over(self) -> bool:
        limit = self.stop.max_iterations
        return (limit is not None and self.used >= limit) or self.stop.late

    def _improve(self, alive: Tensor, objective: Tensor, coef: Tensor, point: Tensor) -> None:
        """Keep the points, ``coef [C, p]`` with intercepts in ``point [C, free + k]``, that are the best so far."""
        better = objective < self.value[alive]
        if bool(better.any()):
            which = alive[better]
            self.value[which], self.coef[which] = objective[better], coef[better]
            if self.programme.fit_intercept:
                self.intercept[which] = point[better, 0]

    def _margins(self, alive: Tensor, coef: Tensor, intercept: Tensor) -> Tensor:
        """Outputs times labels of all rows, ``[C, n]``."""
        return self.sign[alive] * ((self.programme.matrix @ coef.T).T + intercept[:, None])

    def _by_groups(self, alive: Tensor) -> None:
        """Solve grouped programmes of growing size from the start, as long as they look small."""
        support = (self.coef != 0).sum(1)
        small = _SINGLE_ROWS * support[alive] + _MORE_SINGLE_ROWS <= _LARGEST_SHARE * self.sign.shape[1]
        alive = alive[small]
        if alive.numel() == 0:
            return
        state = self._first_grouping(alive, _SINGLE_ROWS * int(support[alive].max()) + _MORE_SINGLE_ROWS)
        self.warm = True
        entry = -0.1 * self.l1
        while state.alive.numel() and not self._over():
            state = self._next_grouping(state, entry)
            entry = -0.01 * self.l1

    def _first_grouping(self, alive: Tensor, count: int) -> _Grouping:
        """From the start: the ``count`` rows nearest to the margin are on their own."""
        coef, intercept, alpha = self.coef[alive], self.intercept[alive], self.alpha[alive]
        margin = self._margins(alive, coef, intercept)
        near = (1 - margin).abs().topk(min(count, margin.shape[1]), 1, largest=False)
        if not self.warm:
            width = near.values[:, -1:].clamp_min(1e-9)
            alpha = self.weight * (0.5 + 0.5 * (1 - margin) / width).clamp(0, 1)
        single = torch.zeros_like(margin, dtype=torch.bool).scatter(1, near.indices, True)
        correlation = self._price(alive, alpha)[1]
        return _Grouping(alive, coef, intercept, alpha, margin, single, coef != 0, correlation)

    def _next_grouping(self, state: _Grouping, entry: float) -> _Grouping:
        """Solve the grouped programmes; those outputs for which others are worth it, with the rows that went astray."""
        programme, weight, alive = self.programme, self.weight, state.alive
        rows, columns = programme.matrix.shape
        chosen = self._candidates(state.chosen, state.correlation, entry)
        grouped = group(programme, self.sign[alive], state.margin, state.single, chosen)
        point = grouped.columns.pick(state.coef)
        if programme.fit_intercept:
            point = torch.cat([state.intercept[:, None], point], 1)
        gap = (self.value - self.bound)[alive]
        report_gap(float(gap.max()), self.stop.tolerance, float(self.value[alive].max()))
        share = grouped.together(state.alpha / weight, weight.expand_as(state.alpha))
        iterate = initial(grouped.sign, grouped.cost, grouped.columns, self.penalty, (point, share, gap))
        iterate = self._solve_grouped(iterate, (_AHEAD * gap).clamp_min(0.2 * self.stop.tolerance))

        coef, alpha = iterate.spread(columns), weight * grouped.apart(iterate.alpha / iterate.cost)
        intercept = iterate.point[:, 0] if programme.fit_intercept else torch.zeros_like(state.intercept)
        margin = self._margins(alive, coef, intercept)
        objective = (1 - margin).clamp_min(0) @ weight + self.penalty.values(coef)
        self._improve(alive, objective, coef, iterate.point)
        correlation = self._price(alive, alpha)[1]
        single = state.single
        astray = ~single & ((margin < 1) != (alpha > weight / 2))
        miss = torch.where(astray, (1 - margin).abs() * weight, 0.0)
        left = (self.value - self.bound)[alive]
        going = (left > self.stop.tolerance) & (astray.sum(1) <= _ASTRAY * rows)
        going &= single.sum(1) <= _LARGEST_SHARE * rows
        bend = self.penalty.bend(torch.arange(columns, device=coef.device))
        violation = self.penalty.excess(correlation) - bend * coef.abs()
        going &= (left < 0.9 * gap) | astray.any(1) | (violation > 1e-9 * self.l1).any(1)
        worst = miss.topk(min(max(64, rows // 2), rows), 1).indices
        single = single.scatter(1, worst, single.gather(1, worst) | astray.gather(1, worst))
        return _Grouping(alive, coef, intercept, alpha, margin, single, chosen, correlation).subset(going)

    def _solve_grouped(self, iterate: Iterate, target: Tensor) -> Iterate:
        """Iterate until the products of every output sum to at most ``target [C]``, or for long enough."""
        for _ in range(_GROUPED_LIMIT):
            if self._over() or bool(((iterate.value * iterate.slack).sum(1) <= target).all()):
                break
            iterate = self._iterated(iterate, iterate.outputs(iterate.point))
        return iterate

    def _iterated(self, iterate: Iterate, margin: Tensor, double: float = 0.0) -> Iterate:
        """One interior point iteration of every output; ``double`` is that of `weighted_gram`."""
        system = RestrictedSystem(iterate, margin, self.penalty, double)
        moved = predictor_corrector(iterate.value, iterate.slack, system.direction, self.penalty.l1_ratio < 1)
        self.used += len(margin)
        return iterate.moved(*moved)

    def _by_columns(self, alive: Tensor) -> None:
        """Solve programmes with all rows and a growing number of columns."""
        programme, weight = self.programme, self.weight
        iterate = self._first_iterate(alive)
        stale = torch.zeros_like(alive)
        total, precision = float(weight.sum()), _Precision(self.large)
        while True:
            product = (iterate.slack * iterate.value).sum(1)
            margin = iterate.outputs(iterate.point)
            coef = iterate.spread(programme.matrix.shape[1])
            objective = (1 - margin).clamp_min(0) @ weight + self.penalty.values(coef)
            before = self.value[alive] - self.bound[alive]
            slope, correlation = self._price(alive, iterate.alpha)
            self._improve(alive, objective, coef, iterate.point)
            gap = self.value[alive] - self.bound[alive]
            report_gap(float(gap.max()), self.stop.tolerance, float(self.value[alive].max()))
            # in degenerate programmes rounding error takes over in the end
            stale = torch.where(gap < before, 0, stale + (precision.full & (product < 1e-6 * total)))
            going = (gap > (1 - _SPARSITY) * self.stop.tolerance) & (stale < _PATIENCE) & (product > 0)
            if self._over() or not bool(going.any()):
                break
            if not bool(going.all()):
                alive, stale, margin = alive[going], stale[going], margin[going]
                slope, correlation = slope[going], correlation[going]
                iterate = iterate.subset(going)
            inside = iterate.columns.chosen(correlation.shape[1])
            wanted = self._candidates(inside, correlation, 1e-9 * self.l1)
            if not torch.equal(wanted, inside):
                iterate = add_columns(programme, iterate, wanted, slope, self.l1)
                margin = iterate.outputs(iterate.point)
            double = precision.at(float(gap.max()), float(product.max()), total)
            iterate = self._iterated(iterate, margin, double)

    def _first_iterate(self, alive: Tensor) -> Iterate:
        """The support and the columns that violate most; near to the start, if it is close."""
        programme, weight, sign = self.programme, self.weight, self.sign[alive]
        correlation = self._price(alive, self.alpha[alive])[1]
        columns = gather(programme, self._candidates(self.coef[alive] != 0, correlation, -self.l1))
        start = None
        if self.warm:
            point = columns.pick(self.coef[alive])
            if programme.fit_intercept:
                point = torch.cat([self.intercept[alive, None], point], 1)
            start = point, self.alpha[alive] / weight, (self.value - self.bound)[alive]
        return initial(sign, weight.expand_as(sign), columns, self.penalty, start)

    def _price(self, alive: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """``-A^T alpha`` and, of the feasible point, ``|A^T alpha|`` for all columns, ``[C, p]``; keeps good bounds."""
        bound, feasible, both = proven(self.programme, self.penalty, self.sign[alive], alpha)
        better = bound > self.bound[alive]
        self.bound[alive[better]] = bound[better]
        self.alpha[alive[better]] = feasible[better]
        return -both[: alive.numel()], both[alive.numel() :].abs()

    def _candidates(self, chosen: Tensor, correlation: Tensor, margin: float) -> Tensor:
        """The chosen columns and those that exceed ``rho + margin``, a bounded number, the largest first."""
        price = torch.where(chosen, -torch.inf, self.penalty.excess(correlation))
        most = self.settings.warm_columns if self.warm else self.settings.columns
        count = min(max(most, int(chosen.sum(1).max())), price.shape[1])
        best = price.topk(count, 1)
        wanted = chosen.scatter(1, best.indices, chosen.gather(1, best.indices) | (best.values > margin))
        return torch.ones_like(wanted) if self.large and float(wanted.double().mean()) > _FULL else wanted

    def _make_sparse(self) -> None:
        """Set as many small coefficients to zero as a share of the tolerance allows."""
        limit = self.value + _SPARSITY * self.stop.tolerance
        size = self.coef.abs()
        largest = size.amax(1, keepdim=True)
        open_ = torch.ones_like(self.value, dtype=torch.bool)
        for exponent in range(-10, -1):
            sparse = torch.where(size > 10.0**exponent * largest, self.coef, 0.0)
            value, intercept = self._values(sparse)
            open_ &= value <= limit
            if not bool(open_.any()):
                break
            self.coef = torch.where(open_[:, None], sparse, self.coef)
            self.intercept = torch.where(open_, intercept, self.intercept)
            self.value = torch.where(open_, value, self.value)

    def _values(self, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives ``[C]`` at ``coef [C, p]`` and their best intercepts ``[C]``."""
        return objectives(self.programme, self.penalty, self.sign, coef)
