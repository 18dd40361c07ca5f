r"""Smooth losses with a ridge penalty: Newton's method with preconditioned conjugate gradients.

Coefficients are those of centred columns, so that the intercept hardly meets them, and the Hessian is applied in
float32 where float64 would cost: it only has to point the right way. Outputs, gradients and objectives are float64, so
each iteration corrects what the one before left. After Nocedal, Wright, "Numerical Optimization", 2006, chapter 7; the
preconditioner is that of `spectrum`, and once this has taken long enough that of `block_jacobi`.

For a smooth loss the gap of a point and its residuals is ``|gradient|^2 / (2 rho)``, up to what the intercept's
equality costs: it is known without a certificate, and tells conjugate gradients when to stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.base import Minimum, StoppingRule, smooth
from lightning_cvxsnn.convex.algorithms.block_jacobi import BlockJacobi, blocks_of, work_of_blocks
from lightning_cvxsnn.convex.algorithms.line import flat_length
from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.convex.algorithms.spectrum import Spectrum, gram, spectrum_of
from lightning_cvxsnn.convex.losses import SmoothLoss
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.presolve import ReducedProgramme
from lightning_cvxsnn.convex.solution import Point
from lightning_cvxsnn.runtime.progress import report_gap

__all__ = ["RidgeNewton"]

_FORCING = 0.1  # share of the gap that a Newton step may leave of its model
_FINAL = 0.2  # share of the tolerance that it need not go below
_STEPS = 500  # of conjugate gradients,
_PATIENCE = 0.5  # of what blocks take, that is spent on steps before these are formed
_BLOCKS = 2**24  # entries of blocks at most: of a hundred outputs they cost more than they save
_FACTORED = 4096  # unknowns up to which a Hessian is formed and factored where these do not do
_SINGULAR = 1e-14  # of its largest entry, added: a softmax does not see a shift of all intercepts
_SLOW = 0.5  # share of the gap that an iteration must take off for float32 to be good enough


@dataclass(frozen=True)
class RidgeNewton:
    """Newton's method with conjugate gradients.

    Attributes:
        iteration_limit: Newton iterations, if the stopping rule has no limit of its own.
    """

    iteration_limit: int = 100

    def takes(self, programme: ReducedProgramme, penalty: ElasticNet) -> bool:
        """Smooth losses and ridge."""
        return isinstance(programme.loss, SmoothLoss) and isinstance(penalty, ElasticNet) and penalty.l1_ratio == 0

    def minimise(self, programme: ReducedProgramme, penalty: ElasticNet, start: Point, stop: StoppingRule) -> Minimum:
        """Solve a reduced programme; see :class:`Algorithm`. Its residuals are the best dual point."""
        descent = _Descent(programme, penalty.l2, start)
        limit = self.iteration_limit if stop.max_iterations is None else stop.max_iterations
        iterations = descent.run(limit, stop)
        return Minimum(*descent.solution(), None, iterations, "ridge-newton")


class _Descent:
    """The iterate of one solve: ``x [C, p (+ 1)]`` over scaled and centred columns, and its outputs ``[n, C]``."""

    def __init__(self, programme: ReducedProgramme, ridge: float, start: Point) -> None:
        loss = smooth(programme)
        self.programme, self.loss, self.ridge = programme, loss, ridge
        self.encoded, self.weight = programme.encoded, programme.weight
        self.model: _Model = programme.kept.get("ridge") or _Model(programme)
        programme.kept["ridge"] = self.model
        self.rough, self.exact = self.model.rough, self.model.exact
        self.columns = self.exact.columns
        self.blocks: BlockJacobi | None = None
        self.steps = 0  # of conjugate gradients since these were formed
        outputs, unknowns = len(start.intercept), self.columns + programme.fit_intercept
        fits = outputs * unknowns**2 <= _BLOCKS
        self.patience = _PATIENCE * work_of_blocks(self.exact.rows, unknowns) if fits else float("inf")
        self.factors = False  # whether conjugate gradients have failed, at a penalty that hardly bends the objective
        self._begin(start)

    def _begin(self, start: Point) -> None:
        """At the start, or at the best constant if that is better."""
        points = [self.model.inside(start.coef, start.intercept), self.model.inside(*self.programme.constant())]
        outputs = [self.exact.outputs(x) for x in points]
        values = [self._value(*both) for both in zip(points, outputs, strict=True)]
        chosen = 0 if values[0] <= values[1] else 1
        self.x, self.outputs = points[chosen], outputs[chosen]

    def _value(self, x: Tensor, outputs: Tensor) -> float:
        return float(self.weight @ self.loss.values(outputs, self.encoded)) + self.ridge / 2 * float(
            x[:, : self.columns].square().sum()
        )

    def _gap(self, gradient: Tensor) -> float:
        """About the gap of a point of this gradient and its residuals, or what a model leaves of it."""
        squares = gradient.square().sum(0)
        squares[self.columns :] *= self.model.size
        return float(squares.sum()) / (2 * self.ridge)

    def solution(self) -> tuple[Tensor, Tensor]:
        """Coefficients ``[p, C]`` and intercept ``[C]``."""
        return self.model.outside(self.x)

    def run(self, limit: int, stop: StoppingRule) -> int:
        """Iterate; the number of iterations."""
        before = float("inf")
        for iteration in range(limit + 1):
            if self.programme.fit_intercept:
                self._level()
            gradient = self.exact.slopes(self.weight[:, None] * self.loss.gradient(self.outputs, self.encoded))
            gradient[:, : self.columns] += self.ridge * self.x[:, : self.columns]
            value = self._value(self.x, self.outputs)
            gap = self._gap(gradient)
            report_gap(gap, stop.tolerance, value)
            if gap <= stop.tolerance or iteration == limit or stop.late:
                break
            if gap > _SLOW * before:
                self.rough = self.exact
            before = gap
            step = self._newton(gradient, max(_FORCING * gap, _FINAL * stop.tolerance), stop)
            if not self._move(step, value, float((gradient * step).sum())):
                if self.rough is self.exact:
                    break  # only rounding error is left
                self.rough = self.exact
        return iteration

    def _level(self) -> None:
        """A Newton step of the intercepts alone: the gap is that of the coefficients where these have no slope."""
        slope = self.weight @ self.loss.gradient(self.outputs, self.encoded)
        bend = self.loss.mean_bend(self.loss.local(self.outputs, self.encoded), self.weight)
        shift = -torch.linalg.pinv(bend, hermitian=True, rtol=1e-13) @ slope
        x, outputs = self.x.clone(), self.outputs + shift
        x[:, self.columns] += shift
        if self._value(x, outputs) <= self._value(self.x, self.outputs):
            self.x, self.outputs = x, outputs

    def _newton(self, gradient: Tensor, enough: float, stop: StoppingRule) -> Tensor:
        """The step to where the model's own gap is ``enough``, or near it, or as far as there is time."""
        local = self.loss.local(self.outputs, self.encoded)
        if self.factors:
            return self._factored(gradient, local)
        inverse = self.blocks or self.model.spectrum.preconditioner(self.loss.mean_bend(local, self.weight), self.ridge)
        local, weight = local.to(self.rough.dtype), self.weight.to(self.rough.dtype)[:, None]

        def bend(part: slice, change: Tensor) -> Tensor:
            return weight[part] * self.loss.bend(local[part], change)

        residual = -gradient.to(self.rough.dtype)
        step = torch.zeros_like(residual)
        direction, product = residual, 0.0
        for _ in range(_STEPS):
            self.steps += 1
            if self.steps > self.patience:
                inverse, product = self._form_blocks(local) or inverse, 0.0
            turned = inverse(residual)
            before, product = product, float((residual * turned).sum())
            direction = turned + product / before * direction if before else turned
            curved = self.rough.curved(direction, bend)
            curved[:, : self.columns] += self.ridge * direction[:, : self.columns]
            curvature = float((direction * curved).sum())
            if not curvature > 0:
                break
            step = step + product / curvature * direction
            residual = residual - product / curvature * curved
            if self._gap(residual) <= enough or stop.late:
                break
        else:
            self.factors = gradient.numel() <= _FACTORED and self.exact.copy is not None
        return step.to(gradient)

    def _form_blocks(self, local: Tensor) -> BlockJacobi | None:
        """Form the blocks here, or never again where they have no inverse."""
        bends = self.weight[:, None] * self.loss.own_bend(local)
        coupled = self.loss.coupled(bends.shape[1])
        self.blocks = blocks_of(self.rough, bends, self.ridge, coupled=coupled)
        self.steps = 0
        if self.blocks is None:
            self.patience = float("inf")
        return self.blocks

    def _factored(self, gradient: Tensor, local: Tensor) -> Tensor:
        """The whole Newton step, by a factorisation of the Hessian."""
        outputs, unknowns = gradient.shape
        every = torch.arange(unknowns, device=gradient.device)
        penalty = torch.where(every < self.columns, self.ridge, 0.0).to(gradient)
        if self.loss.coupled(outputs):
            owner = torch.arange(outputs, device=gradient.device).repeat_interleave(unknowns)
            hessians = [self.loss.joint_hessian(self.exact, self.weight, local, every.repeat(outputs), owner)]
        else:
            roots = (self.weight[:, None] * local).sqrt()
            hessians = [gram(self.exact.entries_of(every) * root[:, None]) for root in roots.T]
        steps: list[Tensor] = []
        for hessian, slope in zip(hessians, torch.split(gradient.flatten(), [len(h) for h in hessians]), strict=True):
            hessian.diagonal().add_(penalty.repeat(len(hessian) // unknowns) + _SINGULAR * hessian.diagonal().max())
            steps.append(-torch.linalg.solve(hessian, slope))
        return torch.cat(steps).reshape(gradient.shape)

    def _move(self, step: Tensor, value: float, slope: float) -> bool:
        """Go along the step to where the objective is flat enough; whether it falls."""
        change = self.exact.outputs(step)
        penalised = step[:, : self.columns]
        lean = self.ridge * float((self.x[:, : self.columns] * penalised).sum())
        bend = self.ridge * float(penalised.square().sum())

        def steepness(length: float) -> float:
            rows = self.loss.gradient(self.outputs + length * change, self.encoded)
            return float(self.weight @ (rows * change).sum(1)) + lean + length * bend

        length = flat_length(steepness, slope)
        while length > 1e-8:
            x, outputs = self.x + length * step, self.outputs + length * change
            if self._value(x, outputs) <= value + 1e-4 * length * slope + 1e-15 * abs(value):
                moved = not torch.equal(x, self.x)
                self.x, self.outputs = x, outputs
                return moved
            length /= 2
        return False


class _Model:
    """What all ridge programmes over the same rows and columns share."""

    def __init__(self, programme: ReducedProgramme) -> None:
        matrix, weight = programme.matrix, programme.weight
        self.root = programme.multiplicity.sqrt()
        self.mean = matrix.T @ weight / weight.sum() if programme.fit_intercept else torch.zeros_like(self.root)
        self.fit_intercept = programme.fit_intercept
        shape = matrix, self.mean, self.root, programme.fit_intercept
        self.rough = Products(*shape)
        self.exact = self.rough if self.rough.dtype == torch.float64 else Products(*shape, torch.float64)
        self.spectrum: Spectrum = spectrum_of(self.rough, weight)
        self.size = float(self.spectrum.values.sum()) / self.spectrum.total  # mean squared length of a row

    def inside(self, coef: Tensor, intercept: Tensor) -> Tensor:
        """``[C, p (+ 1)]`` over scaled and centred columns."""
        x = (coef / self.root[:, None]).T
        return torch.cat([x, (intercept + self.mean @ coef)[:, None]], 1) if self.fit_intercept else x

    def outside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[p, C]`` and intercept ``[C]`` of the columns as they are."""
        coef = (x[:, : len(self.root)] * self.root).T.contiguous()
        return coef, x[:, -1] - self.mean @ coef if self.fit_intercept else torch.zeros_like(x[:, 0])
