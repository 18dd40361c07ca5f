r"""Smooth losses with L1 in the penalty, at size: proximal Newton whose models are minimised face by face.

A face is a set of entries with their signs; on it the model is quadratic, and conjugate gradients minimise it with
products in float32. Entries that would change their sign leave the face, entries at zero that violate optimality enter
it, a few times for each model; then the objective is searched along the line to where the model led. After Byrd, Chin,
Nocedal, Oztoprak, "A family of second-order methods for convex l1-regularized optimization", Math. Program. 159, 2016.

The columns of all faces so far are kept as one block, and as one Gram, which is all that the squared loss asks for.
Models of few entries are minimised by their Hessian (`quadratic`); in others the Hessians of the outputs alone
precondition. From a cold start the penalty falls to rho by 70 % with each iteration, as in `newton`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule, smooth
from lightning_cvxsnn.convex.algorithms.model import Columns, Model
from lightning_cvxsnn.convex.certify import Certifier
from lightning_cvxsnn.convex.losses import SmoothLoss, proof_named
from lightning_cvxsnn.convex.penalties import ElasticNet, proof_of, soft_threshold
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap

__all__ = ["FaceNewton"]

_CONTINUATION = 0.3  # share of the penalty that remains from one iteration to the next, down to rho
_LEAST_RATIO = 1e-3  # of L1 for which the continuation starts
_FIRST = 200  # new entries over all outputs, or of each one
_GROWTH = 2  # times as many as were new and stayed in the iteration before
_NEAR = 0.9  # share of rho above which the dual point of a start puts an entry into the first working set
_HOPEFUL = 2.0  # tolerances of the estimated gap at which the certificate is asked
_SLOW = 0.5  # share of the gap that may remain after an iteration at rho for float32 to be good enough


@dataclass(frozen=True)
class FaceNewton:
    """Proximal Newton by faces and conjugate gradients.

    Attributes:
        iteration_limit: Newton iterations, if the stopping rule has no limit of its own.
        smallest: Rows times columns times outputs from which on it is faster than exact models.
    """

    iteration_limit: int = 200
    smallest: int = 2**24

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Large programmes of smooth losses, if the penalty is not ridge alone."""
        size = programme.matrix.shape.numel() * programme.encoded.shape[1]
        suits = isinstance(programme.loss, SmoothLoss) and isinstance(penalty, ElasticNet) and penalty.l1_ratio > 0
        return suits and size >= self.smallest

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme; see :class:`Algorithm`."""
        descent = _Descent(programme, penalty, start)
        limit = self.iteration_limit if stop.max_iterations is None else stop.max_iterations
        iterations, dual_point = descent.run(start.dual_point, limit, stop)
        coef, intercept = descent.point(descent.best[1])
        return Minimum(coef, intercept, dual_point, iterations, "face-newton")


class _Descent:
    """The iterate of one solve: ``x [C, p (+ 1)]`` over centred columns, and its outputs ``[n, C]``."""

    def __init__(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point) -> None:
        loss = smooth(programme)
        self.programme, self.penalty, self.loss = programme, penalty, loss
        self.encoded, self.weight = programme.encoded, programme.weight
        rows, self.size = programme.matrix.shape
        self.columns: Columns = programme.kept.get("columns") or Columns(programme)
        programme.kept["columns"] = self.columns
        self.mean, self.rough = self.columns.mean, True
        self.certifier = Certifier(
            programme.matrix, self.encoded, self.weight * rows, proof_named(loss.name), proof_of(penalty),
            programme.fit_intercept,
        )  # fmt: skip
        self.x = self._inside(start.coef, start.intercept)
        self.outputs = self._outputs(start.coef, start.intercept)
        self.best = (math.inf, self.x)
        self.support = self.x[:, : self.size] != 0  # before the last iteration

    def _inside(self, coef: Tensor, intercept: Tensor) -> Tensor:
        if not self.programme.fit_intercept:
            return coef.T.contiguous()
        return torch.cat([coef.T, (intercept + self.mean @ coef)[:, None]], 1)

    def point(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[p, C]`` and intercept ``[C]``."""
        coef = x[:, : self.size].T.contiguous()
        if not self.programme.fit_intercept:
            return coef, torch.zeros_like(self.encoded[0])
        return coef, x[:, -1] - self.mean @ coef

    def _objective(self, x: Tensor, outputs: Tensor, penalty: ElasticNet) -> float:
        loss = self.weight @ self.loss.values(outputs, self.encoded)
        return float(loss + penalty.value(x[:, : self.size].T))

    def run(self, multipliers: Tensor | None, limit: int, stop: StoppingRule) -> tuple[int, Tensor | None]:
        """Iterate; the number of iterations, and the last dual point that was certified."""
        if self._start_is_bad():
            multipliers = None
        current, dual_point, before = math.inf, None, math.inf
        for iteration in range(limit + 1):
            primal = self._objective(self.x, self.outputs, self.penalty)
            if primal < self.best[0]:
                self.best = (primal, self.x)
            slope = self._slopes(self.weight[:, None] * self.loss.gradient(self.outputs, self.encoded))
            steepest, gap = self._distance(slope)
            report_gap(gap, stop.tolerance, primal)
            if current in (self.penalty.rho, math.inf) and gap <= _HOPEFUL * stop.tolerance:
                proof, dual_point = self.certifier.certify(*self.point(self.x), dual_point)
                if proof.gap <= stop.tolerance:
                    self.best = (primal, self.x)
                    break
                gap = math.inf  # what float32 says of it was wrong
            if iteration == limit or stop.late:
                break
            if current == self.penalty.rho and gap > _SLOW * before:
                self._be_exact()
            before = gap if current == self.penalty.rho else math.inf
            if multipliers is None:
                current = max(self.penalty.rho, _CONTINUATION * min(current, steepest))
                working = self._working(slope, self.penalty.at(current))
            else:
                current = self.penalty.rho
                working = self._working(self._slopes(multipliers), self.penalty.at(_NEAR * current))
                multipliers = None
            if not self._step(slope, working, self.penalty.at(current)) and current == self.penalty.rho:
                if not self.rough:
                    break
                self._be_exact()
        return iteration, dual_point

    def _slopes(self, rows: Tensor) -> Tensor:
        """Of what has these derivatives ``[n, C]`` in the outputs, ``[C, p (+ 1)]``."""
        if self.rough:
            return self.columns.rough.slopes(rows).to(rows)
        mass = rows.sum(0)
        slopes = (self.programme.matrix.T @ rows).T - torch.outer(mass, self.mean)
        return torch.cat([slopes, mass[:, None]], 1) if self.programme.fit_intercept else slopes

    def _be_exact(self) -> None:
        if self.rough:
            self.rough = False
            self.outputs = self._outputs(*self.point(self.x))

    def _outputs(self, coef: Tensor, intercept: Tensor) -> Tensor:
        return self.programme.matrix @ coef + intercept

    def _start_is_bad(self) -> bool:
        """Whether the best constant is better; if so, that is the start."""
        constant = self.programme.constant()
        x, outputs = self._inside(*constant), self._outputs(*constant)
        if self._objective(self.x, self.outputs, self.penalty) <= self._objective(x, outputs, self.penalty):
            return False
        self.x, self.outputs = x, outputs
        return True

    def _distance(self, slope: Tensor) -> tuple[float, float]:
        """The rho that the steepest slope asks for, and about the gap of the residuals."""
        coef, slope = self.x[:, : self.size], slope[:, : self.size]
        curvature = self.penalty.curvature(self.size)
        if curvature is not None:
            slope = slope + curvature[:, 0].to(coef) * coef
        steepest = self.penalty.largest_rho(slope, _LEAST_RATIO)
        gap = float(self.penalty.value(coef.T)) * max(steepest / self.penalty.rho - 1, 0.0)
        if not coef.any():
            gap = math.inf if steepest > self.penalty.rho else 0.0
        if self.penalty.l1_ratio < 1:
            beyond = soft_threshold(slope, self.penalty.l1)
            gap = min(gap, float(beyond.square().sum()) / (2 * self.penalty.l2))
        return steepest, gap

    def _working(self, slope: Tensor, penalty: ElasticNet) -> Tensor:
        """Entries ``[C, p]`` to work on: those in use and the worst violations."""
        support = self.x[:, : self.size] != 0
        stayed = (support & ~self.support).sum(1, keepdim=True)
        self.support = support
        most = (_GROWTH * stayed).clamp(max(_FIRST // len(support), 1), self.size)
        worst = torch.where(support, 0.0, penalty.excess(slope[:, : self.size])).topk(int(most.max()), 1)
        new = (worst.values > 0) & (torch.arange(worst.values.shape[1], device=most.device) < most)
        return support.scatter(1, worst.indices, support.gather(1, worst.indices) | new)

    def _step(self, slope: Tensor, working: Tensor, penalty: ElasticNet) -> bool:
        """Towards the minimiser of the model over the working entries; whether the objective falls."""
        index = working.any(0).nonzero()[:, 0]
        index = self.columns.including(index)
        if self.programme.fit_intercept:
            index = torch.cat([index, index.new_tensor([self.size])])
            working = torch.cat([working, torch.ones_like(working[:, :1])], 1)
        local = self.loss.local(self.outputs, self.encoded)
        model = Model(self.columns, self.loss, local, self.weight, penalty, self.x[:, index])
        step, predicted = model.minimise(slope[:, index], working[:, index])
        return self._search(index, step.to(self.x), predicted, penalty)

    def _search(self, index: Tensor, step: Tensor, predicted: float, penalty: ElasticNet) -> bool:
        """Backtrack until the objective falls by a share of what was predicted; whether it ever does."""
        value, length = self._objective(self.x, self.outputs, penalty), 1.0
        if self.rough:
            change = self.columns.block.outputs(step.to(self.columns.block.dtype)).to(self.outputs)
        else:
            spread = torch.zeros_like(self.x)
            spread[:, index] = step
            change = self._outputs(*self.point(spread))
        while length > 1e-6:
            x, outputs = self.x.clone(), self.outputs + length * change
            x[:, index] += length * step
            if self._objective(x, outputs, penalty) <= value + 1e-3 * length * predicted + 1e-15 * abs(value):
                moved = not torch.equal(x, self.x)
                self.x, self.outputs = x, outputs
                return moved
            length /= 2
        return False
