r"""Proof of optimality: a primal value, a lower bound on the optimum, and nothing taken on trust.

The formulas are written out here a second time on purpose: but for the matrix products, no numerical code is shared
with the solvers that the certificate judges. Weak duality for ``min (1/n) sum_i s_i loss(D_i W + b, y_i) + rho |W|_1``
gives, for every ``U`` with ``|D^T U| <= rho`` (and ``sum_i U_i = 0`` if ``b`` is fitted), a bound ``D(U)``:

===============  =================================================  ==========================================
loss             ``U`` of the form                                  ``D(U)``
===============  =================================================  ==========================================
squared          anything (0 where ``s_i = 0``)                     ``sum u_i.y_i - n |u_i|^2 / (2 s_i)``
hinge            ``t alpha``, ``0 <= alpha_i <= s_i / n``           ``sum alpha``
cross-entropy    ``s_i (y_i - q_i) / n``, ``q_i`` in the simplex    ``(1/n) sum s_i entropy(q_i)``
===============  =================================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.inputs import Dictionary, check_problem, check_rho
from lightning_cvxsnn.convex.losses import Loss
from lightning_cvxsnn.convex.matrix import Matrix

__all__ = ["Certificate", "Total", "certificate", "certify", "check_coef", "check_point"]

Total = Callable[[Tensor], Tensor]  # from a sum over the rows at hand to the sum over all rows


@dataclass(frozen=True)
class Certificate:
    """Primal value, best lower bound found, and their difference, all in float64.

    Attributes:
        primal: Objective at the given coefficients and intercept.
        dual: A lower bound on the optimum, never below 0.
        gap: ``primal - dual``: at least the true suboptimality (up to rounding, about 1e-14 of the objective).
        violation: ``max(0, max |D^T U| / rho - 1)`` of the dual point that gave ``dual``, after it was repaired to the
            box or simplex and to the intercept's equality, before it was scaled.
    """

    primal: float
    dual: float
    gap: float
    violation: float


def certificate(
    dictionary: Dictionary,
    targets: Tensor,
    coef: Tensor,
    intercept: Tensor | None = None,
    *,
    loss: Loss,
    rho: float,
    fit_intercept: bool,
    sample_weight: Tensor | None = None,
    dual_point: Tensor | None = None,
) -> Certificate:
    r"""Bound how far coefficients are from the optimum of the L1 programme.

    Two dual points are repaired to exact feasibility and the better one is used: ``dual_point`` and the residuals of
    ``coef``. Order of repair: box or simplex; the intercept's equality (squared: residuals re-centred; hinge: the
    heavier sign is shrunk; cross-entropy: rounding onto the transport polytope); then scaling into ``|D^T U| <= rho``,
    output by output where outputs are independent. For hinge the residual point is poor even at the optimum: pass
    ``Solution.dual_point``.

    Args:
        dictionary: ``[n, P]`` tensor, or an object with ``to_dense(dtype)``.
        targets: As for ``solve``.
        coef: ``[P, C]``, any float dtype.
        intercept: ``[C]``; ``None`` means zeros.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        rho: Penalty, positive.
        fit_intercept: Whether the programme minimises over the intercept.
        sample_weight: ``[n]``, ones by default, never renormalised.
        dual_point: ``[n, C]``, any finite numbers; only makes the bound better.

    Returns:
        Primal, dual, gap and violation.

    Raises:
        ValueError: Shapes that disagree, NaN or infinity anywhere, bad labels, weights or rho, or a non-zero intercept
            in a programme without one.

    Source: DESIGN section 2; rounding: Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for
    optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2.

    Example:
        >>> D = torch.tensor([[1.0], [0.0]])
        >>> y = torch.tensor([[1.0], [0.0]])
        >>> c = certificate(D, y, torch.tensor([[0.5]]), loss="squared", rho=0.25, fit_intercept=False)
        >>> c.primal, round(c.gap, 12)
        (0.1875, 0.0)
    """
    matrix, encoded, weight = check_problem(dictionary, targets, loss, check_coef(coef), sample_weight)
    coef, intercept, dual_point = check_point(matrix, coef, intercept, dual_point, fit_intercept)
    return certify(matrix, encoded, weight, coef, intercept, loss, check_rho(rho), fit_intercept, dual_point)[0]


def check_coef(coef: Tensor) -> int:
    """The number of outputs of coefficients ``[P, C]``."""
    if coef.ndim != 2 or coef.shape[1] == 0:
        raise ValueError(f"coef has shape {tuple(coef.shape)}; expected [P, C].")
    return coef.shape[1]


def check_point(
    matrix: Matrix, coef: Tensor, intercept: Tensor | None, dual_point: Tensor | None, fit_intercept: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients, intercept and dual point as float64 on the matrix's device, checked against its shape."""
    outputs = coef.shape[1]
    coef = _finite(coef, "coef", (matrix.shape[1], outputs), matrix.device)
    if intercept is None:
        intercept = torch.zeros(outputs, dtype=torch.float64, device=matrix.device)
    intercept = _finite(intercept, "intercept", (outputs,), matrix.device)
    if not fit_intercept and bool(intercept.any()):
        raise ValueError("intercept is not zero but fit_intercept=False; pass fit_intercept=True or no intercept.")
    if dual_point is not None:
        dual_point = _finite(dual_point, "dual_point", (matrix.shape[0], outputs), matrix.device)
    return coef, intercept, dual_point


def _finite(tensor: Tensor, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}.")
    tensor = tensor.detach().to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinite entries; expected finite numbers.")
    return tensor


def _all_here(partial: Tensor) -> Tensor:
    return partial


def certify(
    matrix: Matrix,
    encoded: Tensor,
    weight: Tensor,
    coef: Tensor,
    intercept: Tensor,
    loss: Loss,
    rho: float,
    fit_intercept: bool,
    dual_point: Tensor | None,
    total: Total = _all_here,
) -> tuple[Certificate, Tensor]:
    """:func:`certificate` on checked inputs; also returns the feasible dual point ``[n, C]`` it used.

    The rows may be a part of the programme's: ``total`` then adds up what the holders of the parts pass to it in turn.
    """
    rows = int(total(weight.new_tensor(matrix.shape[0])))
    outputs = matrix @ coef + intercept
    primal = float(total(weight @ _loss(outputs, encoded, loss))) / rows + rho * float(coef.abs().sum())
    best, violation, point = 0.0, 0.0, torch.zeros_like(outputs)  # U = 0 is feasible and bounds by 0
    scale = weight[:, None] / rows
    candidates = [_residuals(outputs, encoded, scale, loss)]
    if dual_point is not None:
        candidates.insert(0, dual_point)
    repaired = [_repair(candidate, encoded, scale, loss, fit_intercept, total) for candidate in candidates]
    correlations = total(matrix.T @ torch.cat(repaired, 1)).abs().amax(0).chunk(len(repaired))
    for candidate, correlation in zip(repaired, correlations, strict=True):
        scaled, value = _scale_and_value(candidate, encoded, weight, rows, loss, rho, correlation, total)
        if math.isfinite(value) and value > best:
            best, point = value, scaled
            violation = max(0.0, float(correlation.max()) / rho - 1)
    return Certificate(primal, best, primal - best, violation), point


def _loss(outputs: Tensor, encoded: Tensor, loss: Loss) -> Tensor:
    if loss == "squared":
        return (outputs - encoded).square().sum(1) / 2
    if loss == "hinge":
        return torch.relu(1 - encoded * outputs).sum(1)
    logits, onehot = _two_columns(outputs, encoded)
    return torch.logsumexp(logits, 1) - (logits * onehot).sum(1)


def _residuals(outputs: Tensor, encoded: Tensor, scale: Tensor, loss: Loss) -> Tensor:
    if loss == "squared":
        return scale * (encoded - outputs)
    if loss == "hinge":
        return scale * encoded * (encoded * outputs < 1)
    logits, onehot = _two_columns(outputs, encoded)
    return scale * (onehot - torch.softmax(logits, 1))[:, -outputs.shape[1] :]


def _two_columns(outputs: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
    """One logistic output is a softmax over the logits (0, z)."""
    if outputs.shape[1] > 1:
        return outputs, onehot
    return torch.cat([torch.zeros_like(outputs), outputs], 1), torch.cat([1 - onehot, onehot], 1)


def _repair(point: Tensor, encoded: Tensor, scale: Tensor, loss: Loss, fit_intercept: bool, total: Total) -> Tensor:
    """Move a dual point into the loss's domain, and onto the intercept's equality; ``scale [n, 1]`` is ``s_i / n``."""
    if loss == "squared":
        point = torch.where(scale > 0, point, 0.0)
        if fit_intercept and bool((share := total(scale.sum())) > 0):
            for _ in range(2):  # the second pass removes the rounding error of the first
                point = point - scale / share * total(point.sum(0))
        return point
    if loss == "hinge":
        alpha = torch.minimum((encoded * point).clamp_min(0), scale)
        if fit_intercept:
            positive, negative = total(torch.stack([alpha.where(encoded * sign > 0, 0.0).sum(0) for sign in (1, -1)]))
            lighter = torch.minimum(positive, negative)
            shrink = torch.where(encoded > 0, lighter / positive, lighter / negative)
            alpha = torch.where(alpha > 0, alpha * shrink.clamp(max=1), 0.0)
        return encoded * alpha
    single = point.shape[1] == 1
    if single:
        point = torch.cat([-point, point], 1)
        encoded = torch.cat([1 - encoded, encoded], 1)
    used = scale > 0
    simplex = torch.where(used, encoded - point / torch.where(used, scale, 1.0), encoded).clamp(0, 1)
    size = simplex.sum(1, keepdim=True)
    mass = scale * torch.where(size > 0, simplex / torch.where(size > 0, size, 1.0), encoded)
    if fit_intercept:
        mass = _round_to_transport_polytope(mass, scale[:, 0], total((scale * encoded).sum(0)), total)
    repaired = scale * encoded - mass
    return repaired[:, 1:] if single else repaired


def _round_to_transport_polytope(mass: Tensor, row_sums: Tensor, column_sums: Tensor, total: Total) -> Tensor:
    """Altschuler, Weed, Rigollet 2017, algorithm 2; rows first are already right, so columns are shrunk."""
    current = total(mass.sum(0))
    mass = mass * torch.where(current > column_sums, column_sums / current, 1.0)
    row_deficit = (row_sums - mass.sum(1)).clamp_min(0)
    column_deficit = (column_sums - total(mass.sum(0))).clamp_min(0)
    missing = total(row_deficit.sum())
    return mass + torch.outer(row_deficit, column_deficit / missing) if bool(missing > 0) else mass


def _scale_and_value(
    point: Tensor,
    encoded: Tensor,
    weight: Tensor,
    rows: int,
    loss: Loss,
    rho: float,
    correlation: Tensor,
    total: Total,
) -> tuple[Tensor, float]:
    """Scale into ``|D^T U| <= rho`` and evaluate the bound; ``correlation [C]`` is ``max_j |D^T U|``."""
    limit = rho * (1 - 1e-14) / correlation.clamp_min(torch.finfo(torch.float64).tiny)
    if loss == "squared":
        used = weight > 0
        curvature = (point[used].square() / weight[used, None]).sum(0) * rows
        linear, curvature = total(torch.stack([(point * encoded).sum(0), curvature]))
        best = torch.where(curvature > 0, linear / curvature, 0.0)  # maximises c * linear - c^2 * curvature / 2
        factor = torch.maximum(torch.minimum(best, limit), -limit)
        return point * factor, float((factor * linear - factor.square() * curvature / 2).sum())
    if loss == "hinge":
        point = point * limit.clamp(max=1)
        return point, float(total((encoded * point).sum()))
    factor = limit.min().clamp(max=1)
    onehot, shift = encoded, point * factor
    if point.shape[1] == 1:
        onehot, shift = torch.cat([1 - encoded, encoded], 1), torch.cat([-shift, shift], 1)
    used = weight > 0
    simplex = (onehot[used] - shift[used] * rows / weight[used, None]).clamp(0, 1)
    return point * factor, float(total(weight[used] @ torch.special.entr(simplex).sum(1))) / rows
