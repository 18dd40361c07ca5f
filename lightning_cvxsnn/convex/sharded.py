"""Programmes whose rows are sharded over ranks: sums where sums do, rank 0 where they do not.

The solvers need columns whole, so the shards travel to rank 0, packed as they are, and are solved there as one
dictionary. The solution is broadcast, and certified by every rank over its own shard. How ranks talk, and fail,
together: :mod:`~lightning_cvxsnn.runtime.ranks`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_cvxsnn.convex.certify import Certificate, certify, check_coef, check_point
from lightning_cvxsnn.convex.inputs import Dictionary, check_problem, check_rho
from lightning_cvxsnn.convex.losses import Loss, check_loss, encode_targets
from lightning_cvxsnn.convex.matrix import DictionaryLike, Entries, Matrix, PackedDictionary, Stacked
from lightning_cvxsnn.convex.solution import Solution
from lightning_cvxsnn.convex.solver import Solver, check_options, prepare, solve_prepared
from lightning_cvxsnn.runtime.ranks import Ranks, checksum

__all__ = ["certificate_sharded", "solve_sharded"]


def solve_sharded(
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
    group: dist.ProcessGroup | None = None,
) -> Solution:
    """:func:`solve` over rows that are sharded over the ranks of ``torch.distributed``; a collective call.

    The programme is that of all rows, rank after rank. Rank 0 solves it, in the memory of the packed shards, and the
    others wait for it: the group's timeout has to outlast the solve. All ranks return the same bits. Whatever fails on
    one rank is raised on all. Without an initialised process group this is :func:`solve`.

    Args:
        dictionary: ``[n_r, P]``, this rank's rows; none (``[0, P]``) on some ranks is fine.
        targets: ``[n_r]`` or ``[n_r, C]``, as for :func:`solve`.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        rho: Penalty on each ``|W_jc|``, positive.
        fit_intercept: Whether to fit an unpenalised intercept.
        num_outputs: ``C``. ``None``: as for :func:`solve`, with the classes of all ranks.
        sample_weight: ``[n_r]``; ones by default.
        init: An earlier solution to start from, the same on all ranks.
        gap_tolerance: As for :func:`solve`.
        max_iterations: As for :func:`solve`.
        max_seconds: Limit of wall-clock time, decided on rank 0 by its value.
        solver: ``"own"`` or ``"cvxpy"``.
        group: The process group; ``None``: all processes. With nccl, rows pass through the current CUDA device.

    Returns:
        The solution, on the device of this rank's dictionary. ``dual_point`` is ``[n_r, C]``, for this rank's rows;
        ``primal``, ``dual`` and ``gap`` are for all rows; ``device`` is where rank 0 solved.

    Raises:
        ValueError: As :func:`solve`, for the rows of any rank; columns, outputs or arguments that disagree between
            ranks; no rows at all.
        RuntimeError: Another error on another rank, or ranks that end with different bits.

    Example:
        >>> D = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.uint8)
        >>> solution = solve_sharded(D, torch.tensor([1, 1, 0, 0]), loss="hinge", rho=0.1, fit_intercept=True)
        >>> solution.converged, round(solution.primal, 6)
        (True, 0.2)
    """
    started = time.perf_counter()
    deadline = started + (math.inf if max_seconds is None else max_seconds)
    with Ranks(group) as ranks:
        rho = check_rho(rho)
        check_options(gap_tolerance, max_iterations, max_seconds, solver)
        shard = _check_shard(dictionary, targets, loss, num_outputs, sample_weight)
        options: dict[str, Any] = {
            "loss": loss, "rho": rho, "fit_intercept": fit_intercept, "num_outputs": num_outputs,
            "gap_tolerance": gap_tolerance, "max_iterations": max_iterations, "solver": solver,
            "init": init and checksum(init.coef, init.intercept),
        }  # fmt: skip
        rows, outputs = _agree(ranks, shard, loss, num_outputs, options)
        multipliers = None if init is None else init.dual_point
        everyone = ranks.collect((shard.source, shard.targets, shard.weight, multipliers), shard.matrix.device)
        coef = shard.weight.new_empty(shard.matrix.shape[1], outputs)
        intercept, dual_point = shard.weight.new_empty(outputs), shard.weight.new_empty(rows[ranks.rank], outputs)
        dual_points, told = [dual_point], {}
        if everyone is not None:
            filled = [theirs for theirs, count in zip(everyone, rows, strict=True) if count]
            parts, labels, weights, points = zip(*filled, strict=True)
            if init is not None:
                init = replace(init, dual_point=torch.cat(points))
            prepared = prepare(
                Stacked(list(parts)), torch.cat(labels), loss, fit_intercept, outputs, torch.cat(weights)
            )
            found = solve_prepared(prepared, rho, init, gap_tolerance, max_iterations, solver, started, deadline)
            coef, intercept, dual_points = found.coef, found.intercept, list(found.dual_point.split(rows))
            told = {name: getattr(found, name) for name in ("iterations", "algorithm", "device", "work")}
            told["enough"] = max(gap_tolerance, 1e-13) * prepared.scale
        told = ranks.exchange(told)[0]  # where the other ranks wait for the solve
        coef, intercept = ranks.broadcast(coef), ranks.broadcast(intercept)
        dual_point = ranks.deal(dual_points, dual_point)
        proof, feasible = certify(
            shard.matrix, _encode(shard, loss, outputs), shard.weight, coef, intercept, loss, rho, fit_intercept,
            dual_point, ranks.total,
        )  # fmt: skip
        sums = ranks.exchange(checksum(coef, intercept, coef.new_tensor([proof.primal, proof.dual])))
        if len(set(sums)) > 1:
            raise RuntimeError(
                f"The ranks hold different solutions (checksums {', '.join(s[:8] for s in sums)}); expected the same "
                "bits on all. Check the network between them, and that no process writes to the rows during a solve."
            )
        return Solution(
            coef=coef,
            intercept=intercept,
            dual_point=feasible,
            primal=proof.primal,
            dual=proof.dual,
            gap=proof.gap,
            converged=proof.gap <= told["enough"],
            iterations=told["iterations"],
            seconds=time.perf_counter() - started,
            algorithm=told["algorithm"],
            device=told["device"],
            work=told["work"],
        )


def certificate_sharded(
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
    group: dist.ProcessGroup | None = None,
) -> Certificate:
    """:func:`certificate` over rows that are sharded over ranks; a collective call, and no row leaves its rank.

    Args:
        dictionary: ``[n_r, P]``, this rank's rows; none (``[0, P]``) on some ranks is fine.
        targets: ``[n_r]`` or ``[n_r, C]``, as for :func:`certificate`.
        coef: ``[P, C]``, the same on all ranks.
        intercept: ``[C]``, the same on all ranks; ``None`` means zeros.
        loss: ``"cross_entropy"``, ``"hinge"`` or ``"squared"``.
        rho: Penalty, positive.
        fit_intercept: Whether the programme minimises over the intercept.
        sample_weight: ``[n_r]``; ones by default.
        dual_point: ``[n_r, C]``, on all ranks or on none.
        group: The process group; ``None``: all processes.

    Returns:
        The certificate of the programme of all rows, the same on all ranks.

    Raises:
        ValueError: As :func:`certificate`, for the rows of any rank; arguments that disagree between ranks.
        RuntimeError: Another error on another rank.

    Example:
        >>> D = torch.tensor([[1.0], [0.0]])
        >>> c = certificate_sharded(D, D, torch.tensor([[0.5]]), loss="squared", rho=0.25, fit_intercept=False)
        >>> c.primal, round(c.gap, 12)
        (0.1875, 0.0)
    """
    with Ranks(group) as ranks:
        rho = check_rho(rho)
        outputs = check_coef(coef)
        shard = _check_shard(dictionary, targets, loss, outputs, sample_weight)
        options: dict[str, Any] = {
            "loss": loss, "rho": rho, "fit_intercept": fit_intercept, "the dual point's absence": dual_point is None,
        }  # fmt: skip
        coef, intercept, dual_point = check_point(shard.matrix, coef, intercept, dual_point, fit_intercept)
        options |= {"coef": checksum(coef), "intercept": checksum(intercept)}
        _agree(ranks, shard, loss, outputs, options)
        encoded = _encode(shard, loss, outputs)
        return certify(
            shard.matrix, encoded, shard.weight, coef, intercept, loss, rho, fit_intercept, dual_point, ranks.total
        )[0]


@dataclass(frozen=True, eq=False)
class _Shard:
    """The checked rows of one rank: as they came, and as a matrix."""

    source: PackedDictionary
    matrix: Matrix
    targets: Tensor
    weight: Tensor


def _check_shard(
    dictionary: Dictionary, targets: Tensor, loss: Loss, num_outputs: int | None, sample_weight: Tensor | None
) -> _Shard:
    """The checks of ``solve``, but for a shard without rows."""
    if isinstance(dictionary, DictionaryLike) and not isinstance(dictionary, Tensor | PackedDictionary):
        dictionary = dictionary.to_dense(torch.float64)
    source: Any = Entries(dictionary.detach().to_dense()) if isinstance(dictionary, Tensor) else dictionary
    shape = tuple(getattr(source, "shape", ()))
    if len(shape) != 2 or shape[0] > 0 or shape[1] == 0:
        matrix, _, weight = check_problem(dictionary, targets, loss, num_outputs, sample_weight)
        return _Shard(source, matrix, targets.detach(), weight)
    check_loss(loss)
    for name, given in (("targets", targets), ("sample_weight", sample_weight)):
        if given is not None and len(given) > 0:
            raise ValueError(
                f"{name} has {len(given)} rows and dictionary has none; expected the same number. Pair every "
                "dictionary row with its target."
            )
    matrix = Matrix(source)
    return _Shard(source, matrix, targets, torch.zeros(0, dtype=torch.float64, device=matrix.device))


def _agree(
    ranks: Ranks, shard: _Shard, loss: Loss, num_outputs: int | None, options: dict[str, Any]
) -> tuple[list[int], int]:
    """The number of rows of each rank, and of outputs; refuses what is not the same on all ranks."""
    rows, columns = shard.matrix.shape
    facts = {"dictionary's number of columns": columns, **options}
    largest = None
    if rows:
        facts["dictionary's scale"] = shard.source.scale
        if shard.targets.ndim == 2:
            facts["targets' number of columns"] = shard.targets.shape[1]
        else:
            largest = int(shard.targets.max())
    told = ranks.exchange((facts, rows, largest))
    agreed: dict[str, tuple[int, Any]] = {}
    for rank, (theirs, _, _) in enumerate(told):
        for name, value in theirs.items():
            first, expected = agreed.setdefault(name, (rank, value))
            if value != expected:
                raise ValueError(
                    f"{name} is {expected!r} on rank {first} and {value!r} on rank {rank}; expected the same on all "
                    "ranks. Pass equal arguments everywhere."
                )
    sizes = [count for _, count, _ in told]
    if not any(sizes):
        raise ValueError(
            "dictionary has no rows on any rank (n = 0); expected at least one training row. Check the data loader."
        )
    if num_outputs is None and "targets' number of columns" in agreed:
        num_outputs = agreed["targets' number of columns"][1]
    elif num_outputs is None:
        labels = shard.weight.new_tensor([max(label for _, _, label in told if label is not None)]).long()
        num_outputs = encode_targets(labels, loss=loss).shape[1]
    return sizes, num_outputs


def _encode(shard: _Shard, loss: Loss, outputs: int) -> Tensor:
    if len(shard.targets) == 0:
        return shard.weight.new_zeros(0, outputs)
    return encode_targets(shard.targets, loss=loss, num_outputs=outputs).to(shard.weight.device)
