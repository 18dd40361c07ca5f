"""The convex programmes as functions: each a thin shell over :class:`~lightning_cvxsnn.convex.Programme`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms import Algorithm, CvxpyReference
from lightning_cvxsnn.convex.arguments import real_tensor
from lightning_cvxsnn.convex.certify import Certificate
from lightning_cvxsnn.convex.inputs import Dictionary, check_ratio, check_weights
from lightning_cvxsnn.convex.losses import Loss, loss_named
from lightning_cvxsnn.convex.penalties import ElasticNet
from lightning_cvxsnn.convex.programme import Programme
from lightning_cvxsnn.convex.rho_path import Path, Walk
from lightning_cvxsnn.convex.solution import Limits, Point, Solution

__all__ = ["Solver", "certificate", "mean_loss", "path", "rho_max", "solve"]

Solver = Literal["own", "cvxpy"]

_SOLVERS: dict[str, Algorithm | None] = {"own": None, "cvxpy": CvxpyReference()}


def solve(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    rho: float,
    l1_ratio: float = 1.0,
    fit_intercept: bool,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
    init: Point | None = None,
    gap_tolerance: float = 1e-6,
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    solver: Solver = "own",
) -> Solution:
    r"""Minimise the elastic net, from ridge to L1, to a certified duality gap.

    The objective is ``(1/n) sum_i s_i loss(D_i W + b, y_i) + rho * (a sum |W| + (1 - a)/2 sum W^2)`` with ``a =
    l1_ratio``. At ``a = 1``, equal columns have one weight, put on the first of them; below, each gets an equal part of
    it. With an intercept, a column and its complement count as equal. Constant columns (with an intercept) and zero
    columns get exactly zero.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``.
        targets: Integer labels ``[n]`` for cross-entropy, hinge and squared hinge; for cross-entropy also probabilities
            ``[n, C]``, C > 1 (soft or smoothed labels); floats ``[n, C]`` for squared.
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        rho: Strength of the penalty, positive.
        l1_ratio: Share of the L1 norm in the penalty, in [0, 1], as in scikit-learn: 1 is L1, 0 is ridge.
        fit_intercept: Whether to fit an unpenalised intercept ``b``.
        num_outputs: ``C``. ``None``: the number of classes, and 1 for the hinge losses with labels 0 and 1. With one
            output, cross-entropy is the logistic loss and labels are 0 and 1.
        sample_weight: ``s_i >= 0``, ``[n]``; ones by default, never renormalised: 0 drops the row's loss and keeps n.
        init: Where to start, such as the ``point`` of an earlier solution; its dictionary may have had fewer columns.
        gap_tolerance: Gap to reach, relative to the objective of the best constant predictor (of ``W = 0`` without an
            intercept; of ``W = 0, b = 0`` if that constant is already perfect).
        max_iterations: Limit of iterations of whichever algorithm runs; for hinge, whose outputs are programmes of
            their own, of all outputs' together, but one of each. When it is reached, the best certified point so far
            is returned with ``converged=False``.
        max_seconds: Limit of wall-clock time with the same outcome; runs then no longer repeat exactly. It is looked at
            between iterations: checks, reductions, the iteration at hand and the certificate are always finished.
        solver: ``"own"``, or ``"cvxpy"`` for the independent reference (CVXPY with Clarabel).

    Returns:
        Coefficients, intercept, a dual-feasible point, and their certificate, on the dictionary's device.

    Raises:
        ValueError: NaN or infinity, rho not positive, l1_ratio outside [0, 1], labels out of range, shapes that
            disagree, integer targets for squared, no rows, no columns, bad weights, unknown loss or solver.
        ImportError: ``solver="cvxpy"`` without CVXPY.

    Source: Udupi, Yang, Zhai, arXiv 2605.08022 (2026). A class that never occurs has no minimising intercept: it gets
    ``W_c = 0`` and a finite ``b_c`` within tolerance of the infimum.

    Example:
        >>> D = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.uint8)
        >>> solution = solve(D, torch.tensor([1, 1, 0, 0]), loss="hinge", rho=0.1, fit_intercept=True)
        >>> solution.coef.round(decimals=4)
        tensor([[2.],
                [0.]], dtype=torch.float64)
        >>> solution.converged, round(solution.primal, 6)
        (True, 0.2)
    """
    programme = Programme(
        dictionary, targets, loss=loss, fit_intercept=fit_intercept, num_outputs=num_outputs,
        sample_weight=sample_weight, penalty=_penalty(l1_ratio),
    )  # fmt: skip
    return programme.solve(rho, init, Limits(gap_tolerance, max_iterations, max_seconds), _algorithm(solver))


def rho_max(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    l1_ratio: float = 1.0,
    fit_intercept: bool,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
) -> float:
    """The smallest rho at which ``W = 0`` is optimal (for hinge with an intercept, an upper bound of it).

    Args and errors are those of :func:`solve`. The value is 0 if ``W = 0`` is optimal for every rho, and infinite for
    ridge, where it is optimal for none.

    Example:
        >>> rho_max(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]]), loss="squared", fit_intercept=False)
        0.5
    """
    programme = Programme(
        dictionary, targets, loss=loss, fit_intercept=fit_intercept, num_outputs=num_outputs,
        sample_weight=sample_weight, penalty=_penalty(l1_ratio),
    )  # fmt: skip
    return programme.largest_rho()


def path(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    l1_ratio: float = 1.0,
    fit_intercept: bool,
    held_out: Tensor,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
    rhos: Sequence[float] | None = None,
    num_values: int = 20,
    ratio: float = 1e-3,
    least_gain: float = 0.0,
    max_work: float = math.inf,
    gap_tolerance: float = 1e-4,
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    solver: Solver = "own",
) -> Path:
    """Solve for decreasing values of rho, a geometric sequence by default, and score them on held-out rows.

    The default sequence runs from ``rho_max`` of the fitted rows (for an ``l1_ratio`` below 1e-3, of that of 1e-3) down
    to ``ratio`` times it. Each solve starts from the
    one before. It ends early once the held-out loss has risen three times since its smallest value, or by more than a
    fiftieth of the first one. Objectives are averages over the *fitted* rows, so a rho chosen here keeps its meaning
    when all rows are refitted.

    Args:
        dictionary: ``[n, P]`` tensor, or an object with ``to_dense(dtype)``.
        targets: As for ``solve``.
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        l1_ratio: As for ``solve``.
        fit_intercept: Whether to fit an unpenalised intercept.
        held_out: Bool ``[n]``, true for the rows that score and are not fitted; some of each.
        num_outputs: As for ``solve``; classes are counted over all rows.
        sample_weight: ``[n]``, used in fitting and in scoring; ones by default.
        rhos: The values themselves, decreasing, instead of a geometric sequence.
        num_values: Length of the geometric sequence, at least 1.
        ratio: Last over first of its values, between 0 and 1.
        least_gain: The sequence also ends with a value that adds less than this share to what has been gained in
            held-out loss over the first, once that is a tenth of the first loss. 0: it does not.
        max_work: The sequence also ends with the value at which all solves together (`Solution.work`) have taken more
            multiply-adds than this.
        gap_tolerance: Relative gap of each solve.
        max_iterations: Limit for each solve.
        max_seconds: Limit of wall-clock time for the whole path, as for ``solve``. The value at hand ends early, with
            ``converged=False``, and is the last; the first value is always there.
        solver: ``"own"`` or ``"cvxpy"``.

    Returns:
        The path, at least one value long. If ``W = 0`` is optimal for every rho, it is the single value 1.

    Raises:
        ValueError: As ``solve``; or a bad ``held_out``, ``rhos``, ``num_values``, ``ratio``, ``least_gain`` or
            ``max_work``.

    Example:
        >>> D = torch.eye(6, dtype=torch.uint8).repeat(2, 1)
        >>> y = torch.tensor([0, 0, 0, 1, 1, 1]).repeat(2)
        >>> result = path(D, y, loss="cross_entropy", fit_intercept=True, held_out=torch.arange(12) >= 6)
        >>> result.best == len(result.rhos) - 1, result.rho == result.rhos[-1]
        (True, True)
    """
    programme = Programme(
        dictionary, targets, loss=loss, fit_intercept=fit_intercept, num_outputs=num_outputs,
        sample_weight=sample_weight, penalty=_penalty(l1_ratio),
    )  # fmt: skip
    return programme.path(
        held_out,
        rhos=rhos,
        num_values=num_values,
        ratio=ratio,
        walk=Walk(least_gain, max_work),
        limits=Limits(gap_tolerance, max_iterations, max_seconds),
        algorithm=_algorithm(solver),
    )


def certificate(
    dictionary: Dictionary,
    targets: Tensor,
    coef: Tensor,
    intercept: Tensor | None = None,
    *,
    loss: Loss,
    rho: float,
    l1_ratio: float = 1.0,
    fit_intercept: bool,
    sample_weight: Tensor | None = None,
    dual_point: Tensor | None = None,
) -> Certificate:
    r"""Bound how far coefficients are from the optimum of the programme.

    Two dual points are repaired to exact feasibility and the better one is used: ``dual_point`` and the residuals of
    ``coef``. Order of repair: box or simplex; the intercept's equality (squared: residuals re-centred; hinge: the
    heavier sign is shrunk; cross-entropy: rounding onto the transport polytope); then scaling: at ``l1_ratio = 1`` into
    ``|D^T U| <= rho``, below that, where every point is feasible at a cost, to the best bound; output by output where
    outputs are independent. For hinge the residual point is poor even at the optimum: pass
    ``Solution.dual_point``.

    Args:
        dictionary: ``[n, P]`` tensor, or an object with ``to_dense(dtype)``.
        targets: As for ``solve``.
        coef: ``[P, C]``, any float dtype.
        intercept: ``[C]``; ``None`` means zeros.
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        rho: Strength of the penalty, positive.
        l1_ratio: As for ``solve``.
        fit_intercept: Whether the programme minimises over the intercept.
        sample_weight: ``[n]``, ones by default, never renormalised.
        dual_point: ``[n, C]``, any finite numbers; only makes the bound better.

    Returns:
        Primal, dual, gap and violation.

    Raises:
        ValueError: Shapes that disagree, NaN or infinity anywhere, bad labels, weights or rho, or a non-zero intercept
            in a programme without one.

    Source of the rounding: Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for
    optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2.

    Example:
        >>> D = torch.tensor([[1.0], [0.0]])
        >>> y = torch.tensor([[1.0], [0.0]])
        >>> c = certificate(D, y, torch.tensor([[0.5]]), loss="squared", rho=0.25, fit_intercept=False)
        >>> c.primal, round(c.gap, 12)
        (0.1875, 0.0)
    """
    coef = real_tensor(coef, "coef")
    if coef.ndim != 2 or coef.shape[1] == 0:
        raise ValueError(f"coef has shape {tuple(coef.shape)}; expected [P, C].")
    programme = Programme(
        dictionary, targets, loss=loss, fit_intercept=fit_intercept, num_outputs=coef.shape[1],
        sample_weight=sample_weight, penalty=_penalty(l1_ratio),
    )  # fmt: skip
    return programme.certificate(coef, intercept, rho=rho, dual_point=dual_point)


def mean_loss(outputs: Tensor, targets: Tensor, *, loss: Loss, sample_weight: Tensor | None = None) -> float:
    r"""The data term of the programme at given outputs, without the penalty.

    :math:`\frac1n \sum_i s_i\,\ell(z_i, y_i)` in float64; natural logarithm; weights are not renormalised.

    Args:
        outputs: ``[n, C]``, any float dtype.
        targets: As for :func:`solve`. With one output, labels are 0 and 1.
        loss: ``"cross_entropy"``, ``"hinge"``, ``"squared"`` or ``"squared_hinge"``.
        sample_weight: ``[n]``, ones by default.

    Raises:
        ValueError: Shapes that disagree, labels out of range, NaN or infinity.

    Example:
        >>> mean_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), loss="cross_entropy")
        0.6931471805599453
    """
    function, outputs = loss_named(loss), real_tensor(outputs, "outputs").double()
    if outputs.ndim != 2 or outputs.numel() == 0:
        raise ValueError(f"outputs has shape {tuple(outputs.shape)}; expected a non-empty [n, C].")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("outputs holds NaN or infinite entries; expected finite numbers.")
    encoded = function.encode(targets, outputs.shape[1]).to(outputs.device)
    if encoded.shape[0] != outputs.shape[0]:
        raise ValueError(f"targets has {encoded.shape[0]} rows and outputs has {outputs.shape[0]}; expected the same.")
    weight = check_weights(sample_weight, outputs.shape[0], outputs.device)
    return float(weight @ function.values(outputs, encoded)) / outputs.shape[0]


def _penalty(l1_ratio: float) -> ElasticNet:
    return ElasticNet(l1_ratio=check_ratio(l1_ratio))


def _algorithm(solver: str) -> Algorithm | None:
    if not isinstance(solver, str) or solver not in _SOLVERS:
        raise ValueError(f"solver is {solver!r}; expected one of {', '.join(map(repr, _SOLVERS))}.")
    return _SOLVERS[solver]
