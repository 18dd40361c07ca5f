"""Rows sharded over two real processes: the same solution, the same proof, and no rank that waits for ever.

All cases run in one pair of processes, one after another, so every case also shows that the ranks are still in step
after the failures before it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from programmes import LOSSES, dual_is_feasible, make, scale_of

from lightning_cvxsnn.convex import (
    certificate,
    certificate_sharded,
    inputs,
    matrix,
    rho_max,
    sharded,
    solve,
    solve_sharded,
)
from lightning_cvxsnn.convex.matrix import Entries, Stacked
from lightning_cvxsnn.patterns import SpikeDictionary

TIMEOUT = 240  # seconds for both processes, imports included
ROWS = ("dictionary", "targets", "sample_weight")


def _cut(problem: dict[str, Any], sizes: tuple[int, int], rank: int) -> dict[str, Any]:
    """The rows of one rank."""
    index = torch.arange(25).split(sizes)[rank]
    shard = dict(problem)
    for name in ROWS:
        if isinstance(value := problem.get(name), torch.Tensor):
            shard[name] = value.index_select(0, index)
        elif value is not None:
            shard[name] = value.rows(index)
    return shard


def _programmes() -> dict[str, tuple[dict[str, Any], int]]:
    """Arguments of ``solve`` over 25 rows, and how many of them rank 0 gets."""
    cases: dict[str, tuple[dict[str, Any], int]] = {}
    cuts = [13, 1, 20, 25, 0, 7]
    for seed, loss in enumerate(LOSSES):
        for k in range(4):
            outputs, weighted, fit_intercept = 1 + 2 * (k % 2), k in (1, 2), k > 1
            problem = make(seed, loss, rows=25, columns=9, outputs=outputs, weighted=weighted)
            rho = 0.1 * rho_max(**problem, fit_intercept=fit_intercept)
            name = f"{loss}, {outputs} outputs{', weighted' * weighted}{', intercept' * fit_intercept}"
            cases[name] = problem | {"rho": rho, "fit_intercept": fit_intercept}, cuts[(seed + k) % 6]
    for loss in ("cross_entropy", "hinge"):
        problem = make(5, loss, rows=25, columns=9) | {"rho": 0.01, "fit_intercept": True, "num_outputs": None}
        order = problem["targets"].argsort(stable=True)
        ordered = problem | {name: problem[name][order] for name in ("dictionary", "targets")}
        cases[f"{loss}, a class on one rank only"] = ordered, int((problem["targets"] < 2).sum())
        two = ordered | {"targets": (ordered["targets"] == 2).long()}
        cases[f"{loss}, one class each"] = two, int((two["targets"] == 0).sum())
    counts = make(6, "hinge", rows=25, columns=20, counts=3) | {"rho": 0.02, "fit_intercept": True}
    bits = counts | {"dictionary": SpikeDictionary.from_values((counts["dictionary"] > 0).double(), 0.25).packed()}
    wide = counts | {"dictionary": SpikeDictionary.from_values(counts["dictionary"] * 300, 1 / 512)}
    for name, problem in (("bits", bits), ("wide counts", wide), ("bytes", counts | _bytes(counts))):
        cases[f"packed {name}"] = problem, 9
        cases[f"packed {name}, an empty rank"] = problem, 0
    cases["sparse"] = counts | {"dictionary": counts["dictionary"].to_sparse()}, 9
    cases["no iterations"] = cases["packed bits"][0] | {"max_iterations": 0}, 9
    cases["no time"] = cases["packed bits"][0] | {"max_seconds": 0.0}, 9
    cases["cvxpy"] = cases["squared, 3 outputs, intercept"][0] | {"solver": "cvxpy"}, 9
    return cases


def _bytes(problem: dict[str, Any]) -> dict[str, Any]:
    return {"dictionary": problem["dictionary"].to(torch.uint8)}


def _small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inputs, "_DENSE_ENTRIES", 0)
    patch.setattr(matrix, "_BLOCK", 60)
    patch.setattr(matrix, "_LARGE_BLOCK", 80)


def _run_programmes(rank: int) -> dict[str, Any]:
    """Every programme sharded, beside the same call over all rows in this process."""
    results: dict[str, Any] = {}
    for name, (problem, first) in PROGRAMMES.items():
        sizes = first, 25 - first
        with pytest.MonkeyPatch.context() as patch:
            if name.startswith("packed"):
                _small_blocks(patch)
            shard = _cut(problem, sizes, rank)
            if name == "no time" and rank == 1:
                del shard["max_seconds"]  # rank 0 decides
            solution, whole = solve_sharded(**shard), solve(**problem)
            again = solve_sharded(**shard, init=solution)
            fixed = {key: problem[key] for key in ("loss", "rho", "fit_intercept")}
            weight = {key: shard[key] for key in ("sample_weight",) if key in shard}
            generator = torch.Generator().manual_seed(3)
            noise = 0.1 * torch.randn(25, whole.coef.shape[1], generator=generator, dtype=torch.float64)
            proofs = []
            data = problem["dictionary"], problem["targets"]
            for points in (None, whole.dual_point, whole.dual_point + noise, 2 * whole.dual_point):
                part = None if points is None else points.split(sizes)[rank]
                point = (whole.coef + 0.1 * noise[: len(whole.coef)], whole.intercept + 0.1 * problem["fit_intercept"])
                mine = certificate_sharded(
                    shard["dictionary"], shard["targets"], *point, **fixed, **weight, dual_point=part
                )
                weights = problem.get("sample_weight")
                proofs.append((mine, certificate(*data, *point, **fixed, sample_weight=weights, dual_point=points)))
        results[name] = {"solution": vars(solution), "whole": vars(whole), "again": vars(again), "proofs": proofs}
    return results


def _raises(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


class _Unpicklable(Entries):
    def __reduce__(self) -> Any:
        raise RuntimeError("this dictionary cannot travel")


def _failures(rank: int) -> dict[str, Callable[[pytest.MonkeyPatch, dict[str, Any]], dict[str, Any]]]:
    """How to spoil the call of one rank or of both: faults of the input, then of the machine."""
    solution = solve(**make(7, "squared", rows=5, columns=4, outputs=1), rho=0.1, fit_intercept=True)

    def change(on: int | None, **arguments: Any) -> Callable[[pytest.MonkeyPatch, dict[str, Any]], dict[str, Any]]:
        return lambda patch, shard: shard | (arguments if on in (rank, None) else {})

    def hit(on: int, name: str, error: BaseException) -> Callable[[pytest.MonkeyPatch, dict[str, Any]], dict[str, Any]]:
        def spoil(patch: pytest.MonkeyPatch, shard: dict[str, Any]) -> dict[str, Any]:
            if rank == on:
                patch.setattr(sharded, name, _raises(error))
            return shard

        return spoil

    def flip(patch: pytest.MonkeyPatch, shard: dict[str, Any]) -> dict[str, Any]:
        original = dist.broadcast

        def broadcast(tensor: torch.Tensor, **arguments: Any) -> None:
            original(tensor, **arguments)
            tensor[0] ^= rank

        patch.setattr(dist, "broadcast", broadcast)
        return shard

    n = (12, 13)[rank]
    eye = torch.ones(n, 9, dtype=torch.float64)
    nowhere = {"dictionary": torch.zeros(0, 9), "targets": torch.zeros(0, dtype=torch.long)}
    return {
        "NaN": change(1, dictionary=eye * float("nan")),
        "not a tensor": change(1, dictionary=[[1.0]]),
        "shape": change(0, dictionary=torch.ones(9, dtype=torch.float64)),
        "label": change(1, targets=torch.full((n,), 3)),
        "float labels": change(0, targets=torch.zeros(n)),
        "too few targets": change(1, targets=torch.zeros(3, dtype=torch.long)),
        "targets without rows": change(1, dictionary=torch.zeros(0, 9)),
        "weight": change(0, sample_weight=-torch.ones(n)),
        "columns": change(1, dictionary=torch.ones(n, 8)),
        "scale": change(1, dictionary=SpikeDictionary.from_values(eye, 0.5)),
        "rho": change(1, rho=0.2),
        "bad rho": change(1, rho=-1.0),
        "outputs": change(0, num_outputs=4),
        "init": change(0, init=solution),
        "wrong init": change(None, init=solution),
        "no rows": change(None, **nowhere),
        "unpicklable": change(1, dictionary=_Unpicklable(eye)),
        "no memory to gather": hit(0, "Stacked", MemoryError("no room")),
        "solver": hit(0, "solve_prepared", FloatingPointError("the solver broke")),
        "interrupt": hit(0, "solve_prepared", KeyboardInterrupt()),
        "after the solve": hit(1, "_encode", MemoryError("no room for targets")),
        "in the certificate": hit(1, "certify", MemoryError("no room for a product")),
        "flipped bit": flip,
    }


def _run_failures(rank: int) -> dict[str, Any]:
    problem = make(8, "cross_entropy", rows=25, columns=9) | {"rho": 0.1, "fit_intercept": True}
    shard = _cut(problem, (12, 13), rank)
    results: dict[str, Any] = {}
    for name, spoil in _failures(rank).items():
        started = time.perf_counter()
        with pytest.MonkeyPatch.context() as patch:
            try:
                solve_sharded(**spoil(patch, shard))
            except (Exception, KeyboardInterrupt) as error:
                results[name] = type(error).__name__, str(error), time.perf_counter() - started
    results["afterwards"] = vars(solve_sharded(**shard))
    point = {"coef": torch.zeros(9, 3), "loss": "cross_entropy", "rho": 0.1, "fit_intercept": True}
    rows = {"dictionary": shard["dictionary"], "targets": shard["targets"]}
    for name, spoiled in {
        "certificate: coef": {"coef": torch.full((9, 3), float(rank))},
        "certificate: dual point": {"dual_point": torch.zeros((12, 13)[rank], 3) if rank else None},
        "certificate: NaN": {"coef": torch.full((9, 3), 0.0 if rank else float("nan"))},
    }.items():
        started = time.perf_counter()
        try:
            certificate_sharded(**rows, **point | spoiled)
        except Exception as error:
            results[name] = type(error).__name__, str(error), time.perf_counter() - started
    return results


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    alone = make(9, "hinge", rows=6, columns=4) | {"rho": 0.1, "fit_intercept": True}
    results["before a group"] = vars(solve_sharded(**alone)), vars(solve(**alone))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    results["programmes"] = _run_programmes(rank)
    results["failures"] = _run_failures(rank)
    group = dist.new_group([0])
    if rank == 0:
        results["subgroup"] = vars(solve_sharded(**alone, group=group)), vars(solve(**alone))
    else:
        with pytest.raises(ValueError, match="not in `group`"):
            solve_sharded(**alone, group=group)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.perf_counter()
    with pytest.raises(Exception, match=r"peer|reset|closed"):
        solve_sharded(**alone)
    (folder / "survivor").write_text(str(time.perf_counter() - started))


PROGRAMMES = _programmes()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, folder)) for rank in range(2)]
    deadline = time.monotonic() + TIMEOUT
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)] + [
        {"seconds": float((folder / "survivor").read_text())}
    ]


@pytest.mark.parametrize("name", list(PROGRAMMES))
def test_two_processes_solve_as_one(outcomes: list[dict[str, Any]], name: str) -> None:
    problem, _ = PROGRAMMES[name]
    first, second = (outcomes[rank]["programmes"][name] for rank in range(2))
    scale = scale_of(problem)
    for key in ("solution", "again"):
        for field in ("coef", "intercept"):
            assert torch.equal(first[key][field], second[key][field])
        for field in ("primal", "dual", "gap", "converged", "iterations", "algorithm", "device"):
            assert first[key][field] == second[key][field], field
    one, two = first["whole"], first["solution"]
    for field in ("coef", "intercept"):
        assert torch.equal(two[field], one[field])
    assert two["primal"] == pytest.approx(one["primal"], abs=1e-9 * scale)
    assert two["dual"] == pytest.approx(one["dual"], abs=1e-9 * scale)
    for field in ("converged", "iterations", "algorithm", "device"):
        assert two[field] == one[field], field
    assert two["converged"] == (name not in ("no iterations", "no time"))
    point = torch.cat([two["dual_point"], second["solution"]["dual_point"]])
    assert torch.allclose(point, one["dual_point"], rtol=0, atol=1e-12)
    dictionary = problem["dictionary"].to_dense()
    plain = problem | {"dictionary": dictionary, "num_outputs": one["coef"].shape[1]}
    assert dual_is_feasible(plain, point, problem["rho"], problem["fit_intercept"])


@pytest.mark.parametrize("name", list(PROGRAMMES))
def test_a_restart_from_a_sharded_solution_has_nothing_left_to_do(outcomes: list[dict[str, Any]], name: str) -> None:
    again, solution = (outcomes[0]["programmes"][name][key] for key in ("again", "solution"))
    assert again["converged"] or not solution["converged"]
    if again["algorithm"] != "cvxpy":
        assert again["iterations"] <= solution["iterations"]


@pytest.mark.parametrize("name", list(PROGRAMMES))
def test_the_sharded_certificate_is_that_of_all_rows(outcomes: list[dict[str, Any]], name: str) -> None:
    scale = scale_of(PROGRAMMES[name][0])
    for rank in range(2):
        for part, whole in outcomes[rank]["programmes"][name]["proofs"]:
            for field in ("primal", "dual", "gap"):
                assert getattr(part, field) == pytest.approx(getattr(whole, field), rel=1e-12, abs=1e-12 * scale)
            assert part.violation == pytest.approx(whole.violation, rel=1e-9, abs=1e-9)
    both = zip(*(outcomes[rank]["programmes"][name]["proofs"] for rank in range(2)), strict=True)
    assert all(mine[0] == theirs[0] for mine, theirs in both)


FAILURES = {  # what the rank at fault raises, what the other one raises, and what both say
    "NaN": (1, "ValueError", "ValueError", "dictionary holds 117 NaN"),
    "not a tensor": (1, "TypeError", "TypeError", "dictionary is a list"),
    "shape": (0, "ValueError", "ValueError", "expected two dimensions"),
    "label": (1, "ValueError", "ValueError", "labels from 3 to 3"),
    "float labels": (0, "ValueError", "ValueError", "expects integer class labels"),
    "too few targets": (1, "ValueError", "ValueError", "targets has 3 rows and dictionary has 13"),
    "targets without rows": (1, "ValueError", "ValueError", "targets has 13 rows and dictionary has none"),
    "weight": (0, "ValueError", "ValueError", "negative entry"),
    "columns": (None, "ValueError", "ValueError", "number of columns is 9 on rank 0 and 8 on rank 1"),
    "scale": (None, "ValueError", "ValueError", "scale is 1.0 on rank 0 and 0.5 on rank 1"),
    "rho": (None, "ValueError", "ValueError", "rho is 0.1 on rank 0 and 0.2 on rank 1"),
    "bad rho": (1, "ValueError", "ValueError", "rho is -1.0"),
    "outputs": (None, "ValueError", "ValueError", "num_outputs is 4 on rank 0 and 3 on rank 1"),
    "init": (None, "ValueError", "ValueError", "and None on rank 1"),
    "wrong init": (0, "ValueError", "ValueError", "init has coef"),
    "no rows": (None, "ValueError", "ValueError", "no rows on any rank"),
    "unpicklable": (1, "RuntimeError", "RuntimeError", "cannot travel"),
    "no memory to gather": (0, "MemoryError", "RuntimeError", "no room"),
    "solver": (0, "FloatingPointError", "RuntimeError", "the solver broke"),
    "interrupt": (0, "KeyboardInterrupt", "RuntimeError", ""),
    "after the solve": (1, "MemoryError", "RuntimeError", "no room for targets"),
    "in the certificate": (1, "MemoryError", "RuntimeError", "no room for a product"),
    "flipped bit": (None, "RuntimeError", "RuntimeError", "different solutions"),
    "certificate: coef": (None, "ValueError", "ValueError", "coef is '"),
    "certificate: dual point": (None, "ValueError", "ValueError", "absence is True on rank 0 and False on rank 1"),
    "certificate: NaN": (0, "ValueError", "ValueError", "coef holds NaN"),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_on_one_rank_is_raised_on_both_within_seconds(outcomes: list[dict[str, Any]], name: str) -> None:
    at_fault, own, others, message = FAILURES[name]
    for rank in range(2):
        kind, text, seconds = outcomes[rank]["failures"][name]
        assert kind == (own if at_fault in (rank, None) else others)
        assert message in text
        assert text.startswith(f"Rank {at_fault} failed with {own}: ") == (at_fault == 1 - rank)
        assert seconds < 5


def test_the_ranks_are_in_step_after_every_failure(outcomes: list[dict[str, Any]]) -> None:
    first, second = (outcomes[rank]["failures"]["afterwards"] for rank in range(2))
    assert first["converged"]
    assert torch.equal(first["coef"], second["coef"])


def test_a_rank_that_is_killed_does_not_hang_the_other(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[2]["seconds"] < 60


@pytest.mark.parametrize("where", ["before a group", "subgroup"])
def test_alone_it_is_solve(outcomes: list[dict[str, Any]], where: str) -> None:
    sharded, whole = outcomes[0][where]
    for field in ("coef", "intercept", "dual_point"):
        assert torch.equal(sharded[field], whole[field])
    assert sharded["gap"] == whole["gap"]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.sampled_from(["bits", "counts", "mixed"]),
)
def test_stacked_parts_are_one_dictionary(seed: int, sizes: list[int], kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts: list[Any] = []
    for k, size in enumerate(sizes):
        values = torch.randint(0, 2 if kind == "bits" else 4, (size, 11), generator=generator).double()
        values = values * 300 if kind == "mixed" and k % 2 else values
        part = SpikeDictionary.from_values(values, 0.5)
        parts.append(part.packed() if kind == "bits" else part)
    stacked, dense = Stacked(parts), torch.cat([part.to_dense() for part in parts])
    total = len(dense)
    assert tuple(stacked.shape) == tuple(dense.shape)
    assert torch.equal(stacked.to_dense(torch.float64), dense)
    start, stop = sorted(torch.randint(0, total + 1, (2,), generator=generator).tolist())
    index = torch.randint(0, 11, (5,), generator=generator)
    for columns in (None, index):
        expected = dense[start:stop] if columns is None else dense[start:stop, columns]
        block = stacked.block(slice(start, stop), columns)
        assert block.dtype == stacked.block(slice(0, 0)).dtype
        assert torch.equal(block.double() * stacked.scale, expected)
    assert torch.equal(stacked.columns(index).to_dense(torch.float64), dense[:, index])
    mask = torch.rand(total, generator=generator) < 0.5
    assert torch.equal(stacked.rows(mask).to_dense(torch.float64), dense[mask])
    order = torch.randperm(total, generator=generator)
    assert torch.equal(stacked.rows(order).to_dense(torch.float64), dense[order])
