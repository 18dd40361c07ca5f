r"""Hinge loss, all columns at once: the method of multipliers, with a semismooth Newton method inside.

With shares ``s`` of the weights, ``alpha = c s``, and the centre ``s'`` of the last round, each round minimises

.. math:: \sum_i c_i \max_{0 \le s_i \le 1} \big[ s_i (1 - t_i z_i) - \tfrac{w}{2} (s_i - s'_i)^2 \big]
          + \sum_j \big( l |x_j| + \tfrac12 \kappa_j x_j^2 \big), \qquad z = D x + b,

a hinge loss that is smoothed over a width ``w`` of the margin. It is quadratic as long as no row enters or leaves the
band where ``0 < s_i < 1``: only those rows enter a Newton system. Ridge, ``l = 0``, solves it on the smaller of its two
sides, to any accuracy. With L1 its minimiser is found over a working set (`quadratic`); near the end columns take turns
for long, so that this is only a start for the interior point method. The maximising shares are multipliers that prove a
bound, and the next centre; the width falls with each round. After Li, Sun, Toh, "A highly efficient semismooth Newton
augmented Lagrangian method for solving Lasso problems", SIAM J. Optim. 28(1), 2018. Outputs are separate programmes,
whose products are computed together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule
from lightning_cvxsnn.convex.algorithms.interior import factor
from lightning_cvxsnn.convex.algorithms.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.algorithms.separate import objectives, proven
from lightning_cvxsnn.convex.losses.hinge import Hinge
from lightning_cvxsnn.convex.penalties import ElasticNet, soft_threshold
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap
from lightning_cvxsnn.runtime.work import count_work

__all__ = ["RidgeMultipliers", "rough_start"]

_WIDEST, _NARROWER = 2.0, 0.3  # width of the first round from a constant; its factor from one round to the next
_NARROWEST = 1e-6
_ROUGH_LIMIT = 16  # Newton iterations of an output for a rough start
_PROXIMAL = 1e-10  # relative; pins directions without curvature
_FIRST_COLUMNS = 100  # that enter a working set together, or as many as there are already
_DENSE = 0.3  # share of the columns in use beyond which a rough start costs more than it saves
_SETTLED = 0.1  # share of the gap that a round's minimum may be missed by
_ROUNDING = 1e-15  # relative to the objective
_PATIENCE = 12  # rounds without progress: as many as take the first width, far from the outputs' own, to theirs
_STEEP = 0.3  # of the slope at the start of a step: at the end of a full one, at most
_HALVINGS = 50  # of a step, at most


@dataclass(frozen=True)
class RidgeMultipliers:
    """The method of multipliers for hinge loss with a ridge penalty.

    Attributes:
        iteration_limit: Newton iterations over all outputs, if the stopping rule has no limit of its own.
    """

    iteration_limit: int = 5000

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Hinge loss with a ridge penalty."""
        return isinstance(programme.loss, Hinge) and isinstance(penalty, ElasticNet) and penalty.l1_ratio == 0

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme with hinge loss; see :class:`Algorithm`. The dual point is in its box."""
        rounds = _Rounds(programme, penalty, start, stop)
        used = rounds.run(self.iteration_limit if stop.max_iterations is None else stop.max_iterations)
        dual_point = (rounds.sign * rounds.proof).T
        return Minimum(rounds.best.T, rounds.best_intercept, dual_point, used, "ridge-multipliers")


def rough_start(
    programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule
) -> tuple[Point, int, bool]:
    """A point and multipliers near the optimum, with the Newton iterations that it took, and whether it is dense.

    Where too many columns are in use it is the start.
    """
    rounds = _Rounds(programme, penalty, start, stop)
    most = _ROUGH_LIMIT * len(rounds.sign)
    used = rounds.run(most if stop.max_iterations is None else min(most, stop.max_iterations))
    if not rounds.dense:
        start = Point(rounds.best.T, rounds.best_intercept, (rounds.sign * rounds.proof).T)
    return start, used, rounds.dense


class _Rounds:
    """Iterates, best points and bounds of all outputs, the first dimension of every tensor."""

    def __init__(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> None:
        self.programme, self.penalty = programme, penalty
        self.sign, self.weight = programme.encoded.T.contiguous(), programme.weight
        outputs, columns = self.sign.shape[0], programme.matrix.shape[1]
        self.tolerance, self.stop = stop.tolerance / outputs, stop
        every = torch.arange(columns, device=self.sign.device)
        self.bend = self.sign.new_ones(columns) * penalty.bend(every)
        centred = programme.fit_intercept and penalty.l1 == 0
        self.mean = programme.matrix.T @ (self.weight / self.weight.sum()) if centred else self.sign.new_zeros(columns)
        self.best = start.coef.T.clone()
        self.value, self.best_intercept = objectives(programme, penalty, self.sign, self.best)
        constant, centre = objectives(programme, penalty, self.sign, torch.zeros_like(self.best))
        bad = ~(self.value < constant)
        self.best[bad], self.value[bad], self.best_intercept[bad] = 0.0, constant[bad], centre[bad]
        known = start.dual_point if start.dual_point is not None else programme.constant_dual()
        self.share = torch.where(bad[:, None], 0.0, self.sign * known.T / self.weight).clamp(0, 1)
        self.bound, self.proof = torch.zeros_like(self.value), torch.zeros_like(self.sign)
        self._prove(torch.arange(outputs, device=every.device), self.weight * self.share)
        self.coef, self.intercept = self.best.clone(), self.best_intercept.clone()
        if programme.fit_intercept:  # where all rows are in the first band
            self.intercept[bad] = ((self.sign @ self.weight) / self.weight.sum())[bad]
        near = ((self.value - self.bound) / self.value).clamp(1e-300, 1).sqrt()
        self.width = torch.where(bad, _WIDEST, _WIDEST * near).clamp_min(_NARROWEST)[:, None]
        self.stale, self.moved = torch.zeros_like(self.value), torch.zeros_like(bad)
        self.left = torch.full_like(self.value, torch.inf)  # of the gap, at the end of the last round
        self.outputs = (programme.matrix @ self.coef.T).T + self.intercept[:, None]

    def run(self, limit: int) -> int:
        """Iterate until every output is within the tolerance or a limit is reached; Newton iterations."""
        used, alive = 0, self._open()
        while alive.numel():
            sign, width = self.sign[alive], self.width[alive]
            raw = self.share[alive] + (1 - sign * self.outputs[alive]) / width
            share = raw.clamp(0, 1)
            pull = self.weight * sign * share
            slope = self.bend * self.coef[alive] - (self.programme.matrix.T @ pull.T).T
            descent = self._descent(self.coef[alive], slope)
            tilt = -pull.sum(1) if self.programme.fit_intercept else torch.zeros_like(slope[:, 0])
            self._keep(alive)
            gap = (self.value - self.bound)[alive]
            report_gap(float(gap.max()), self.tolerance, float(self.value[alive].max()))
            missed = self._missed(alive, descent, tilt) + tilt.abs()
            settled = self.moved[alive] & (missed <= (_SETTLED * gap).maximum(_ROUNDING * self.value[alive]))
            if bool(settled.any()):
                self._end_round(alive[settled], share[settled])
                alive = self._open()
                continue
            if self.dense:
                break
            if (used + len(alive) > limit and (used or not limit)) or self.stop.late:
                self._prove(alive, self.weight * share)
                break
            self._move(alive, raw, slope, tilt)
            used += len(alive)
        return used

    @property
    def dense(self) -> bool:
        """Whether so many columns are in use that working sets save nothing."""
        return self.penalty.l1 > 0 and int((self.coef != 0).sum()) > _DENSE * self.coef.numel()

    def _descent(self, coef: Tensor, slope: Tensor) -> Tensor:
        """Steepest descent of coefficients where the slope of all but the absolute values is known."""
        l1 = self.penalty.l1
        return torch.where(coef != 0, slope + l1 * coef.sign(), soft_threshold(slope, l1))

    def _missed(self, alive: Tensor, descent: Tensor, tilt: Tensor) -> Tensor:
        """About how far the rounds' objectives are from their minima, but for the intercepts."""
        if self.penalty.l1 == 0:  # the intercepts take part: slopes are those of centred columns
            return ((descent - tilt[:, None] * self.mean).square() / self.bend).sum(1) / 2
        return descent.abs().amax(1) / self.penalty.l1 * self.value[alive]  # scaled to feasible, multipliers lose that

    def _open(self) -> Tensor:
        """The outputs whose gap is too large and may still become smaller."""
        return ((self.value - self.bound > self.tolerance) & (self.stale < _PATIENCE)).nonzero()[:, 0]

    def _keep(self, alive: Tensor) -> None:
        """Keep the iterates that are the best so far."""
        loss = (1 - self.sign[alive] * self.outputs[alive]).clamp_min(0) @ self.weight
        value = loss + self.penalty.values(self.coef[alive])
        which = alive[value < self.value[alive]]
        self.value[which] = value[value < self.value[alive]]
        self.best[which], self.best_intercept[which] = self.coef[which], self.intercept[which]

    def _prove(self, which: Tensor, alpha: Tensor) -> None:
        """Keep the bounds of multipliers ``[C, n]`` that are the best so far."""
        bound, feasible, _ = proven(self.programme, self.penalty, self.sign[which], alpha)
        better = bound > self.bound[which]
        self.bound[which[better]], self.proof[which[better]] = bound[better], feasible[better]

    def _end_round(self, which: Tensor, share: Tensor) -> None:
        """The shares become the centre of a narrower round."""
        self._prove(which, self.weight * share)
        left = (self.value - self.bound)[which]
        self.stale[which] = torch.where(left < 0.9 * self.left[which], 0.0, self.stale[which] + 1)
        self.left[which] = left
        self.share[which], self.moved[which] = share, False
        self.width[which] = (_NARROWER * self.width[which]).clamp_min(_NARROWEST)

    def _move(self, alive: Tensor, raw: Tensor, slope: Tensor, tilt: Tensor) -> None:
        """A Newton step of every output, as far as the objective falls."""
        step, shift = torch.zeros_like(slope), torch.zeros_like(tilt)
        for k in range(len(alive)):
            if k and self.stop.late:
                break
            newton = self._newton if self.penalty.l1 == 0 else partial(self._sparse_newton, self.coef[alive[k]])
            step[k], shift[k] = newton(raw[k], self.width[alive[k]], slope[k], tilt[k])
        change = (self.programme.matrix @ step.T).T + shift[:, None]
        turn = self.sign[alive] * change
        bend, lean = (self.bend * step.square()).sum(1), (self.bend * self.coef[alive] * step).sum(1)

        def steepness(length: Tensor) -> Tensor:
            share = (raw - length[:, None] * turn / self.width[alive]).clamp(0, 1)
            moved = self.coef[alive] + length[:, None] * step
            norm = torch.where(moved != 0, moved.sign() * step, step.abs()).sum(1)
            return lean + length * bend + self.penalty.l1 * norm - (share * turn) @ self.weight

        low, length = torch.zeros_like(tilt), torch.ones_like(tilt)
        high, flat = length, _STEEP * steepness(low).abs()
        for _ in range(_HALVINGS):  # to where the objective is flat enough
            slope = steepness(length)
            enough = (slope <= flat) & ((slope >= -flat) | (length == 1))
            if bool(enough.all()):
                break
            low, high = torch.where(slope < 0, length, low), torch.where(slope < 0, high, length)
            length = torch.where(enough, length, (low + high) / 2)
        self.coef[alive] += length[:, None] * step
        self.intercept[alive] += length * shift
        self.outputs[alive] += length[:, None] * change
        self.moved[alive] = True

    def _newton(self, raw: Tensor, width: Tensor, slope: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step of one output: of its coefficients ``[p]`` and its intercept."""
        band = ((raw > 0) & (raw < 1)).nonzero()[:, 0]
        scale = self.bend.rsqrt()
        rows = (self.programme.matrix[band].to_dense() - self.mean) * scale
        slope = slope - tilt * self.mean
        curvature = self.weight[band] / width
        rows *= curvature.sqrt()[:, None]
        border = curvature.sqrt() @ rows
        right = torch.stack([-scale * slope, border], 1)
        solved, bordered = _solved(rows, right).T
        if not self.programme.fit_intercept:
            return scale * solved, tilt
        corner = (curvature.sum() - border @ bordered).clamp_min(1e-12 * float(self.weight.sum() / width))
        reach = width * (1 + raw.abs().amax())  # beyond, the band would be empty
        shift = ((-tilt - border @ solved) / corner).clamp(-reach[0], reach[0])
        step = scale * (solved - shift * bordered)
        return step, shift - self.mean @ step

    def _sparse_newton(
        self, coef: Tensor, raw: Tensor, width: Tensor, slope: Tensor, tilt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with absolute values: the step to the minimiser of the model over some columns."""
        used = coef != 0
        violation = torch.where(used, 0.0, self._descent(coef, slope).abs())
        worst = violation.topk(min(max(_FIRST_COLUMNS, int(used.sum())), len(coef)))
        index = used.index_fill(0, worst.indices[worst.values > 0], True).nonzero()[:, 0]
        size, free = len(index), int(self.programme.fit_intercept)
        if size + free == 0:
            return torch.zeros_like(coef), torch.zeros_like(tilt)
        band = ((raw > 0) & (raw < 1)).nonzero()[:, 0]
        rows = self.programme.matrix[:, index][band]
        rows = torch.cat([rows, torch.ones_like(raw[band, None]).expand(-1, free)], 1)
        count_work(rows.numel() * rows.shape[1])
        hessian = rows.T @ (rows * (self.weight[band] / width)[:, None])
        hessian.diagonal().mul_(1 + _PROXIMAL)
        hessian.diagonal()[:size] += self.bend[index]
        nothing = torch.zeros_like(tilt)[None].expand(free)
        origin, gradient = torch.cat([coef[index], nothing]), torch.cat([slope[index], tilt + nothing])
        weights = torch.cat([torch.full_like(coef[index], self.penalty.l1), nothing])
        move = minimise_quadratic(hessian, gradient, origin, weights)[0] - origin
        return torch.zeros_like(coef).index_copy(0, index, move[:size]), move[size:].sum()


def _solved(rows: Tensor, right: Tensor) -> Tensor:
    """``(1 + rows^T rows)^-1 right`` for ``rows [m, p]``, by a system of the smaller size."""
    if len(rows) == 0:
        return right
    count_work(rows.numel() * min(rows.shape))
    wide = rows.shape[0] < rows.shape[1]
    system = rows @ rows.T if wide else rows.T @ rows
    system.diagonal().add_(1.0)
    lower = factor(system)
    if not wide:
        return torch.cholesky_solve(right, lower)
    return right - rows.T @ torch.cholesky_solve(rows @ right, lower)
