"""``solve``: from a dictionary and targets to a certified solution."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_cvxsnn.convex.algorithms.hinge import minimise_hinge
from lightning_cvxsnn.convex.algorithms.newton import minimise_smooth
from lightning_cvxsnn.convex.algorithms.reference import minimise_with_cvxpy
from lightning_cvxsnn.convex.certify import certify
from lightning_cvxsnn.convex.inputs import Dictionary, check_problem, check_rho
from lightning_cvxsnn.convex.losses import Loss, constant_outputs, output_gradient, row_losses
from lightning_cvxsnn.convex.matrix import Matrix
from lightning_cvxsnn.convex.presolve import Reduction, reduce
from lightning_cvxsnn.convex.solution import Solution
from lightning_cvxsnn.runtime.work import counting

__all__ = [
    "Prepared", "Solver", "check_options", "largest_rho", "prepare", "prepare_checked", "rho_max", "solve",
    "solve_prepared",
]  # fmt: skip

Solver = Literal["own", "cvxpy"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked programme and its reduction, to be solved for any number of values of rho."""

    matrix: Matrix
    encoded: Tensor
    weight: Tensor
    loss: Loss
    fit_intercept: bool
    reduction: Reduction
    scale: float


def solve(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    rho: float,
    fit_intercept: bool,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
    init: Solution | None = None,
    gap_tolerance: float = 1e-6,
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    solver: Solver = "own",
) -> Solution:
    r"""Minimise ``(1/n) sum_i s_i loss(D_i W + b, y_i) + rho * sum |W|`` to a certified duality gap.

    Equal columns share one weight, put on the first of them; with an intercept, a column and its complement count as
    equal. Constant columns (with an intercept) and zero columns get exactly zero.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``.
        targets: Integer labels ``[n]`` for cross-entropy and hinge; for cross-entropy also probabilities ``[n, C]``,
            C > 1 (soft or smoothed labels); floats ``[n, C]`` for squared.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        rho: Penalty on each ``|W_jc|``, positive.
        fit_intercept: Whether to fit an unpenalised intercept ``b``.
        num_outputs: ``C``. ``None``: the number of classes, and 1 for hinge with labels 0 and 1. With one output,
            cross-entropy is the logistic loss and labels are 0 and 1.
        sample_weight: ``s_i >= 0``, ``[n]``; ones by default, never renormalised: 0 drops the row's loss and keeps n.
        init: An earlier solution to start from; its dictionary may have had fewer columns.
        gap_tolerance: Gap to reach, relative to the objective of the best constant predictor (of ``W = 0`` without an
            intercept; of ``W = 0, b = 0`` if that constant is already perfect).
        max_iterations: Limit of iterations of whichever algorithm runs. When it is reached, the best certified point so
            far is returned with ``converged=False``.
        max_seconds: Limit of wall-clock time with the same outcome; runs then no longer repeat exactly. It is looked at
            between iterations: checks, reductions, the iteration at hand and the certificate are always finished.
        solver: ``"own"``, or ``"cvxpy"`` for the independent reference (CVXPY with Clarabel).

    Returns:
        Coefficients, intercept, a dual-feasible point, and their certificate, on the dictionary's device.

    Raises:
        ValueError: NaN or infinity, rho not positive, labels out of range, shapes that disagree, integer targets for
            squared, no rows, no columns, bad weights, unknown loss or solver.
        ImportError: ``solver="cvxpy"`` without CVXPY.

    Source: programme and duals: DESIGN section 2, after Udupi, Yang, Zhai, arXiv 2605.08022 (2026). A class that never
    occurs has no minimising intercept: it gets ``W_c = 0`` and a finite ``b_c`` within tolerance of the infimum.

    Example:
        >>> D = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.uint8)
        >>> solution = solve(D, torch.tensor([1, 1, 0, 0]), loss="hinge", rho=0.1, fit_intercept=True)
        >>> solution.coef.round(decimals=4)
        tensor([[2.],
                [0.]], dtype=torch.float64)
        >>> solution.converged, round(solution.primal, 6)
        (True, 0.2)
    """
    started = time.perf_counter()
    rho = check_rho(rho)
    check_options(gap_tolerance, max_iterations, max_seconds, solver)
    prepared = prepare(dictionary, targets, loss, fit_intercept, num_outputs, sample_weight)
    deadline = started + (math.inf if max_seconds is None else max_seconds)
    return solve_prepared(prepared, rho, init, gap_tolerance, max_iterations, solver, started, deadline)


def rho_max(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    fit_intercept: bool,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
) -> float:
    """The smallest rho at which ``W = 0`` is optimal (for hinge with an intercept, an upper bound of it).

    Args and errors are those of :func:`solve`. The value is 0 if ``W = 0`` is optimal for every rho.

    Example:
        >>> rho_max(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]]), loss="squared", fit_intercept=False)
        0.5
    """
    prepared = prepare(dictionary, targets, loss, fit_intercept, num_outputs, sample_weight)
    return largest_rho(prepared)


def check_options(gap_tolerance: float, max_iterations: int | None, max_seconds: float | None, solver: str) -> None:
    """Refuse a negative tolerance or limit, and unknown solvers."""
    if not math.isfinite(gap_tolerance) or gap_tolerance < 0:
        raise ValueError(f"gap_tolerance is {gap_tolerance}; expected a finite number >= 0, such as 1e-6.")
    if max_iterations is not None and max_iterations < 0:
        raise ValueError(f"max_iterations is {max_iterations}; expected an integer >= 0, or None for the default.")
    if max_seconds is not None and not max_seconds >= 0:
        raise ValueError(f"max_seconds is {max_seconds}; expected a number >= 0, or None for no limit.")
    if solver not in get_args(Solver):
        raise ValueError(f"solver is {solver!r}; expected one of {', '.join(map(repr, get_args(Solver)))}.")


def prepare(
    dictionary: Dictionary,
    targets: Tensor,
    loss: Loss,
    fit_intercept: bool,
    num_outputs: int | None,
    sample_weight: Tensor | None,
) -> Prepared:
    """Check the inputs of a programme and reduce it."""
    matrix, encoded, weight = check_problem(dictionary, targets, loss, num_outputs, sample_weight)
    return prepare_checked(matrix, encoded, weight, loss, fit_intercept)


def prepare_checked(matrix: Matrix, encoded: Tensor, weight: Tensor, loss: Loss, fit_intercept: bool) -> Prepared:
    """Reduce a programme whose inputs are checked."""
    at_zero = _constant_objective(encoded, weight, torch.zeros_like(encoded[0]), loss)
    scale = at_zero
    if fit_intercept:
        scale = _constant_objective(encoded, weight, constant_outputs(encoded, weight, loss), loss)
        if scale <= 1e-9 * at_zero:
            scale = at_zero
    reduction = reduce(matrix, encoded, weight, loss, fit_intercept)
    return Prepared(matrix, encoded, weight, loss, fit_intercept, reduction, scale)


def _constant_objective(encoded: Tensor, weight: Tensor, constant: Tensor, loss: Loss) -> float:
    return float(weight @ row_losses(constant.expand_as(encoded), encoded, loss)) / encoded.shape[0]


def largest_rho(prepared: Prepared) -> float:
    """:func:`rho_max` of a prepared programme."""
    problem = prepared.reduction.problem
    if problem.matrix.shape[1] == 0 or problem.encoded.shape[1] == 0:
        return 0.0
    return float((problem.matrix.T @ _constant_dual(prepared)).abs().max())


def _constant_dual(prepared: Prepared) -> Tensor:
    """Dual point ``[n, C]`` of the best constant predictor of the reduced programme."""
    problem = prepared.reduction.problem
    encoded, weight = problem.encoded, problem.weight
    if not problem.fit_intercept:
        zeros = torch.zeros_like(encoded)
        return -weight[:, None] * output_gradient(zeros, encoded, problem.loss)
    if problem.loss == "hinge":
        positive = (weight[:, None] * (encoded > 0)).sum(0)
        negative = (weight[:, None] * (encoded < 0)).sum(0)
        lighter = torch.minimum(positive, negative)
        return weight[:, None] * encoded * torch.where(encoded > 0, lighter / positive, lighter / negative)
    constant = constant_outputs(encoded, weight, problem.loss)
    return -weight[:, None] * output_gradient(constant.expand_as(encoded), encoded, problem.loss)


def solve_prepared(
    prepared: Prepared,
    rho: float,
    init: Solution | None,
    gap_tolerance: float,
    max_iterations: int | None,
    solver: Solver,
    started: float,
    deadline: float,
) -> Solution:
    """:func:`solve` for a prepared programme, from ``started`` to ``deadline`` on ``time.perf_counter()``."""
    with counting() as work:
        solution = _solve(prepared, rho, init, gap_tolerance, max_iterations, solver, started, deadline)
    return replace(solution, work=work.multiply_adds)


def _solve(
    prepared: Prepared,
    rho: float,
    init: Solution | None,
    gap_tolerance: float,
    max_iterations: int | None,
    solver: Solver,
    started: float,
    deadline: float,
) -> Solution:
    reduction = prepared.reduction
    problem = reduction.problem
    rows, columns, outputs = *prepared.matrix.shape, prepared.encoded.shape[1]
    target = gap_tolerance * prepared.scale
    start_coef = problem.encoded.new_zeros(problem.matrix.shape[1], problem.encoded.shape[1])
    start_shift = problem.encoded.new_zeros(problem.encoded.shape[1])
    trivial = problem.encoded.numel() == 0
    if not trivial and problem.fit_intercept:
        start_shift = constant_outputs(problem.encoded, problem.weight, problem.loss)
    if trivial or (solver == "own" and largest_rho(prepared) <= rho):
        coef, shift = start_coef, start_shift
        dual_point = torch.zeros_like(problem.encoded) if trivial else _constant_dual(prepared)
        iterations, algorithm = 0, "constant"
    elif solver == "cvxpy":
        coef, shift, dual_point, iterations, algorithm = minimise_with_cvxpy(
            problem, rho, target, max_iterations, deadline
        )
    else:
        if init is not None:
            start_coef, start_shift = _restart(init, reduction, columns, outputs)
        minimise = minimise_hinge if problem.loss == "hinge" else minimise_smooth
        coef, shift, dual_point, iterations, algorithm = minimise(
            problem,
            rho,
            (start_coef, start_shift),
            _multipliers(init, prepared),
            0.5 * target,
            max_iterations,
            deadline,
        )

    intercept = _all_intercepts(prepared, coef, shift, 0.01 * target) if prepared.fit_intercept else None
    full_coef, full_dual = reduction.expand(coef, dual_point, (rows, columns, outputs))
    if intercept is None:
        intercept = full_coef.new_zeros(outputs)
    proof, feasible = certify(
        prepared.matrix, prepared.encoded, prepared.weight, full_coef, intercept, prepared.loss, rho,
        prepared.fit_intercept, full_dual,
    )  # fmt: skip
    return Solution(
        coef=full_coef,
        intercept=intercept,
        dual_point=feasible,
        primal=proof.primal,
        dual=proof.dual,
        gap=proof.gap,
        converged=proof.gap <= max(target, 1e-13 * prepared.scale),
        iterations=iterations,
        seconds=time.perf_counter() - started,
        algorithm=algorithm,
        device=str(prepared.matrix.device),
    )


def _restart(init: Solution, reduction: Reduction, columns: int, outputs: int) -> tuple[Tensor, Tensor]:
    shape = tuple(init.coef.shape)
    if len(shape) != 2 or shape[0] > columns or shape[1] != outputs or tuple(init.intercept.shape) != (outputs,):
        raise ValueError(
            f"init has coef {shape} and intercept {tuple(init.intercept.shape)}; expected at most {columns} rows and "
            f"exactly {outputs} outputs. Pass a solution of the same programme, or init=None."
        )
    coef, shift = reduction.restrict(init.coef, init.intercept)
    if not bool(torch.isfinite(coef).all() and torch.isfinite(shift).all()):
        raise ValueError("init holds NaN or infinite entries; expected finite numbers. Pass init=None.")
    return coef, shift


def _multipliers(init: Solution | None, prepared: Prepared) -> Tensor | None:
    """The dual point of an earlier solution, reduced; ``None`` if it belongs to other rows."""
    if init is None or init.dual_point.shape != prepared.encoded.shape:
        return None
    dual_point = init.dual_point.to(prepared.encoded)
    if not bool(torch.isfinite(dual_point).all()):
        raise ValueError("init holds NaN or infinite entries; expected finite numbers. Pass init=None.")
    reduction = prepared.reduction
    return dual_point[reduction.rows][:, reduction.outputs]


def _all_intercepts(prepared: Prepared, coef: Tensor, shift: Tensor, slack: float) -> Tensor:
    """Intercepts of all outputs; trivial ones are set so that they cost at most ``slack`` together."""
    reduction, problem = prepared.reduction, prepared.reduction.problem
    outputs = prepared.encoded.shape[1]
    intercept = problem.encoded.new_zeros(outputs)
    intercept[reduction.outputs] = shift
    missing = torch.ones(outputs, dtype=torch.bool, device=intercept.device)
    missing[reduction.outputs] = False
    if problem.weight.numel() == 0 or not bool(missing.any()):
        return intercept
    encoded = prepared.encoded[reduction.rows]
    if prepared.loss == "hinge":
        return torch.where(missing, encoded[0], intercept)  # all signs agree: margin 1 everywhere, loss 0
    slack = math.log(max(slack, 1e-15 * prepared.scale))
    log_weight = problem.weight.log()
    if outputs == 1:
        return (2 * encoded[0] - 1) * (torch.logsumexp(log_weight, 0) - slack)
    if problem.encoded.shape[1] == 0:  # one class alone: it keeps 0
        missing &= encoded[0] == 0
        normaliser = torch.zeros_like(log_weight)
    else:
        normaliser = torch.logsumexp(problem.matrix @ coef + shift, 1)
    low = slack - torch.logsumexp(log_weight - normaliser, 0) - math.log(int(missing.sum()))
    return torch.where(missing, low, intercept)
