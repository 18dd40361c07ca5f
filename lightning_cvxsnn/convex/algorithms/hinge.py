r"""Hinge loss: one linear programme per output, by column generation inside an interior point method.

With signs folded in, ``A = t [1, D]``, each output solves

.. math:: \min_{x, \xi \ge 0} \; c^T \xi + \rho \sum_j |x_j| \quad\text{subject to}\quad A x + \xi - r = 1, \; r \ge 0

whose multipliers ``alpha`` of the rows satisfy ``0 <= alpha <= c`` and ``|A^T alpha| <= rho``. The interior point
method works on the programme restricted to a few columns (`restricted`). The multipliers of every iterate price all
columns; those that violate most are let in and the iteration goes on from where it is. After Dedieu, Mazumder, Wang,
"Solving L1-regularized SVMs and related linear programs", JMLR 23, 2022, and Gondzio, González-Brevis, Munari, "New
developments in the primal-dual column generation technique", EJOR 224(1), 2013. Outputs are separate programmes, solved
together.

From an earlier solution, rows far from the margin are expected to stay where they are: they are put together in groups
(`grouped`). The solution of the small programme that is left shows which rows have to leave their group and which
columns have to come in. If too many do, the start was not close, and the iteration above goes on with all rows.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.grouped import group
from lightning_cvxsnn.convex.algorithms.interior import predictor_corrector
from lightning_cvxsnn.convex.algorithms.restricted import Iterate, Linearised, admit, begin, gather
from lightning_cvxsnn.convex.presolve import Problem

__all__ = ["minimise_hinge"]

_ITERATION_LIMIT = 2000
_GROUP_ROWS = 100_000  # rows times outputs that are solved together
_COLUMNS = 100  # that enter together, or as many as there are already
_WARM_COLUMNS = 32  # the same, if the start is close
_PATIENCE = 6
_ROWS = 4, 30  # on their own at first, of a grouped programme: for each coefficient, and besides
_LARGEST_SHARE = 0.4  # of the rows; larger grouped programmes are not worth it
_ASTRAY = 0.1  # share of the rows on the wrong side of the margin: the start was not close
_AHEAD = 0.05  # share of the gap to which a grouped programme is solved
_GROUPED_LIMIT = 12  # iterations for one of them
_SPARSITY = 0.4  # share of the tolerance that small coefficients may cost when they are set to zero


def minimise_hinge(
    problem: Problem,
    rho: float,
    start: tuple[Tensor, Tensor],
    multipliers: Tensor | None,
    tolerance: float,
    max_iterations: int | None,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with hinge loss.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        start: Coefficients ``[p, C]`` and intercept ``[C]`` to start from.
        multipliers: Dual point ``[n, C]`` to start from; ``None``: none is known.
        tolerance: Absolute duality gap to reach over all outputs.
        max_iterations: Limit of interior point iterations, over all outputs; 2000 for ``None``.
        deadline: ``time.perf_counter()`` after which no iteration starts.

    Returns:
        Coefficients, intercept, dual point ``[n, C]`` (in its box; scaling is left to the certificate), interior point
        iterations, name of the algorithm.
    """
    left = _ITERATION_LIMIT if max_iterations is None else max_iterations
    rows, outputs = problem.encoded.shape
    share, used = tolerance / outputs, 0
    coef, intercept, dual_point = start[0].clone(), start[1].clone(), torch.zeros_like(problem.encoded)
    for batch in torch.arange(outputs, device=coef.device).split(max(1, _GROUP_ROWS // rows)):
        sign = problem.encoded[:, batch].T.contiguous()
        alpha = None if multipliers is None else sign * multipliers[:, batch].T
        search = _Search(problem, sign, rho, start[0][:, batch].T, share, left - used, deadline)
        search.run(alpha)
        used += search.used
        coef[:, batch], intercept[batch] = search.coef.T, search.intercept
        dual_point[:, batch] = (sign * search.alpha).T
    return coef, intercept, dual_point, used, "column-generation-interior-point"


class _Search:
    """Best points and bounds of a batch of outputs, the first dimension of every tensor."""

    def __init__(
        self, problem: Problem, sign: Tensor, rho: float, coef: Tensor, tolerance: float, limit: int, deadline: float
    ) -> None:
        self.problem, self.sign, self.rho, self.tolerance = problem, sign, rho, tolerance
        self.limit, self.deadline, self.used = limit, deadline, 0
        self.coef = coef.contiguous()
        self.value, self.intercept = _values(problem, sign, rho, self.coef)
        self.alpha = torch.zeros_like(sign)
        self.bound = torch.zeros_like(self.value)
        self.warm = False

    def run(self, alpha: Tensor | None) -> None:
        """Iterate until every output is within the tolerance or a limit is reached."""
        weight = self.problem.weight
        everything = torch.arange(self.sign.shape[0], device=self.sign.device)
        self.warm = alpha is not None
        alpha = weight.expand_as(self.sign) if alpha is None else alpha.clamp_min(0).minimum(weight)
        self._price(everything, alpha)
        alive = self._open(everything)
        self._by_groups(alive[self.coef[alive].any(1)])
        alive = self._open(alive)
        if alive.numel() and not self._over():
            self._by_columns(alive)
        if self.used:
            self._make_sparse()

    def _open(self, alive: Tensor) -> Tensor:
        """Those outputs whose gap is too large."""
        return alive[(self.value - self.bound)[alive] > self.tolerance]

    def _over(self) -> bool:
        return self.used >= self.limit or time.perf_counter() > self.deadline

    def _improve(self, alive: Tensor, objective: Tensor, coef: Tensor, point: Tensor) -> None:
        """Keep the points, ``coef [C, p]`` with intercepts in ``point [C, free + k]``, that are the best so far."""
        better = objective < self.value[alive]
        if bool(better.any()):
            which = alive[better]
            self.value[which], self.coef[which] = objective[better], coef[better]
            if self.problem.fit_intercept:
                self.intercept[which] = point[better, 0]

    def _margins(self, alive: Tensor, coef: Tensor, intercept: Tensor) -> Tensor:
        """Outputs times labels of all rows, ``[C, n]``."""
        return self.sign[alive] * ((self.problem.matrix @ coef.T).T + intercept[:, None])

    def _by_groups(self, alive: Tensor) -> None:
        """Solve grouped programmes of growing size from the start, as long as they look small."""
        problem, rho, weight = self.problem, self.rho, self.problem.weight
        rows, columns = problem.matrix.shape
        factor, besides = _ROWS
        support = self.coef != 0
        small = factor * support[alive].sum(1) + besides <= _LARGEST_SHARE * rows
        alive = alive[small]
        if alive.numel() == 0:
            return
        coef, intercept, alpha = self.coef[alive], self.intercept[alive], self.alpha[alive]
        margin = self._margins(alive, coef, intercept)
        count = factor * int(support[alive].sum(1).max()) + besides
        near = (1 - margin).abs().topk(min(count, rows), 1, largest=False)
        if not self.warm:
            alpha = weight * (0.5 + 0.5 * (1 - margin) / near.values[:, -1:].clamp_min(1e-9)).clamp(0, 1)
        single = torch.zeros_like(margin, dtype=torch.bool).scatter(1, near.indices, True)
        chosen = support[alive]
        correlation = self._price(alive, alpha)[1]
        self.warm = True
        entry = -0.1 * rho
        while alive.numel() and not self._over():
            chosen = self._candidates(chosen, correlation, entry)
            programme = group(problem, self.sign[alive], margin, single, chosen)
            point = torch.where(programme.real, coef.gather(1, programme.columns), 0.0)
            if problem.fit_intercept:
                point = torch.cat([intercept[:, None], point], 1)
            gap = (self.value - self.bound)[alive]
            share = programme.together(alpha / weight, weight.expand_as(alpha))
            iterate = begin(
                programme.sign, programme.cost, programme.columns, programme.real, programme.matrix, rho,
                (point, share, gap),
            )  # fmt: skip
            iterate = self._solve_grouped(iterate, (_AHEAD * gap).clamp_min(0.2 * self.tolerance))

            coef, alpha = iterate.spread(columns), weight * programme.apart(iterate.alpha / iterate.cost)
            intercept = iterate.point[:, 0] if problem.fit_intercept else torch.zeros_like(intercept)
            margin = self._margins(alive, coef, intercept)
            objective = (1 - margin).clamp_min(0) @ weight + rho * coef.abs().sum(1)
            self._improve(alive, objective, coef, iterate.point)
            correlation = self._price(alive, alpha)[1]
            astray = ~single & ((margin < 1) != (alpha > weight / 2))
            miss = torch.where(astray, (1 - margin).abs() * weight, 0.0)
            left = (self.value - self.bound)[alive]
            going = (left > self.tolerance) & (astray.sum(1) <= _ASTRAY * rows)
            going &= single.sum(1) <= _LARGEST_SHARE * rows
            going &= (left < 0.9 * gap) | astray.any(1) | (correlation > (1 + 1e-9) * rho).any(1)
            worst = miss.topk(min(max(64, single.shape[1] // 2), rows), 1).indices
            single = single.scatter(1, worst, single.gather(1, worst) | astray.gather(1, worst))
            alive, coef, intercept, alpha = alive[going], coef[going], intercept[going], alpha[going]
            margin, single, chosen, correlation = margin[going], single[going], chosen[going], correlation[going]
            entry = -0.01 * rho

    def _solve_grouped(self, iterate: Iterate, target: Tensor) -> Iterate:
        """Iterate until the products of every output sum to at most ``target [C]``, or for long enough."""
        for _ in range(_GROUPED_LIMIT):
            if self._over() or bool(((iterate.value * iterate.slack).sum(1) <= target).all()):
                break
            model = Linearised(iterate, iterate.outputs(iterate.point), self.rho)
            moved = predictor_corrector(iterate.value, iterate.slack, model.direction, together=False)
            iterate = iterate.moved(*moved)
            self.used += target.numel()
        return iterate

    def _by_columns(self, alive: Tensor) -> None:
        """Solve programmes with all rows and a growing number of columns."""
        problem, rho, weight = self.problem, self.rho, self.problem.weight
        slope, correlation = self._price(alive, self.alpha[alive])
        columns, real, matrix = gather(problem, self._candidates(self.coef[alive] != 0, correlation, -rho))
        start = None
        if self.warm:
            point = torch.where(real, self.coef[alive].gather(1, columns), 0.0)
            if problem.fit_intercept:
                point = torch.cat([self.intercept[alive, None], point], 1)
            start = point, self.alpha[alive] / weight, (self.value - self.bound)[alive]
        sign = self.sign[alive]
        iterate = begin(sign, weight.expand_as(sign), columns, real, matrix, rho, start)
        stale = torch.zeros_like(alive)
        total = float(weight.sum())
        while True:
            product = (iterate.slack * iterate.value).sum(1)
            margin = iterate.outputs(iterate.point)
            objective = (1 - margin).clamp_min(0) @ weight + rho * iterate.coef.abs().sum(1)
            before = self.value[alive] - self.bound[alive]
            slope, correlation = self._price(alive, iterate.alpha)
            self._improve(alive, objective, iterate.spread(problem.matrix.shape[1]), iterate.point)
            gap = self.value[alive] - self.bound[alive]
            # in degenerate programmes rounding error takes over in the end
            stale = torch.where(gap < before, 0, stale + (product < 1e-6 * total))
            going = (gap > (1 - _SPARSITY) * self.tolerance) & (stale < _PATIENCE) & (product > 0)
            if self._over() or not bool(going.any()):
                break
            if not bool(going.all()):
                alive, stale, margin = alive[going], stale[going], margin[going]
                slope, correlation = slope[going], correlation[going]
                iterate = iterate.keep(going)
            inside = iterate.chosen(correlation.shape[1])
            wanted = self._candidates(inside, correlation, 1e-9 * rho)
            if not torch.equal(wanted, inside):
                iterate = admit(problem, iterate, wanted, slope, rho)
                margin = iterate.outputs(iterate.point)
            model = Linearised(iterate, margin, rho)
            moved = predictor_corrector(iterate.value, iterate.slack, model.direction, together=False)
            iterate = iterate.moved(*moved)
            self.used += alive.numel()

    def _price(self, alive: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """``-A^T alpha`` and, of the feasible point, ``|A^T alpha|`` for all columns, ``[C, p]``; keeps good bounds."""
        sign = self.sign[alive]
        feasible = _balanced(alpha, sign) if self.problem.fit_intercept else alpha
        both = (self.problem.matrix.T @ torch.cat([sign * alpha, sign * feasible]).T).T
        correlation = both[alive.numel() :].abs()
        bound, feasible = self._bound(alpha, correlation, alive)
        better = bound > self.bound[alive]
        self.bound[alive[better]] = bound[better]
        self.alpha[alive[better]] = feasible[better]
        return -both[: alive.numel()], correlation

    def _bound(self, alpha: Tensor, correlation: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        feasible = _balanced(alpha, self.sign[alive]) if self.problem.fit_intercept else alpha
        return feasible.sum(1) * (self.rho / correlation.amax(1).clamp_min(1e-300)).clamp(max=1), feasible

    def _candidates(self, chosen: Tensor, correlation: Tensor, margin: float) -> Tensor:
        """The chosen columns and those that exceed ``rho + margin``, a bounded number, the largest first."""
        price = torch.where(chosen, -torch.inf, correlation - self.rho)
        count = min(max(_WARM_COLUMNS if self.warm else _COLUMNS, int(chosen.sum(1).max())), price.shape[1])
        best = price.topk(count, 1)
        return chosen.scatter(1, best.indices, chosen.gather(1, best.indices) | (best.values > margin))

    def _make_sparse(self) -> None:
        """Set as many small coefficients to zero as a share of the tolerance allows."""
        limit = self.value + _SPARSITY * self.tolerance
        size = self.coef.abs()
        largest = size.amax(1, keepdim=True)
        open_ = torch.ones_like(self.value, dtype=torch.bool)
        for exponent in range(-10, -1):
            sparse = torch.where(size > 10.0**exponent * largest, self.coef, 0.0)
            value, intercept = _values(self.problem, self.sign, self.rho, sparse)
            open_ &= value <= limit
            if not bool(open_.any()):
                break
            self.coef = torch.where(open_[:, None], sparse, self.coef)
            self.intercept = torch.where(open_, intercept, self.intercept)
            self.value = torch.where(open_, value, self.value)


def _values(problem: Problem, sign: Tensor, rho: float, coef: Tensor) -> tuple[Tensor, Tensor]:
    """Objectives ``[C]`` at ``coef [C, p]`` and their best intercepts ``[C]``."""
    margin = sign * (problem.matrix @ coef.T).T
    intercept = _best_intercepts(margin, sign, problem.weight) if problem.fit_intercept else margin.new_zeros(len(sign))
    loss = (1 - margin - sign * intercept[:, None]).clamp_min(0)
    return loss @ problem.weight + rho * coef.abs().sum(1), intercept


def _best_intercepts(margin: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
    """Exact minimisers in ``b`` of ``sum weight max(0, 1 - margin - sign b)``: where the slopes change sign."""
    kink, order = (sign * (1 - margin)).sort(1)
    # left of every kink all positive rows pay; each kink passed raises the slope by its weight
    slope = weight[order].cumsum(1) - ((sign > 0) * weight).sum(1, keepdim=True)
    return kink.gather(1, (slope < 0).sum(1, keepdim=True).clamp(max=kink.shape[1] - 1))[:, 0]


def _balanced(alpha: Tensor, sign: Tensor) -> Tensor:
    """Multipliers with the heavier sign shrunk to the total of the lighter, as the intercept demands."""
    positive = torch.where(sign > 0, alpha, 0.0).sum(1, keepdim=True)
    negative = torch.where(sign < 0, alpha, 0.0).sum(1, keepdim=True)
    lighter = torch.minimum(positive, negative)
    shrink = lighter / torch.where(sign > 0, positive, negative)
    return torch.where(alpha > 0, alpha * shrink.clamp(max=1), 0.0)
