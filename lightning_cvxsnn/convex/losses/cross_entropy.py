"""Cross-entropy, natural logarithm: ``logsumexp(z) - y.z``; one output is logistic."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import override

from lightning_cvxsnn.convex.losses.base import LossProof, RayProof, SmoothLoss, mean_target
from lightning_cvxsnn.convex.losses.encoding import check_targets, encode_labels, encode_values
from lightning_cvxsnn.convex.matrix import Gathered, add_gram

__all__ = ["CrossEntropy", "CrossEntropyProof", "EntropyRayProof"]

_SIMPLEX = 1e-3  # probabilities in half precision sum to 1 but for this
_TINY = 1e-12  # probability that a class without weight gets from a constant


class CrossEntropy(SmoothLoss):
    """``logsumexp(z) - y.z``; encoded targets are probabilities, or the class itself, 0 or 1, for one output."""

    name = "cross_entropy"
    takes_probabilities = True

    @override
    def coupled(self, num_outputs: int) -> bool:
        return num_outputs > 1

    @override
    def encode(self, targets: Tensor, num_outputs: int | None = None) -> Tensor:
        """Labels ``[n]``, or probabilities: floats ``[n, C]`` with C > 1 whose rows sum to 1."""
        targets = check_targets(targets, num_outputs)
        if targets.is_floating_point() and targets.ndim == 2:
            return _normalised(encode_values(targets, num_outputs))
        return encode_labels(targets, self.name, num_outputs)

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        if outputs.shape[1] == 1:
            label = encoded.round()  # of two, the nearer: no difference of large numbers for either
            return (softplus((1 - 2 * label) * outputs) + (label - encoded) * outputs)[:, 0]
        return torch.logsumexp(outputs, 1) - (encoded * outputs).sum(1)

    @override
    def gradient(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        probabilities = torch.sigmoid(outputs) if outputs.shape[1] == 1 else torch.softmax(outputs, 1)
        return probabilities - encoded

    @override
    def curvature(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Of one output."""
        return torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    @override
    def local(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Probabilities of several outputs, the curvature of one."""
        return torch.softmax(outputs, 1) if outputs.shape[1] > 1 else self.curvature(outputs, encoded)

    @override
    def bend(self, local: Tensor, change: Tensor) -> Tensor:
        if local.shape[1] == 1:
            return local * change
        return local * (change - (local * change).sum(1, keepdim=True))

    @override
    def own_bend(self, local: Tensor) -> Tensor:
        if local.shape[1] == 1:
            return local
        top = local.argmax(1, keepdim=True)  # 1 - p without cancellation, where that is small
        return local * (1 - local).scatter(1, top, local.scatter(1, top, 0.0).sum(1, keepdim=True))

    @override
    def mean_bend(self, local: Tensor, weight: Tensor) -> Tensor:
        if local.shape[1] == 1:
            return super().mean_bend(local, weight)
        weighted = weight[:, None] * local
        return torch.diag(weighted.sum(0)) - local.T @ weighted

    @override
    def one_output(self, outputs: Tensor, output: int) -> Tensor:
        """Given the others, one output of a softmax is a logistic output with an offset."""
        own = outputs[:, output, None]
        if outputs.shape[1] == 1:
            return own
        others = torch.cat([outputs[:, :output], outputs[:, output + 1 :]], 1)
        return own - others.logsumexp(1, keepdim=True)

    @override
    def joint_hessian(self, matrix: Gathered, weight: Tensor, local: Tensor, columns: Tensor, owner: Tensor) -> Tensor:
        own = (weight[:, None] * self.own_bend(local)).T.sqrt().contiguous()
        scale = (weight.sqrt()[:, None] * local).T.contiguous()
        sizes = torch.bincount(owner, minlength=len(own)).tolist()
        spans = [slice(last - size, last) for size, last in zip(sizes, accumulate(sizes), strict=True)]
        alone = [weight.new_zeros(span.stop - span.start, span.stop - span.start) for span in spans]
        hessian = weight.new_zeros(columns.numel(), columns.numel())
        for part, block in matrix.gathered(columns):
            wide = block.T
            for c, span in enumerate(spans):
                root = wide[span] * own[c, part]
                alone[c].addmm_(root, root.T)
                wide[span] *= scale[c, part]
            add_gram(hessian, wide, -1)
        hessian = hessian.tril() + hessian.tril(-1).T
        for span, single in zip(spans, alone, strict=True):
            hessian[span, span] = single
        return hessian

    @override
    def constant(self, encoded: Tensor, weight: Tensor) -> Tensor:
        """A class without weight gets the logarithm of a tiny probability."""
        mean = mean_target(encoded, weight)
        if encoded.shape[1] == 1:
            return torch.logit(mean.clamp(_TINY, 1 - _TINY))
        return mean.clamp_min(_TINY).log()

    @override
    def open_outputs(self, encoded: Tensor) -> Tensor:
        """Classes that occur, if there are several."""
        varied = (encoded != encoded[0]).any(0)
        if encoded.shape[1] == 1:
            return varied.nonzero()[:, 0]
        occurring = (varied | (encoded[0] > 0)).nonzero()[:, 0]
        return occurring[:0] if occurring.numel() == 1 else occurring

    @override
    def trivial_intercepts(self, encoded: Tensor, weight: Tensor, others: Tensor | None, slack: float) -> Tensor:
        """So low, or high for the label of one output, that the loss of all rows rises by ``slack`` at most."""
        bound, log_weight = math.log(slack), weight.log()
        if encoded.shape[1] == 1:
            return (2 * encoded[0] - 1) * (torch.logsumexp(log_weight, 0) - bound)
        if others is None:  # one class alone, which keeps 0
            absent, normaliser = encoded[0] == 0, torch.zeros_like(log_weight)
            count = int(absent.sum())
        else:
            absent, normaliser = torch.ones_like(encoded[0], dtype=torch.bool), torch.logsumexp(others, 1)
            count = encoded.shape[1] - others.shape[1]
        low = bound - torch.logsumexp(log_weight - normaliser, 0) - math.log(count)
        return torch.where(absent, low, 0.0)

    @override
    def expression(self, cvxpy: Any, outputs: Any, encoded: Any, weight: Any) -> Any:
        if encoded.shape[1] == 1:
            return cvxpy.sum(
                cvxpy.multiply(weight[:, None], cvxpy.logistic(outputs) - cvxpy.multiply(encoded, outputs))
            )
        return weight @ (cvxpy.log_sum_exp(outputs, axis=1) - cvxpy.sum(cvxpy.multiply(encoded, outputs), axis=1))


def _normalised(probabilities: Tensor) -> Tensor:
    """Rows of probabilities, exactly on the simplex."""
    total = probabilities.sum(1)
    if probabilities.shape[1] < 2 or bool((probabilities < 0).any()) or bool(((total - 1).abs() > _SIMPLEX).any()):
        worst = int((total - 1).abs().argmax())
        raise ValueError(
            f"targets of shape {tuple(probabilities.shape)} hold {float(probabilities.min()):g} and a row of sum "
            f"{float(total[worst]):g} (row {worst}); loss 'cross_entropy' expects labels [n], or probabilities [n, C] "
            "with C > 1 that are not negative and sum to 1. Other values are for loss='squared'; several labels per "
            "row are not supported."
        )
    return probabilities / total[:, None]


class CrossEntropyProof(LossProof):
    """``U_i = s_i (y_i - q_i) / n`` with ``q_i`` in the simplex; its value is ``(1/n) sum s_i entropy(q_i)``.

    One logistic output is a softmax over the logits (0, z).
    """

    @override
    def near_zero(self, intercept: Tensor) -> Tensor:
        """A softmax does not see a common shift: multiples of 1024 are taken off, so that ordinary ones stay."""
        if intercept.numel() == 1:
            return intercept
        return intercept - (intercept.max() / 1024).trunc() * 1024

    @override
    def values(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        logits, onehot = self._two_columns(outputs, encoded)
        return torch.logsumexp(logits, 1) - (logits * onehot).sum(1)

    @override
    def residuals(self, outputs: Tensor, encoded: Tensor, scale: Tensor) -> Tensor:
        logits, onehot = self._two_columns(outputs, encoded)
        return scale * (onehot - torch.softmax(logits, 1))[:, -outputs.shape[1] :]

    def _two_columns(self, outputs: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
        if outputs.shape[1] > 1:
            return outputs, onehot
        return torch.cat([torch.zeros_like(outputs), outputs], 1), torch.cat([1 - onehot, onehot], 1)

    @override
    def repair(self, point: Tensor, encoded: Tensor, scale: Tensor, fit_intercept: bool) -> Tensor:
        """Onto the simplex; then the columns of ``s q / n`` are matched to the weights of the classes."""
        single = point.shape[1] == 1
        if single:
            point = torch.cat([-point, point], 1)
            encoded = torch.cat([1 - encoded, encoded], 1)
        used = scale > 0
        simplex = torch.where(used, encoded - point / torch.where(used, scale, 1.0), encoded).clamp(0, 1)
        size = simplex.sum(1, keepdim=True)
        mass = scale * torch.where(size > 0, simplex / torch.where(size > 0, size, 1.0), encoded)
        if fit_intercept:
            mass = self._round_to_transport_polytope(mass, scale[:, 0], (scale * encoded).sum(0))
        repaired = scale * encoded - mass
        return repaired[:, 1:] if single else repaired

    def _round_to_transport_polytope(self, mass: Tensor, row_sums: Tensor, column_sums: Tensor) -> Tensor:
        """Altschuler, Weed, Rigollet 2017, algorithm 2; the rows' sums are right already, so columns are shrunk."""
        current = mass.sum(0)
        mass = mass * torch.where(current > column_sums, column_sums / current, 1.0)
        row_deficit = (row_sums - mass.sum(1)).clamp_min(0)
        column_deficit = (column_sums - mass.sum(0)).clamp_min(0)
        missing = row_deficit.sum()
        return mass + torch.outer(row_deficit, column_deficit / missing) if bool(missing > 0) else mass

    @override
    def ray(self, point: Tensor, encoded: Tensor, weight: Tensor) -> RayProof:
        onehot, shift = encoded, point
        if point.shape[1] == 1:
            onehot, shift = torch.cat([1 - encoded, encoded], 1), torch.cat([-point, point], 1)
        used = weight > 0
        return EntropyRayProof(onehot[used], shift[used] * len(point) / weight[used, None], weight[used] / len(point))


class EntropyRayProof(RayProof):
    """``sum_i share_i entropy(onehot_i - f shift_i)`` for one factor up to 1; all points are in the simplex."""

    def __init__(self, onehot: Tensor, shift: Tensor, share: Tensor) -> None:
        self.onehot, self.shift, self.share = onehot, shift, share
        self.best = share.new_ones(1)

    @override
    def value(self, factor: Tensor) -> float:
        return float(self.share @ torch.special.entr(self._simplex(factor)).sum(1))

    @override
    def slopes(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        simplex = self._simplex(factor).clamp_min(torch.finfo(torch.float64).tiny)
        slope = self.share @ (self.shift * simplex.log()).sum(1)
        return slope[None], (self.share @ (self.shift.square() / simplex).sum(1))[None]

    def _simplex(self, factor: Tensor) -> Tensor:
        return (self.onehot - factor * self.shift).clamp(0, 1)
