"""The convex programme: checked and reduced once, solved, certified and followed along a path of penalties."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms import Algorithm, Minimum, StoppingRule, algorithm_for
from lightning_cvxsnn.convex.centring import Centred, centre
from lightning_cvxsnn.convex.certify import Certificate, Certifier
from lightning_cvxsnn.convex.inputs import (
    Data,
    Dictionary,
    check_data,
    check_held_out,
    check_point,
    check_rho,
    check_start,
)
from lightning_cvxsnn.convex.losses import Loss, loss_named, proof_named
from lightning_cvxsnn.convex.penalties import ElasticNet, proof_of
from lightning_cvxsnn.convex.presolve import Presolve, reduce
from lightning_cvxsnn.convex.rho_path import Path, Walk, check_rhos, geometric
from lightning_cvxsnn.convex.solution import Limits, Point, Solution
from lightning_cvxsnn.runtime.work import counting

__all__ = ["Programme"]

_LEAST_RATIO = 1e-3  # of L1 that a path's first rho is computed for: ridge has none that makes W = 0 optimal


@dataclass(frozen=True, eq=False)
class _Answer:
    """A minimum, its point of the whole programme, that point's certificate and the certificate's dual point."""

    minimum: Minimum
    point: Point
    proof: Certificate
    dual_point: Tensor

    @property
    def gap(self) -> float:
        return self.proof.gap


class Programme:
    r"""``min (1/n) sum_i s_i loss(D_i W + b, y_i) + rho * (a sum |W| + (1 - a)/2 sum W^2)``, for any ``rho``.

    Nothing is computed before it is asked for; data are checked once, and reduced once before the first solve.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``.
        targets: Integer labels ``[n]`` for cross-entropy, hinge and squared hinge; for cross-entropy also probabilities
            ``[n, C]``, C > 1 (soft or smoothed labels); floats ``[n, C]`` for squared.
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        fit_intercept: Whether to fit an unpenalised intercept ``b``.
        num_outputs: ``C``. ``None``: the number of classes, and 1 for the hinge losses with labels 0 and 1. With one
            output, cross-entropy is the logistic loss and labels are 0 and 1.
        sample_weight: ``s_i >= 0``, ``[n]``; ones by default, never renormalised: 0 drops the row's loss and keeps n.
        penalty: The penalty, L1 by default; its own strength is not used.

    Raises:
        ValueError: On construction, for an unknown loss; at the first use, for data that do not fit.

    Example:
        >>> D = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.uint8)
        >>> programme = Programme(D, torch.tensor([1, 1, 0, 0]), loss="hinge", fit_intercept=True)
        >>> round(programme.largest_rho(), 6), round(programme.solve(0.1).primal, 6)
        (0.5, 0.2)
    """

    def __init__(
        self,
        dictionary: Dictionary,
        targets: Tensor,
        *,
        loss: Loss,
        fit_intercept: bool,
        num_outputs: int | None = None,
        sample_weight: Tensor | None = None,
        penalty: ElasticNet | None = None,
    ) -> None:
        if not isinstance(fit_intercept, bool):
            raise TypeError(f"fit_intercept is a {type(fit_intercept).__name__}; expected True or False.")
        self.loss, self.proof = loss_named(loss), proof_named(loss)
        self.penalty, self.fit_intercept = penalty or ElasticNet(), fit_intercept
        self._given = dictionary, targets, num_outputs, sample_weight

    @cached_property
    def data(self) -> Data:
        """The rows, checked."""
        dictionary, targets, num_outputs, sample_weight = self._given
        return check_data(dictionary, targets, self.loss, num_outputs, sample_weight)

    @cached_property
    def centred(self) -> Centred:
        """The rows that are solved and certified: columns and targets far from zero are moved near it."""
        return centre(self.data, self.loss, self.fit_intercept)

    @cached_property
    def presolve(self) -> Presolve:
        """The reduced programme, and the way back."""
        return reduce(self.centred.data, self.loss, self.fit_intercept)

    @cached_property
    def scale(self) -> float:
        """Objective of the best constant predictor, of zero outputs if there is no intercept or the former is 0."""
        encoded, weight = self.centred.data.encoded, self.data.weight

        def objective(constant: Tensor) -> float:
            return float(weight @ self.loss.values(constant.expand_as(encoded), encoded)) / encoded.shape[0]

        at_zero = objective(torch.zeros_like(encoded[0]))
        if not self.fit_intercept:
            return at_zero
        constant = objective(self.loss.constant(encoded, weight))
        return at_zero if constant <= 1e-9 * at_zero else constant

    def subset(self, rows: Tensor) -> Programme:
        """The programme over some of the rows, a bool mask ``[n]`` or int64 positions; outputs stay as many.

        Raises:
            ValueError: No row is left.
        """
        part = copy.copy(self)
        part.data = self.data.subset(rows)
        if not len(part.data.weight):
            raise ValueError("No row is left of the programme; expected a subset of at least one.")
        for name in ("centred", "presolve", "scale", "_steepest"):
            vars(part).pop(name, None)
        return part

    def largest_rho(self, least_ratio: float = 0.0) -> float:
        """The smallest rho at which ``W = 0`` is optimal, or for hinge with an intercept a bound of it.

        0 if all are; infinite for ridge, where none is.

        Args:
            least_ratio: An ``l1_ratio`` below this counts as this.
        """
        return self.penalty.largest_rho(self._steepest, least_ratio)

    @cached_property
    def _steepest(self) -> Tensor:
        """The largest absolute slope of the loss in a coefficient at the best constant, a scalar."""
        reduced = self.presolve.programme
        if reduced.matrix.shape[1] == 0 or reduced.encoded.shape[1] == 0:
            return self.data.weight.new_zeros(())
        return (reduced.matrix.T @ reduced.constant_dual()).abs().max()

    def mean_loss(self, point: Point | Solution) -> float:
        """The data term at a point, without the penalty."""
        outputs = self.data.matrix @ point.coef + point.intercept
        return float(self.data.weight @ self.loss.values(outputs, self.data.encoded)) / outputs.shape[0]

    def certificate(
        self, coef: Tensor, intercept: Tensor | None = None, *, rho: float, dual_point: Tensor | None = None
    ) -> Certificate:
        """Bound how far a point is from the optimum; see :func:`~lightning_cvxsnn.convex.certificate`."""
        point = check_point(self.data, coef, intercept, dual_point)
        if not self.fit_intercept and bool(point.intercept.any()):
            raise ValueError("intercept is not zero but fit_intercept=False; pass fit_intercept=True or no intercept.")
        return self._certified(point, check_rho(rho))[0]

    def solve(
        self, rho: float, init: Point | None = None, limits: Limits | None = None, algorithm: Algorithm | None = None
    ) -> Solution:
        """Minimise to a certified duality gap; see :func:`~lightning_cvxsnn.convex.solve`.

        Args:
            rho: Strength of the penalty, positive.
            init: Where to start.
            limits: When to stop.
            algorithm: ``None``: the one that takes this loss and this penalty.
        """
        started = time.perf_counter()
        limits, penalty = limits or Limits(), self.penalty.at(check_rho(rho))
        with counting() as work:
            target = limits.gap_tolerance * self.scale
            enough = max(target, 1e-13 * self.scale)
            seconds = math.inf if limits.max_seconds is None else limits.max_seconds
            stop = StoppingRule(target, limits.max_iterations, started + seconds)
            answers = [self._answer(self._minimum(penalty, init, stop, algorithm), penalty.rho, target)]
            used = answers[0].minimum.iterations
            left = None if limits.max_iterations is None else max(limits.max_iterations - used, 0)
            if init is not None and not answers[0].gap <= enough and left != 0 and not stop.late:
                again = self._minimum(penalty, None, replace(stop, max_iterations=left), algorithm)
                answers.append(self._answer(again, penalty.rho, target))  # the start led nowhere
                used += again.iterations
            best = min(answers, key=lambda answer: answer.gap)
            if not best.gap <= enough and not best.proof.primal <= (1 + 1e-12) * self.scale:
                constant = Minimum(*self.presolve.programme.constant(), best.minimum.dual_point, 0, "constant")
                best = self._answer(constant, penalty.rho, target)
        return Solution(
            coef=best.point.coef,
            intercept=best.point.intercept,
            dual_point=best.dual_point,
            primal=best.proof.primal,
            dual=best.proof.dual,
            gap=best.gap,
            converged=abs(best.gap) <= enough and math.isfinite(best.gap),  # far below zero, it would prove nothing
            iterations=used,
            seconds=time.perf_counter() - started,
            algorithm=best.minimum.algorithm,
            device=str(best.dual_point.device),
            work=work.multiply_adds,
        )

    def path(
        self,
        held_out: Tensor,
        *,
        rhos: Sequence[float] | None = None,
        num_values: int = 20,
        ratio: float = 1e-3,
        walk: Walk | None = None,
        limits: Limits | None = None,
        algorithm: Algorithm | None = None,
    ) -> Path:
        """Solve for decreasing values of rho and score on held-out rows; see :func:`~lightning_cvxsnn.convex.path`.

        ``walk`` says when it ends early. ``limits.max_seconds`` is for the whole path, its other limits are for each
        solve.
        """
        started = time.perf_counter()
        limits = limits or Limits(gap_tolerance=1e-4)
        deadline = started + (math.inf if limits.max_seconds is None else limits.max_seconds)
        walk = walk or Walk()
        sequence = check_rhos(rhos, num_values, ratio)
        held_out = check_held_out(held_out, self.data)
        fitted, scored = self.subset(~held_out), self.subset(held_out)
        for rho in sequence or geometric(fitted.largest_rho(_LEAST_RATIO), ratio, num_values):
            left = None if limits.max_seconds is None else max(deadline - time.perf_counter(), 0.0)
            start = walk.solutions[-1].point if walk.solutions else None
            solution = fitted.solve(rho, start, replace(limits, max_seconds=left), algorithm)
            walk.add(rho, scored.mean_loss(solution), solution)
            if walk.ended or time.perf_counter() > deadline:
                break
        return walk.path()

    def _certified(self, point: Point, rho: float) -> tuple[Certificate, Tensor]:
        """The certificate of a point, and the dual point that it used."""
        data, bound = self.centred.data, proof_of(self.penalty.at(rho))
        certifier = Certifier(data.matrix, data.encoded, data.weight, self.proof, bound, self.fit_intercept)
        return certifier.certify(point.coef, self.centred.intercept(point.coef, point.intercept), point.dual_point)

    def _answer(self, minimum: Minimum, rho: float, target: float) -> _Answer:
        """A minimum of the reduced programme, certified as a point of all rows, columns and outputs."""
        shared = self.penalty.l1_ratio < 1
        coef = self.presolve.expand(minimum.coef, shared)
        dual_point = None if minimum.dual_point is None else self.presolve.expand_dual(minimum.dual_point)
        intercept = torch.zeros_like(self.data.encoded[0])
        if self.fit_intercept:
            slack = max(0.01 * target, 1e-15 * self.scale)
            intercept = self.presolve.expand_intercept(minimum.coef, minimum.intercept, slack)
            if shared:
                intercept = intercept - self.presolve.shift @ coef
            intercept = self.centred.intercept(coef, intercept, -1)
        point = Point(coef, intercept, dual_point)
        return _Answer(minimum, point, *self._certified(point, rho))

    def _minimum(
        self, penalty: ElasticNet, init: Point | None, stop: StoppingRule, algorithm: Algorithm | None
    ) -> Minimum:
        """Of the reduced programme."""
        reduced = self.presolve.programme
        if reduced.empty or (algorithm is None and self.largest_rho() <= penalty.rho):
            return Minimum(*reduced.constant(), reduced.constant_dual(), 0, "constant")
        penalty = penalty.merged(reduced.multiplicity)
        start = Point(*reduced.constant()) if init is None else self._restrict(init)
        stop = replace(stop, tolerance=0.5 * stop.tolerance)  # the other half is for the way back to all columns
        with torch.autocast(reduced.encoded.device.type, enabled=False):  # bfloat16 is too rough for any of them
            return (algorithm or algorithm_for(reduced, penalty)).minimise(reduced, penalty, start, stop)

    def _restrict(self, init: Point) -> Point:
        """A start as a point of the reduced programme, without a dual point that belongs to other rows."""
        coef, intercept, dual_point = check_start(self.data, init)
        coef, intercept = self.presolve.restrict(coef, self.centred.intercept(coef, intercept))
        return Point(coef, intercept, None if dual_point is None else self.presolve.restrict_dual(dual_point))
