r"""Squared loss and cross-entropy: proximal Newton on working sets.

Each iteration prices every entry by its gradient, takes those that are non-zero or violate ``|gradient| <= rho`` (a
bounded number of new ones, the worst first), minimises the second-order model with the L1 penalty over them
(`quadratic`) and searches along the line to that minimiser. Lee, Sun, Saunders, "Proximal
Newton-type methods for minimizing composite functions", SIAM J. Optim. 24(3), 2014. From a cold start, and from one
that violates by far, the penalty falls to rho by 70 % with each iteration, which keeps working sets small. An earlier
solution of a dictionary that has changed violates by far too, but its dual point tells which entries are near the
penalty: with it, the first working set is those and the support, at rho itself. A model that promises too much
(saturated rows have no curvature) is damped. At rho itself the certificate judges every iterate whose residuals are
close to feasible.

Outputs take turns: a model of one output is small, and the squared loss and a single logistic output lose nothing by
it. Softmax couples its outputs. There taking turns (block coordinate descent) finds the support at a tenth of the cost
of a model of all of them, but closes in on the values slowly: once the support settles, iterations are joint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.certify import certify
from lightning_cvxsnn.convex.losses import output_gradient, row_losses
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.presolve import Problem
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["minimise_smooth"]

_ITERATION_LIMIT = 200
_FIRST_WORKING_SET = 100  # new entries over all outputs, or as many of each output as there are already
_SMALL_MODEL = 500  # entries of all outputs together; below it nothing is gained by taking turns
_LARGEST_MODEL = 8192  # entries of all outputs together, so that the Hessian stays below half a GiB
_SETTLED = 0.1  # share of the support that may still change when outputs stop taking turns
_NEAR = 0.9  # share of rho above which the dual point of a start puts an entry into the first working set
_SHRINK, _SHRINKS = 0.7, 8  # of a start, as often as that improves it
_CONTINUATION = 0.3  # share of the penalty that remains from one iteration to the next, down to rho
_HOPEFUL = 100.0  # certify only if the residuals violate by at most this many tolerances, relative to the objective
_PROXIMAL = 1e-10  # relative; pins directions without curvature, such as a shift of all softmax outputs


def minimise_smooth(
    problem: Problem,
    rho: float,
    start: tuple[Tensor, Tensor],
    multipliers: Tensor | None,
    tolerance: float,
    max_iterations: int | None,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, int, str]:
    """Solve a reduced programme with squared loss or cross-entropy.

    Args:
        problem: The reduced programme.
        rho: Penalty.
        start: Coefficients ``[p, C]`` and intercept ``[C]`` to start from.
        multipliers: Dual point ``[n, C]`` of an earlier solution; ``None``: none is known.
        tolerance: Absolute duality gap to reach.
        max_iterations: Limit of Newton iterations; 200 for ``None``.
        deadline: ``time.perf_counter()`` after which no iteration starts.

    Returns:
        Coefficients, intercept, feasible dual point ``[n, C]``, Newton iterations, name of the algorithm.
    """
    rows, columns = problem.matrix.shape
    weight, matrix, coef = problem.weight, problem.matrix, start[0]
    penalised = torch.ones_like(coef)
    if problem.fit_intercept:
        matrix = matrix.with_ones()
        penalised = torch.cat([penalised, torch.zeros_like(penalised[:1])])
        coef = torch.cat([coef, start[1][None]])
    outputs, dual_point = matrix @ coef, None

    def objective(outputs: Tensor, coef: Tensor) -> float:
        return float(weight @ row_losses(outputs, problem.encoded, problem.loss) + rho * coef[:columns].abs().sum())

    primal = objective(outputs, coef)
    if bool(coef[:columns].any()):  # of other columns than the start was found with: too large where they disagree
        for _ in range(_SHRINKS):
            shrunk = objective(_SHRINK * outputs, _SHRINK * coef)
            if not shrunk < primal:
                break
            primal, outputs, coef = shrunk, _SHRINK * outputs, _SHRINK * coef
    grams = _Grams(matrix, weight)
    best = (float("inf"), coef)
    limit = _ITERATION_LIMIT if max_iterations is None else max_iterations
    current, damping, unsettled = math.inf, 0.0, True
    for iteration in range(limit + 1):
        primal = objective(outputs, coef)
        if primal < best[0]:
            best = (primal, coef)
        gradient = matrix.T @ (weight[:, None] * output_gradient(outputs, problem.encoded, problem.loss))
        steepest = float((gradient.abs() * penalised).max())
        if current in (rho, math.inf) and (steepest - rho) * primal <= _HOPEFUL * rho * tolerance:
            shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
            proof, dual_point = certify(
                problem.matrix, problem.encoded, weight * rows, coef[:columns], shift, problem.loss, rho,
                problem.fit_intercept, dual_point,
            )  # fmt: skip
            if proof.gap <= tolerance:
                break
        if iteration == limit or time.perf_counter() > deadline:
            break
        near = multipliers is not None
        current = rho if near else max(rho, _CONTINUATION * min(current, steepest))
        penalty = current * penalised
        raised = damping * matrix.squared_norms(weight) / 4 if damping else None  # no probability curves more
        if multipliers is None:
            working = _working(coef, gradient, penalty)
        else:
            working, multipliers = _working(coef, matrix.T @ multipliers, _NEAR * penalty), None
        size, support = int(working.sum()), coef != 0
        if size == 0:
            break  # nothing in use and nothing violates: only rounding error is left
        if not _coupled(problem) or (unsettled and size > _SMALL_MODEL) or size > _LARGEST_MODEL:
            length, coef, outputs = _in_turn(problem, matrix, grams, outputs, coef, gradient, working, penalty, raised)
            changed = int((support != (coef != 0)).sum())
            unsettled = current > rho or changed > _SETTLED * int(support.sum())
        else:
            length, coef, outputs = _together(problem, matrix, outputs, coef, gradient, working, penalty, raised)
        if near and length < 1:
            current = math.inf  # not near after all
        elif length == 0 and current == rho:
            if damping >= 1:
                break  # rounding error: nothing descends any more
            damping = max(10 * damping, 1e-4)
        elif length < 0.25:
            damping = max(10 * damping, 1e-4)
        elif length == 1:
            damping = damping / 10 if damping > 1e-8 else 0.0
    coef = best[1]
    shift = coef[columns] if problem.fit_intercept else torch.zeros_like(start[1])
    if dual_point is None:
        dual_point = torch.zeros_like(problem.encoded)
    return coef[:columns], shift, dual_point, iteration, "working-set-newton"


def _coupled(problem: Problem) -> bool:
    return problem.loss == "cross_entropy" and problem.encoded.shape[1] > 1


def _working(coef: Tensor, gradient: Tensor, penalty: Tensor) -> Tensor:
    """Entries ``[p, C]`` to work on: those in use, those without a penalty, and the worst violations of each output."""
    working = (coef != 0) | (penalty == 0)
    violation = torch.where(working, 0.0, gradient.abs() - penalty)
    room = max(_FIRST_WORKING_SET // coef.shape[1], int(working.sum(0).max()), 1)
    room = min(room, violation.shape[0])
    worst = violation.topk(room, 0)
    return working.scatter(0, worst.indices, working.gather(0, worst.indices) | (worst.values > 0))


class _Grams:
    """The Hessian of the squared loss, the same for all outputs and points: its entries are computed once."""

    def __init__(self, matrix: Matrix, weight: Tensor) -> None:
        self.matrix, self.weight = matrix, weight
        self._forget()

    def _forget(self) -> None:
        self.columns = torch.zeros(0, dtype=torch.long, device=self.weight.device)
        self.place = self.columns.new_full((self.matrix.shape[1],), -1)
        self.entries = self.weight.new_zeros(0, 0)

    def of(self, columns: Tensor) -> Tensor:
        """``G^T diag(weight) G`` for ``G = matrix[:, columns]``, a copy."""
        new = columns[self.place[columns] < 0]
        if self.columns.numel() + new.numel() > _LARGEST_MODEL:
            self._forget()
            new = columns
        if new.numel():
            known = self.columns.numel()
            self.columns = torch.cat([self.columns, new])
            self.place[new] = torch.arange(known, self.columns.numel(), device=new.device)
            border = self.matrix.gram(self.columns, known, self.weight)
            top = torch.cat([self.entries, border[:known]], 1)
            self.entries = torch.cat([top, border.T])
        at = self.place[columns]
        return self.entries.index_select(0, at).index_select(1, at)


def _in_turn(
    problem: Problem,
    matrix: Matrix,
    grams: _Grams,
    outputs: Tensor,
    coef: Tensor,
    gradient: Tensor,
    working: Tensor,
    penalty: Tensor,
    raised: Tensor | None,
) -> tuple[float, Tensor, Tensor]:
    """A step of each output, given those before it: the shortest length (0: none moved), new point and outputs."""
    weight, loss = problem.weight, problem.loss
    lengths: list[float] = []
    outputs, coef = outputs.clone(), coef.clone()
    for c in range(outputs.shape[1]):
        rows = working[:, c].nonzero()[:, 0]
        if rows.numel() == 0:
            continue
        own, target, offset = outputs[:, c, None], problem.encoded[:, c, None], torch.zeros_like(outputs[:, :1])
        if _coupled(problem):  # given the others, one output of a softmax is a logistic output with an offset
            offset = torch.cat([outputs[:, :c], outputs[:, c + 1 :]], 1).logsumexp(1, keepdim=True)
        own = own - offset
        if loss == "squared":
            hessian, descent = grams.of(rows), gradient[rows, c]
        else:
            curvature = weight * (torch.sigmoid(own) * torch.sigmoid(-own))[:, 0]
            hessian, descent = matrix.model(rows, curvature, weight * output_gradient(own, target, loss)[:, 0])
        old, cost = coef[rows, c], penalty[rows, c]
        move, predicted = _minimiser(hessian, descent, old, cost, None if raised is None else raised[rows])
        if not bool(move.any()):
            continue
        spread = torch.zeros_like(coef[:, :1])
        spread[rows, 0] = move
        change = matrix @ spread
        lengths.append(_length(problem, target, own, change, old, move, cost, predicted))
        outputs[:, c] += lengths[-1] * change[:, 0]
        coef[rows, c] += lengths[-1] * move
    return min(lengths, default=0.0), coef, outputs


def _together(
    problem: Problem,
    matrix: Matrix,
    outputs: Tensor,
    coef: Tensor,
    gradient: Tensor,
    working: Tensor,
    penalty: Tensor,
    raised: Tensor | None,
) -> tuple[float, Tensor, Tensor]:
    """One step of all outputs: its length (0: no descent), the new point and outputs."""
    columns, rows = working.T.nonzero(as_tuple=True)  # sorted by output
    old, cost = coef[rows, columns], penalty[rows, columns]
    stop = torch.bincount(columns, minlength=outputs.shape[1]).cumsum(0).tolist()
    spans = [slice(first, last) for first, last in zip([0, *stop[:-1]], stop, strict=True) if first < last]
    hessian = _softmax_hessian(problem, matrix, outputs, rows, columns, spans)
    damped = None if raised is None else raised[rows]
    move, predicted = _minimiser(hessian, gradient[rows, columns], old, cost, damped)
    spread = torch.zeros_like(coef)
    spread[rows, columns] = move
    change = matrix @ spread
    length = _length(problem, problem.encoded, outputs, change, old, move, cost, predicted)
    return length, coef + length * spread, outputs + length * change


def _minimiser(
    hessian: Tensor, gradient: Tensor, old: Tensor, penalty: Tensor, raised: Tensor | None
) -> tuple[Tensor, float]:
    """Move to the minimiser of the model, and the change it predicts."""
    hessian.diagonal().mul_(1 + _PROXIMAL)
    if raised is not None:
        hessian.diagonal().add_(raised)
    new, predicted, _ = minimise_quadratic(hessian, gradient, old, penalty)
    return new - old, predicted


def _length(
    problem: Problem,
    encoded: Tensor,
    outputs: Tensor,
    change: Tensor,
    old: Tensor,
    move: Tensor,
    penalty: Tensor,
    predicted: float,
) -> float:
    """Backtrack until the objective falls by a share of what was predicted; 0 if it never does."""

    def objective(at: Tensor, z: Tensor) -> float:
        return float(problem.weight @ row_losses(z, encoded, problem.loss) + penalty @ at.abs())

    value, step = objective(old, outputs), 1.0
    while step > 1e-6:
        moved = old + step * move
        if objective(moved, outputs + step * change) <= value + 1e-3 * step * predicted + 1e-15 * abs(value):
            return 0.0 if torch.equal(moved, old) else step
        step /= 2
    return 0.0


def _softmax_hessian(
    problem: Problem, matrix: Matrix, outputs: Tensor, rows: Tensor, columns: Tensor, spans: Sequence[slice]
) -> Tensor:
    """Hessian of softmax cross-entropy over the entries ``(rows, columns)``, those of one output in one span."""
    weight = problem.weight
    probability = torch.softmax(outputs, 1)
    top = probability.argmax(1, keepdim=True)
    complement = (1 - probability).scatter(1, top, probability.scatter(1, top, 0.0).sum(1, keepdim=True))
    # p (1 - p) without the cancellation of p - p^2, which would leave saturated rows with negative curvature
    own = (weight[:, None] * probability * complement).sqrt()
    scale = probability * weight.sqrt()[:, None]
    upper = weight.new_zeros(rows.numel(), rows.numel())
    count_work(len(weight) * rows.numel() ** 2 // 2)
    for part, block in matrix.gathered(rows):
        for span in spans:
            root = block[:, span] * own[part, columns[span.start], None]
            upper[span, span].addmm_(root.T, root)
        block *= scale[part].index_select(1, columns)
        for span in spans:
            upper[span, span.stop :].addmm_(block[:, span].T, block[:, span.stop :], alpha=-1)
    for span in spans:
        upper[span.stop :, span] = upper[span, span.stop :].T
    return upper
