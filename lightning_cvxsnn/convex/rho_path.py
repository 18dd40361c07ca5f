"""The regularisation path, with rho chosen on held-out rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_cvxsnn.convex.inputs import Dictionary, check_problem
from lightning_cvxsnn.convex.losses import Loss, row_losses
from lightning_cvxsnn.convex.solution import Solution
from lightning_cvxsnn.convex.solver import Solver, check_options, largest_rho, prepare_checked, solve_prepared

__all__ = ["Path", "path"]

_RISES = 3
_RISE = 0.02  # of the first loss
_GAINED = 0.1  # of the first loss: below that a small gain may yet be followed by larger ones


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions for decreasing rho, fitted on some rows and scored on the others.

    Attributes:
        rhos: Values of rho, from the largest down; only those that were solved.
        held_out_losses: ``mean_loss`` on the held-out rows, one for each rho.
        solutions: Solutions on the fitted rows (``dual_point`` has one row for each fitted row).
        best: Index of the smallest held-out loss (the first of equals: the largest rho).
        settled: Whether the path ended by ``least_gain``: not much is to be gained beyond.
    """

    rhos: list[float]
    held_out_losses: list[float]
    solutions: list[Solution]
    best: int
    settled: bool = False

    @property
    def rho(self) -> float:
        """The rho with the smallest held-out loss."""
        return self.rhos[self.best]

    @property
    def edge(self) -> Literal["largest", "smallest"] | None:
        """Whether :attr:`rho` is the first or the last value that was solved, and a better one may lie beyond."""
        if self.best == 0:
            return "largest"
        return "smallest" if self.best == len(self.rhos) - 1 and not self.settled else None

    @property
    def solution(self) -> Solution:
        """The solution at :attr:`rho`."""
        return self.solutions[self.best]


def path(
    dictionary: Dictionary,
    targets: Tensor,
    *,
    loss: Loss,
    fit_intercept: bool,
    held_out: Tensor,
    num_outputs: int | None = None,
    sample_weight: Tensor | None = None,
    num_values: int = 20,
    ratio: float = 1e-3,
    least_gain: float = 0.0,
    gap_tolerance: float = 1e-4,
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    solver: Solver = "own",
) -> Path:
    """Solve for a geometric sequence of rho and score each solution on held-out rows.

    The sequence runs from ``rho_max`` of the fitted rows down to ``ratio`` times it, each solve started from the one
    before. It ends early once the held-out loss has risen three times since its smallest value, or by more than a
    fiftieth of the first one. Objectives are averages over the *fitted* rows, so a rho chosen here keeps its meaning
    when all rows are refitted.

    Args:
        dictionary: ``[n, P]`` tensor, or an object with ``to_dense(dtype)``.
        targets: As for ``solve``.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        fit_intercept: Whether to fit an unpenalised intercept.
        held_out: Bool ``[n]``, true for the rows that score and are not fitted; some of each.
        num_outputs: As for ``solve``; classes are counted over all rows.
        sample_weight: ``[n]``, used in fitting and in scoring; ones by default.
        num_values: Length of the sequence, at least 1.
        ratio: Last over first value, between 0 and 1.
        least_gain: The sequence also ends with a value that adds less than this share to what has been gained in
            held-out loss over the first, once that is a tenth of the first loss. 0: it does not.
        gap_tolerance: Relative gap of each solve.
        max_iterations: Limit for each solve.
        max_seconds: Limit of wall-clock time for the whole path, as for ``solve``. The value at hand ends early, with
            ``converged=False``, and is the last; the first value is always there.
        solver: ``"own"`` or ``"cvxpy"``.

    Returns:
        The path, at least one value long. If ``W = 0`` is optimal for every rho, it is the single value 1.

    Raises:
        ValueError: As ``solve``; or a bad ``held_out``, ``num_values``, ``ratio`` or ``least_gain``.

    Example:
        >>> D = torch.eye(6, dtype=torch.uint8).repeat(2, 1)
        >>> y = torch.tensor([0, 0, 0, 1, 1, 1]).repeat(2)
        >>> result = path(D, y, loss="cross_entropy", fit_intercept=True, held_out=torch.arange(12) >= 6)
        >>> result.best == len(result.rhos) - 1, result.rho == result.rhos[-1]
        (True, True)
    """
    started = time.perf_counter()
    deadline = started + (math.inf if max_seconds is None else max_seconds)
    check_options(gap_tolerance, max_iterations, max_seconds, solver)
    if num_values < 1:
        raise ValueError(f"num_values is {num_values}; expected an integer >= 1.")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio is {ratio}; expected a number strictly between 0 and 1, such as 1e-3.")
    if not 0 <= least_gain < 1:
        raise ValueError(f"least_gain is {least_gain}; expected a share in [0, 1), such as 0.1.")
    matrix, encoded, weight = check_problem(dictionary, targets, loss, num_outputs, sample_weight)
    held_out = torch.as_tensor(held_out, device=matrix.device)
    if held_out.dtype != torch.bool or tuple(held_out.shape) != (matrix.shape[0],):
        raise ValueError(
            f"held_out has dtype {held_out.dtype} and shape {tuple(held_out.shape)}; expected torch.bool "
            f"({matrix.shape[0]},), one entry for each dictionary row."
        )
    if bool(held_out.all()) or not bool(held_out.any()):
        raise ValueError(
            f"held_out marks {int(held_out.sum())} of {matrix.shape[0]} rows; expected at least one row held out and "
            "one fitted."
        )
    prepared = prepare_checked(matrix[~held_out], encoded[~held_out], weight[~held_out], loss, fit_intercept)
    scored = matrix[held_out], encoded[held_out], weight[held_out]

    rhos: list[float] = []
    losses: list[float] = []
    solutions: list[Solution] = []
    best = rises = 0
    settled = False
    for rho in _geometric(largest_rho(prepared), ratio, num_values):
        previous = solutions[-1] if solutions else None
        solution = solve_prepared(
            prepared, rho, previous, gap_tolerance, max_iterations, solver, time.perf_counter(), deadline
        )
        outputs = scored[0] @ solution.coef + solution.intercept
        held_out_loss = float(scored[2] @ row_losses(outputs, scored[1], loss)) / outputs.shape[0]
        if least_gain and losses and losses[0] - losses[-1] > _GAINED * losses[0]:
            settled = losses[-1] - held_out_loss < least_gain * (losses[0] - held_out_loss)
        rises += bool(losses) and held_out_loss > losses[-1]
        rhos.append(rho)
        losses.append(held_out_loss)
        solutions.append(solution)
        if held_out_loss < losses[best]:
            best, rises = len(losses) - 1, 0
        risen = held_out_loss - losses[best] > _RISE * losses[0]
        if rises >= _RISES or risen or settled or time.perf_counter() > deadline:
            break
    return Path(rhos, losses, solutions, best, settled)


def _geometric(largest: float, ratio: float, count: int) -> list[float]:
    if largest <= 0:
        return [1.0]  # W = 0 is optimal whatever rho is
    if count == 1:
        return [largest]
    return [largest * math.exp(math.log(ratio) * k / (count - 1)) for k in range(count)]
