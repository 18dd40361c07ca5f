r"""Hinge loss: one linear programme per output, by column generation inside an interior point method.

With signs folded in, ``A = t [1, D]``, each output solves

.. math:: \min_{x, \xi \ge 0} \; c^T \xi + \rho \sum_j |x_j| \quad\text{subject to}\quad A x + \xi - r = 1, \; r \ge 0

whose multipliers ``alpha`` of the rows satisfy ``0 <= alpha <= c`` and ``|A^T alpha| <= rho``. The interior point
method works on the programme restricted to a few columns (:mod:`~lightning_cvxsnn.convex.restricted`). The multipliers
of every iterate price all columns; those that violate most are let in and the iteration goes on from where it is. After
Dedieu, Mazumder, Wang, "Solving L1-regularized SVMs and related linear programs", JMLR 23, 2022, and Gondzio,
González-Brevis, Munari, "New developments in the primal-dual column generation technique", EJOR 224(1), 2013. Outputs
are separate programmes, solved together.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lightning_cvxsnn.convex.interior import predictor_corrector
from lightning_cvxsnn.convex.reduction import Problem
from lightning_cvxsnn.convex.restricted import Linearised, admit, begin

__all__ = ["minimise_hinge"]

_ITERATION_LIMIT = 2000
_GROUP_ROWS = 100_000  # rows times outputs that are solved together
_COLUMNS = 100  # that enter together, or as many as there are already
_WARM_COLUMNS = 32  # the same, if the start is close
_PATIENCE = 6
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
        multipliers: Dual point ``[n, C]`` to start from; ``None``: a cold start.
        tolerance: Absolute duality gap to reach over all outputs.
        max_iterations: Limit of interior point iterations, over all outputs; 2000 for ``None``.
        deadline: ``time.perf_counter()`` after which no iteration starts.

    Returns:
        Coefficients, intercept, dual point ``[n, C]`` (in its box; scaling is left to the certificate), interior point
        iterations, name of the algorithm.
    """
    left = _ITERATION_LIMIT if max_iterations is None else max_iterations
    rows, outputs = problem.encoded.shape
    share, total = tolerance / outputs, 0
    coef, intercept, dual_point = start[0].clone(), start[1].clone(), torch.zeros_like(problem.encoded)
    for group in torch.arange(outputs, device=coef.device).split(max(1, _GROUP_ROWS // rows)):
        sign = problem.encoded[:, group].T.contiguous()
        alpha = None if multipliers is None else sign * multipliers[:, group].T
        search = _Search(problem, sign, rho, start[0][:, group].T, share)
        used = search.run(alpha, left - total, deadline)
        total += used
        coef[:, group], intercept[group] = search.coef.T, search.intercept
        dual_point[:, group] = (sign * search.alpha).T
    return coef, intercept, dual_point, total, "column-generation-interior-point"


class _Search:
    """Best points and bounds of a group of outputs, the first dimension of every tensor."""

    def __init__(self, problem: Problem, sign: Tensor, rho: float, coef: Tensor, tolerance: float) -> None:
        self.problem, self.sign, self.rho, self.tolerance = problem, sign, rho, tolerance
        self.coef = coef.contiguous()
        self.value, self.intercept = _values(problem, sign, rho, self.coef)
        self.alpha = torch.zeros_like(sign)
        self.bound = torch.zeros_like(self.value)
        self.warm = False

    def run(self, alpha: Tensor | None, limit: int, deadline: float) -> int:
        """Iterate until every output is within the tolerance or the limit is reached; returns iterations."""
        problem, rho = self.problem, self.rho
        used = 0
        alive = torch.arange(self.sign.shape[0], device=self.sign.device)
        self.warm = alpha is not None
        alpha = problem.weight.expand_as(self.sign) if alpha is None else alpha.clamp_min(0).minimum(problem.weight)
        slope, correlation = self._price(alive, alpha)
        alive = alive[self.value - self.bound > self.tolerance]
        if alive.numel() == 0 or limit <= 0:
            return 0
        chosen = self._candidates(self.coef[alive] != 0, correlation[alive], -rho)
        gap = (self.value - self.bound)[alive] if self.warm else None
        point = self.coef[alive], self.intercept[alive]
        iterate = begin(problem, self.sign[alive], rho, point, alpha[alive], slope[alive], chosen, gap)
        stale = torch.zeros_like(alive)
        total = float(problem.weight.sum())
        while True:
            product = (iterate.slack * iterate.value).sum(1)
            alpha = iterate.alpha
            margin = iterate.outputs(iterate.point)
            objective = (1 - margin).clamp_min(0) @ problem.weight + rho * iterate.coef.abs().sum(1)
            before = self.value[alive] - self.bound[alive]
            slope, correlation = self._price(alive, alpha)
            better = objective < self.value[alive]
            if bool(better.any()):
                self.value[alive[better]] = objective[better]
                self.coef[alive[better]] = iterate.spread(problem.matrix.shape[1])[better]
                if problem.fit_intercept:
                    self.intercept[alive[better]] = iterate.point[better, 0]
            gap = self.value[alive] - self.bound[alive]
            # in degenerate programmes rounding error takes over in the end
            stale = torch.where(gap < before, 0, stale + (product < 1e-6 * total))
            going = (gap > (1 - _SPARSITY) * self.tolerance) & (stale < _PATIENCE) & (product > 0)
            if used >= limit or time.perf_counter() > deadline or not bool(going.any()):
                break
            if not bool(going.all()):
                alive, stale, margin = alive[going], stale[going], margin[going]
                slope, correlation, objective = slope[going], correlation[going], objective[going]
                iterate = iterate.keep(going)
            inside = iterate.chosen(correlation.shape[1])
            wanted = self._candidates(inside, correlation, 1e-9 * rho)
            if not torch.equal(wanted, inside):
                iterate = admit(problem, iterate, wanted, slope, rho)
                margin = iterate.outputs(iterate.point)
            model = Linearised(iterate, margin, rho)
            value, slack, step = predictor_corrector(iterate.value, iterate.slack, model.direction, together=False)
            iterate = iterate.moved(value, slack, step)
            used += alive.numel()
        self._make_sparse()
        return used

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
