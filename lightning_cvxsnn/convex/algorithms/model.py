"""The inner problem of `face`: a second-order model over some entries, with the elastic net, at once or by faces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.interior import factor
from lightning_cvxsnn.convex.algorithms.kept import KeptHessian
from lightning_cvxsnn.convex.algorithms.products import Products
from lightning_cvxsnn.convex.algorithms.quadratic import minimise_quadratic
from lightning_cvxsnn.convex.losses import SmoothLoss
from lightning_cvxsnn.convex.penalties import ElasticNet, soft_threshold
from lightning_cvxsnn.convex.presolve import ReducedProgramme

__all__ = ["Columns", "Model"]

_ROUNDS = 3  # faces of one model
_FORCING = 0.3  # share of its slope that a model may leave
_STEPS = 30  # of conjugate gradients on one face
_DROPS = 3  # times that entries which would enter with the wrong sign are left out of a face
_LENGTHS = 0.5, 0.25, 0.125, 0.0625  # of a step to another face that does not descend
_DENSE = 2000  # entries up to which a Hessian is cheaper than conjugate gradients
_ALL = 1 - 1e-9  # of the curvature: what is left may bend some direction alone, if it is not next to nothing
_PROXIMAL = 1e-6  # relative, on the diagonal of the models of faces: directions may be flat
_RIDGE = 1e-6  # relative, of the preconditioner: a float32 Gram is not more exact


class Columns:
    """The columns that have been worked on, gathered once, and for the squared loss their weighted and centred Gram."""

    def __init__(self, programme: ReducedProgramme) -> None:
        matrix, weight = programme.matrix, programme.weight
        ones = torch.ones_like(programme.multiplicity)
        self.mean = matrix.T @ weight / weight.sum() if programme.fit_intercept else torch.zeros_like(ones)
        self.rough = Products(matrix, self.mean, ones, programme.fit_intercept)
        self.root = weight.sqrt()[:, None].to(self.rough.dtype)
        self.place = torch.full((matrix.shape[1],), -1, device=weight.device)
        self.index = self.place[:0]
        self.block = self.rough.of_columns(self.index)
        self.lengths = self.root.new_zeros(0)
        self.hessians: dict[int, KeptHessian] = {}
        quadratic = isinstance(programme.loss, SmoothLoss) and programme.loss.quadratic
        self.gram = self.root.new_zeros(0, 0) if quadratic else None

    def including(self, index: Tensor) -> Tensor:
        """Have these columns among them; the columns that there are then, in their order."""
        new = index[self.place[index] < 0]
        if new.numel():
            known = self.index.numel()
            fresh = self.rough.of_columns(new)
            self.index = torch.cat([self.index, new])
            self.place[new] = torch.arange(known, self.index.numel(), device=new.device)
            self.block = self.block.joined(fresh)
            own = fresh.entries_of(torch.arange(new.numel(), device=new.device))
            self.lengths = torch.cat([self.lengths, (self.root * own).square().sum(0)])
            if self.gram is not None:
                border = self.block.gram_with(fresh, self.root)
                self.gram = torch.cat([torch.cat([self.gram, border[:known]], 1), border.T])
        return self.index

    def kept(self, output: int, curvature: Tensor, place: Tensor) -> Tensor:
        """About the Hessian of an output alone at some places, of a curvature ``[n]`` that may be an earlier one."""
        kept = self.hessians.get(output)
        if kept is None or not kept.serves(place, self.block):
            kept = self.hessians[output] = KeptHessian(curvature, self.block)
        return kept.at(place, self.block)


class Model:
    """A second-order model over the columns' coefficients ``[C, u (+ 1)]``, the intercept's last.

    Args:
        columns: Those that it is of.
        loss: The loss.
        local: What its second derivatives are made of, ``[n, C]``.
        weight: ``[n]``.
        penalty: The penalty.
        start: Where the model is right, ``[C, u (+ 1)]``.
    """

    def __init__(
        self, columns: Columns, loss: SmoothLoss, local: Tensor, weight: Tensor, penalty: ElasticNet, start: Tensor
    ) -> None:
        self.columns, self.loss, self.block = columns, loss, columns.block
        dtype, known = self.block.dtype, columns.index.numel()
        self.curvature = weight[:, None] * loss.own_bend(local)  # of each output alone
        self.total = float(weight.sum())
        self.local, self.weight = local.to(dtype), weight.to(dtype)[:, None]
        self.start = start
        self.l1 = torch.zeros_like(start[:1])
        self.l1[:, :known] = penalty.l1
        self.l2 = torch.zeros_like(start[:1])
        curvature = penalty.curvature(len(columns.place))
        if curvature is not None:
            self.l2[:, :known] = curvature[columns.index.to(curvature.device), 0].to(start)
        lengths = torch.full_like(start[0], self.total)
        lengths[:known] = columns.lengths
        lengths = torch.outer(self.curvature.sum(0) / self.total, lengths)
        self.diagonal, self.about = self.l2 + _PROXIMAL * lengths, self.l2 + lengths

    def minimise(self, slope: Tensor, working: Tensor) -> tuple[Tensor, float]:
        """Minimise it, nearly.

        Args:
            slope: The loss's slope at the start, ``[C, u (+ 1)]``.
            working: Which entries may move, ``[C, u (+ 1)]``.

        Returns:
            The step ``[C, u (+ 1)]`` and the change of the model, not positive.
        """
        coupled = self.loss.coupled(len(working))
        size = int(working.sum()) if coupled else int(working.sum(1).max())
        if size > _DENSE:
            step, change = self.by_faces(slope, working)
            if change < 0 or size > 2 * _DENSE + 100:
                return step, change
        if coupled:
            return self.at_once(slope, working)
        step, change = torch.zeros_like(self.start), 0.0
        for c in working.any(1).nonzero()[:, 0].tolist():
            own = torch.zeros_like(working)
            own[c] = working[c]
            move, gain = self.at_once(slope, own)
            step, change = step + move, change + gain
        return step, change

    def curved(self, step: Tensor) -> Tensor:
        """The model's Hessian times a step."""
        rough = step.to(self.block.dtype)
        product = self.block.curved(rough, lambda part, z: self.weight[part] * self.loss.bend(self.local[part], z))
        return product.to(step) + self.diagonal * step

    def at_once(self, slope: Tensor, working: Tensor) -> tuple[Tensor, float]:
        """The step and the change by the model's Hessian over all working entries."""
        owner, place = working.nonzero(as_tuple=True)  # sorted by output
        hessian = self._hessian(owner, place).to(slope)
        hessian.diagonal().mul_(1 + _RIDGE).add_(self.l2[0, place])
        old, weights = self.start[owner, place], self.l1[0, place]
        gradient = slope[owner, place] + self.l2[0, place] * old
        new, change, _ = minimise_quadratic(hessian, gradient, old, weights)
        step = torch.zeros_like(self.start)
        step[owner, place] = new - old
        return step, change

    def _hessian(self, owner: Tensor, place: Tensor) -> Tensor:
        """Of the loss in some entries, of one output where they are not coupled, ``[k, k]``."""
        if self.columns.gram is not None:
            return self._part(place, self.columns.gram)
        if not self.loss.coupled(len(self.start)):
            return self._own_hessian(int(owner[0]), place)
        return self.loss.joint_hessian(self.block, self.weight[:, 0], self.local, place, owner)

    def _own_hessian(self, output: int, place: Tensor) -> Tensor:
        """The Hessian of one output alone, at its curvature."""
        return KeptHessian(self.curvature[:, output], self.block, _ALL).at(place, self.block)

    def _part(self, place: Tensor, gram: Tensor) -> Tensor:
        """The Hessian of one output of the squared loss: the intercept has nothing in common with centred columns."""
        hessian = gram.new_zeros(len(place), len(place))
        hessian.diagonal().add_(self.total)
        index = place[place < len(gram)]
        hessian[: len(index), : len(index)] = gram.index_select(0, index).index_select(1, index)
        return hessian

    def by_faces(self, slope: Tensor, working: Tensor) -> tuple[Tensor, float]:
        """The same by conjugate gradients on one face after the other."""
        places = [entries.nonzero()[:, 0] for entries in working]
        self.blocks = [(place, self._preconditioning(c, place)) for c, place in enumerate(places)]
        point, slope = self.start, slope + self.l2 * self.start
        free = self.l1 == 0
        first, total = None, 0.0
        for _ in range(_ROUNDS):
            inside = (point != 0) | free
            descent = torch.where(inside, slope + self.l1 * point.sign(), soft_threshold(slope, self.l1)) * working
            size = float(descent.square().sum())
            first = size if first is None else first
            if size <= (_FORCING**2 * first if total < 0 else 0.0):
                break
            face = working & (inside | (descent != 0))
            signs = torch.where(point != 0, point.sign(), -descent.sign()) * ~free
            inverse, enough = self._preconditioner(face), _FORCING * size**0.5
            step, curved = self._on_face(face, inverse, -descent, enough, None)
            for _ in range(_DROPS):
                wrong = face & (point == 0) & (step * signs < 0)
                if not bool(wrong.any()):
                    break
                face = face & ~wrong
                step, curved = self._on_face(face, inverse, -descent, enough, step)
            moved = self._accept(point, step, curved, slope, signs)
            if moved is None:
                break
            step, curved, change = moved
            point, slope, total = point + step, slope + curved, total + change
        return point - self.start, total

    def _preconditioning(self, output: int, place: Tensor) -> Tensor:
        if self.columns.gram is not None:
            return self._part(place, self.columns.gram)
        return self.columns.kept(output, self.curvature[:, output], place)

    def _accept(
        self, point: Tensor, step: Tensor, curved: Tensor, slope: Tensor, signs: Tensor
    ) -> tuple[Tensor, Tensor, float] | None:
        """As far as it descends, entries that would change their sign held at zero."""
        bound = self.l1 > 0
        first = torch.where(bound & ((point + step) * point < 0), -point / step, 1.0).min()
        for length in (1.0, *_LENGTHS, float(first)):
            target = point + length * step
            crossing = bound & (target * signs < 0)
            target = torch.where(crossing, 0.0, target)
            move = target - point
            bent = length * curved
            if bool(crossing.any()):
                bent = self.curved(move)
            change = float((move * (slope + bent / 2)).sum() + (self.l1 * (target.abs() - point.abs())).sum())
            if change < 0:
                return move, bent, change
        return None

    def _on_face(
        self, face: Tensor, inverse: Callable[[Tensor], Tensor], right: Tensor, enough: float, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Conjugate gradients for the Hessian on a face; the step and the Hessian times it."""
        step, curved = torch.zeros_like(right), torch.zeros_like(right)
        if start is not None:
            step = start * face
            curved = self.curved(step)
        residual = (right - curved) * face
        direction, product = residual, 0.0
        for k in range(_STEPS):
            turned = inverse(residual) * face
            before, product = product, float((residual * turned).sum())
            direction = turned + product / before * direction if k else turned
            bent = self.curved(direction)
            curvature = float((direction * bent).sum())
            if not curvature > 0:
                break
            length = product / curvature
            step, curved = step + length * direction, curved + length * bent
            residual = residual - length * bent * face
            if float(residual.square().sum()) <= enough**2:
                break
        for kept in self.columns.hessians.values():
            kept.steps += k + 1
        return step, curved

    def _preconditioner(self, face: Tensor) -> Callable[[Tensor], Tensor]:
        """The inverses of the Hessians of the outputs alone, on the face; of the diagonal where these have no entry."""
        parts = []
        for c, (places, hessian) in enumerate(self.blocks):
            inside = face[c, places]
            system = hessian[inside][:, inside]
            system.diagonal().add_(self.diagonal[c, places[inside]].to(system))
            parts.append((places[inside], factor(system, _RIDGE) if len(system) else system))

        def inverse(residual: Tensor) -> Tensor:
            turned = residual / self.about
            for c, (index, lower) in enumerate(parts):
                right = residual[c, index].to(lower)[:, None]
                turned[c, index] = torch.cholesky_solve(right, lower)[:, 0].to(residual)
            return turned

        return inverse
