r"""Smooth losses with L1 in the penalty: proximal Newton on working sets.

Each iteration prices every entry by its gradient, takes those that are non-zero or violate ``|gradient| <= rho a`` (a
bounded number of new ones, the worst first), minimises the second-order model with the L1 penalty over them
(`quadratic`; squares in the penalty are a part of the model) and searches along the line to that minimiser. Lee, Sun,
Saunders, "Proximal Newton-type methods for minimizing composite functions", SIAM J. Optim. 24(3), 2014. From a cold
start, and from one that violates by far, the penalty falls to rho by 70 % with each iteration, which keeps working sets
small. An earlier solution of a dictionary that has changed violates by far too, but its dual point tells which entries
are near the penalty: with it, the first working set is those and the support, at rho itself. A model that promises too
much (saturated rows have no curvature) is damped. At rho itself the certificate judges every iterate whose residuals
are close to feasible.

Outputs take turns: a model of one output is small, and the squared loss and a single logistic output lose nothing by
it. Softmax couples its outputs. There taking turns (block coordinate descent) finds the support at a tenth of the cost
of a model of all of them, but closes in on the values slowly: once the support settles, iterations are joint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule, smooth
from lightning_cvxsnn.convex.algorithms.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.certify import Certifier
from lightning_cvxsnn.convex.losses import SmoothLoss, proof_named
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.penalties import ElasticNet, proof_of, soft_threshold
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap

__all__ = ["WorkingSetNewton"]

_FIRST_WORKING_SET = 100  # new entries over all outputs, or as many of each output as there are already
_SETTLED = 0.1  # share of the support that may still change when outputs stop taking turns
_NEAR = 0.9  # share of rho above which the dual point of a start puts an entry into the first working set
_SHRINK, _SHRINKS = 0.7, 8  # of a start, as often as that improves it
_CONTINUATION = 0.3  # share of the penalty that remains from one iteration to the next, down to rho
_HOPEFUL = 100.0  # certify only if the residuals violate by at most this many tolerances, relative to the objective
_LEAST_RATIO = 1e-3  # of L1 for which the continuation starts
_PROXIMAL = 1e-10  # relative; pins directions without curvature, such as a shift of all softmax outputs


@dataclass(frozen=True)
class WorkingSetNewton:
    """Proximal Newton on working sets.

    Attributes:
        iteration_limit: Newton iterations, if the stopping rule has no limit of its own.
        small_model: Entries of all outputs together up to which nothing is gained by taking turns.
        largest_model: Entries of one model, so that its Hessian stays below half a GiB.
    """

    iteration_limit: int = 200
    small_model: int = 500
    largest_model: int = 8192

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Smooth losses, if the penalty is not ridge alone."""
        return isinstance(programme.loss, SmoothLoss) and isinstance(penalty, ElasticNet) and penalty.l1_ratio > 0

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme with a smooth loss; see :class:`Algorithm`."""
        descent = _Descent(self, programme, penalty, start)
        limit = self.iteration_limit if stop.max_iterations is None else stop.max_iterations
        iterations, dual_point = descent.run(start.dual_point, limit, stop)
        coef, intercept = descent.split(descent.best[1])
        if dual_point is None:
            dual_point = torch.zeros_like(programme.encoded)
        return Minimum(coef, intercept, dual_point, iterations, "working-set-newton")


class _Move(NamedTuple):
    """From a point of some entries to the minimiser of their model."""

    old: Tensor  # [k]
    step: Tensor  # [k]
    weights: Tensor  # [k] of their absolute values
    ridge: Tensor  # [k] of half their squares
    predicted: float  # change of the objective


class _Descent:
    """The iterate of one solve: coefficients ``[p (+ 1), C]``, the intercept's last, and their outputs ``[n, C]``."""

    def __init__(
        self, settings: WorkingSetNewton, programme: ReducedProgramme, penalty: ElasticNet, start: Point
    ) -> None:
        loss = smooth(programme)
        rows, self.columns = programme.matrix.shape
        self.settings, self.programme, self.penalty, self.loss = settings, programme, penalty, loss
        self.weight, self.encoded, self.coupled = programme.weight, programme.encoded, loss.coupled(start.coef.shape[1])
        self.matrix, self.coef = programme.matrix, start.coef
        self.penalised = torch.ones_like(self.coef)
        if programme.fit_intercept:
            self.matrix = self.matrix.with_ones()
            self.penalised = torch.cat([self.penalised, torch.zeros_like(self.penalised[:1])])
            self.coef = torch.cat([self.coef, start.intercept[None]])
        self.outputs = self.matrix @ self.coef
        self.best = (math.inf, self.coef)
        self.damping, self.unsettled = 0.0, True
        self.grams = _Grams(self.matrix, self.weight, settings.largest_model)
        self.certifier = Certifier(
            programme.matrix, self.encoded, self.weight * rows, proof_named(loss.name), proof_of(penalty),
            programme.fit_intercept,
        )  # fmt: skip

    def split(self, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[p, C]`` and intercept ``[C]``."""
        fitted = self.programme.fit_intercept
        return coef[: self.columns], coef[self.columns] if fitted else torch.zeros_like(self.encoded[0])

    def run(self, multipliers: Tensor | None, limit: int, stop: StoppingRule) -> tuple[int, Tensor | None]:
        """Iterate; the number of iterations, and the last dual point that was certified."""
        self._shrink()
        if self._start_is_bad():
            multipliers = None
        rho, current = self.penalty.rho, math.inf
        dual_point = None
        for iteration in range(limit + 1):
            primal = self._objective(self.outputs, self.coef)
            if primal < self.best[0]:
                self.best = (primal, self.coef)
            gradient = self.matrix.T @ (self.weight[:, None] * self.loss.gradient(self.outputs, self.encoded))
            steepest, gap = self._distance(gradient, primal)
            report_gap(gap, stop.tolerance, primal)
            if current in (rho, math.inf) and gap <= _HOPEFUL * stop.tolerance:
                proof, dual_point = self.certifier.certify(*self.split(self.coef), dual_point)
                if proof.gap <= stop.tolerance:
                    break
            if iteration == limit or stop.late:
                break
            near = multipliers is not None
            current = rho if near else max(rho, _CONTINUATION * min(current, steepest))
            if multipliers is None:
                working = self._working(gradient, self.penalty.at(current))
            else:
                working = self._working(self.matrix.T @ multipliers, self.penalty.at(_NEAR * current))
                multipliers = None
            size = int(working.sum())
            if size == 0:
                break  # nothing in use and nothing violates: only rounding error is left
            length = self._step(gradient, working, size, self.penalty.at(current), stop)
            if near and length < 1:
                current = math.inf  # the start was not near
            elif not self._adapt(length, current):
                break
        return iteration, dual_point

    def _distance(self, gradient: Tensor, primal: float) -> tuple[float, float]:
        """The rho that the steepest slope asks for, and about the gap of the residuals."""
        slope = gradient + self._ridge(self.penalty) * self.coef
        steepest = self.penalty.largest_rho(slope * self.penalised, _LEAST_RATIO)
        gap = primal * max(steepest / self.penalty.rho - 1, 0.0)
        if self.penalty.l1_ratio < 1:
            beyond = soft_threshold(slope[: self.columns], self.penalty.l1)
            gap = min(gap, float(beyond.square().sum()) / (2 * self.penalty.l2))
        return steepest, gap

    def _ridge(self, penalty: ElasticNet) -> Tensor:
        """Curvature of the penalty in the entries of each row of the coefficients, ``[p (+ 1), 1]``."""
        curvature = penalty.curvature(self.columns)
        ridge = torch.zeros_like(self.coef[:, :1])
        if curvature is not None:
            ridge[: self.columns] = curvature
        return ridge

    def _objective(self, outputs: Tensor, coef: Tensor) -> float:
        loss = self.weight @ self.loss.values(outputs, self.encoded)
        return float(loss + self.penalty.value(coef[: self.columns]))

    def _shrink(self) -> None:
        """Shrink a start that was found with other columns: it is too large where they disagree."""
        if not bool(self.coef[: self.columns].any()):
            return
        primal = self._objective(self.outputs, self.coef)
        for _ in range(_SHRINKS):
            outputs, coef = _SHRINK * self.outputs, _SHRINK * self.coef
            shrunk = self._objective(outputs, coef)
            if not shrunk < primal:
                break
            primal, self.outputs, self.coef = shrunk, outputs, coef

    def _start_is_bad(self) -> bool:
        """Whether the best constant is better; if so, that is the start."""
        coef, intercept = self.programme.constant()
        constant = torch.cat([coef, intercept[None]]) if self.programme.fit_intercept else coef
        outputs = self.matrix @ constant
        if self._objective(self.outputs, self.coef) <= self._objective(outputs, constant):
            return False
        self.coef, self.outputs = constant, outputs
        return True

    def _working(self, slope: Tensor, penalty: ElasticNet) -> Tensor:
        """Entries ``[p, C]`` to work on: those in use, those without a penalty, and the worst violations."""
        working = (self.coef != 0) | (self.penalised == 0)
        violation = torch.where(working, 0.0, penalty.excess(slope))
        most = max(_FIRST_WORKING_SET // working.shape[1], int(working.sum(0).max()), 1)
        worst = violation.topk(min(most, violation.shape[0]), 0)
        return working.scatter(0, worst.indices, working.gather(0, worst.indices) | (worst.values > 0))

    def _step(self, gradient: Tensor, working: Tensor, size: int, penalty: ElasticNet, stop: StoppingRule) -> float:
        """Towards the minimiser of the model over ``size`` entries; the length of the step, 0 if nothing descends."""
        support, ridge = self.coef != 0, self._ridge(penalty)
        weights = penalty.weights(self.penalised)
        gradient = gradient + ridge * self.coef
        # in units of a quarter of the largest curvature of a loss of size 1: that of a probability
        raised = self.damping * self.matrix.squared_norms(self.weight) / 4 if self.damping else None
        turns = (self.unsettled and size > self.settings.small_model) or size > self.settings.largest_model
        if self.coupled and not turns:
            return self._together(gradient, working, weights, ridge, raised)
        length = self._in_turn(gradient, working, weights, ridge, raised, stop)
        changed = int((support != (self.coef != 0)).sum())
        self.unsettled = penalty.rho > self.penalty.rho or changed > _SETTLED * int(support.sum())
        return length

    def _adapt(self, length: float, current: float) -> bool:
        """Damp the next model by how far this one could be trusted; whether there is any point in going on."""
        if length == 0 and current == self.penalty.rho and self.damping >= 1:
            return False  # rounding error: nothing descends any more
        if length < 0.25:
            self.damping = max(10 * self.damping, 1e-4)
        elif length == 1:
            self.damping = self.damping / 10 if self.damping > 1e-8 else 0.0
        return True

    def _in_turn(
        self,
        gradient: Tensor,
        working: Tensor,
        weights: Tensor,
        ridge: Tensor,
        raised: Tensor | None,
        stop: StoppingRule,
    ) -> float:
        """A step of each output, given those before it, until it is late; the shortest length."""
        lengths: list[float] = []
        self.outputs, self.coef = self.outputs.clone(), self.coef.clone()
        for c in range(self.outputs.shape[1]):
            rows = working[:, c].nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            if lengths and stop.late:
                break
            own, target = self.loss.one_output(self.outputs, c), self.encoded[:, c, None]
            if self.loss.quadratic:
                hessian, descent = self.grams.of(rows), gradient[rows, c]
            else:
                curvature = self.weight * self.loss.curvature(own, target)[:, 0]
                slope = self.weight * self.loss.gradient(own, target)[:, 0]
                hessian, descent = self.matrix.model(rows, curvature, slope)
                descent += ridge[rows, 0] * self.coef[rows, c]
            damped = None if raised is None else raised[rows]
            move = _minimiser(hessian, descent, self.coef[rows, c], weights[rows, c], ridge[rows, 0], damped)
            if not bool(move.step.any()):
                continue
            spread = torch.zeros_like(self.coef[:, :1])
            spread[rows, 0] = move.step
            change = self.matrix @ spread
            lengths.append(self._length(target, own, change, move))
            self.outputs[:, c] += lengths[-1] * change[:, 0]
            self.coef[rows, c] += lengths[-1] * move.step
        return min(lengths, default=0.0)

    def _together(
        self, gradient: Tensor, working: Tensor, weights: Tensor, ridge: Tensor, raised: Tensor | None
    ) -> float:
        """One step of all outputs; its length."""
        owner, rows = working.T.nonzero(as_tuple=True)  # sorted by output
        local = self.loss.local(self.outputs, self.encoded)
        hessian = self.loss.joint_hessian(self.matrix, self.weight, local, rows, owner)
        damped = None if raised is None else raised[rows]
        old, penalties = self.coef[rows, owner], (weights[rows, owner], ridge[rows, 0])
        move = _minimiser(hessian, gradient[rows, owner], old, *penalties, damped)
        spread = torch.zeros_like(self.coef)
        spread[rows, owner] = move.step
        change = self.matrix @ spread
        length = self._length(self.encoded, self.outputs, change, move)
        self.coef, self.outputs = self.coef + length * spread, self.outputs + length * change
        return length

    def _length(self, encoded: Tensor, outputs: Tensor, change: Tensor, move: _Move) -> float:
        """Backtrack until the objective falls by a share of what was predicted; 0 if it never does."""

        def objective(at: Tensor, z: Tensor) -> float:
            return float(
                self.weight @ self.loss.values(z, encoded) + move.weights @ at.abs() + move.ridge @ at.square() / 2
            )

        value, length = objective(move.old, outputs), 1.0
        while length > 1e-6:
            moved = move.old + length * move.step
            enough = value + 1e-3 * length * move.predicted + 1e-15 * abs(value)
            if objective(moved, outputs + length * change) <= enough:
                return 0.0 if torch.equal(moved, move.old) else length
            length /= 2
        return 0.0


def _minimiser(
    hessian: Tensor, gradient: Tensor, old: Tensor, weights: Tensor, ridge: Tensor, raised: Tensor | None
) -> _Move:
    """The move to the minimiser of a model, whose diagonal is ``raised`` by the damping."""
    hessian.diagonal().mul_(1 + _PROXIMAL).add_(ridge)
    if raised is not None:
        hessian.diagonal().add_(raised)
    new, predicted, _ = minimise_quadratic(hessian, gradient, old, weights)
    return _Move(old, new - old, weights, ridge, predicted)


class _Grams:
    """The Hessian of the squared loss, the same for all outputs and points: its entries are computed once."""

    def __init__(self, matrix: Matrix, weight: Tensor, largest: int) -> None:
        self.matrix, self.weight, self.largest = matrix, weight, largest
        self._forget()

    def _forget(self) -> None:
        self.columns = torch.zeros(0, dtype=torch.long, device=self.weight.device)
        self.place = self.columns.new_full((self.matrix.shape[1],), -1)
        self.entries = self.weight.new_zeros(0, 0)

    def of(self, columns: Tensor) -> Tensor:
        """``G^T diag(weight) G`` for ``G = matrix[:, columns]``, a copy."""
        new = columns[self.place[columns] < 0]
        if self.columns.numel() + new.numel() > self.largest:
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
