"""`convex.solve` against the solvers a user would pick instead: `python benchmarks/solvers.py --mnist FOLDER`.

The whole takes about 25 minutes on two cores, `--quick` a minute or two; `--parts`, `--problems` and `--solvers`
select.
On a GPU: `python benchmarks/solvers.py --device cuda --mnist FOLDER` runs `softmax_path` and `large` there.

One rule for all: time until primal <= best certified bound + 1e-6 of the best constant predictor's objective. Primal
values and bounds come from `certificate`, from the coefficients a solver returns. A peer runs at settings of increasing
accuracy and is given the time of the cheapest that meets the rule; it stops after one that takes more than `--limit`
seconds. Times are medians of 5 runs up to 2 s, of 3 up to 10 s, one run beyond (`runs` says which). All solvers get
dense float64 in the order they like best; JIT compilers are warmed up. Peak memory, for us and for the fastest peer:
a fresh process each, the high-water mark of resident memory during one solve less what was resident before (Linux).
Peers stay on the CPU whatever the device. Results are written after every problem.
"""

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import PACKAGES, RESULTS, Row, show, write
from peers import PEERS, Peer, quietly
from problems import BETAS, Problem, mixture, mnist, problems, programme, teacher, xor

from lightning_cvxsnn.convex import certificate, path, solve

TOLERANCE = 1e-6
REPEATS = ((2.0, 5), (10.0, 3))  # up to so many seconds, so many runs; one beyond
MNIST = Path(__file__).parents[1] / "../shared/data/mnist10k"
OWN = "lightning_cvxsnn"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small matrices, two repeats")
    parser.add_argument("--device", default="cpu", help="where our own solver runs")
    parser.add_argument("--problems", default="*", help="globs over problems of the table, with commas")
    parser.add_argument("--solvers", default="*", help="globs over peers, with commas")
    parser.add_argument("--parts", help=f"which of {', '.join(PARTS)}; without: all but large, on a GPU {ON_GPU}")
    parser.add_argument("--repeats", type=int, default=5, help="at most so many runs")
    parser.add_argument(
        "--limit", type=float, default=25.0, help="seconds after which a peer's next setting is skipped"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--mnist", type=Path, default=MNIST, help="folder of the MNIST IDX files")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for solvers.json, solvers_cuda.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats = min(options.repeats, 2)
    on_cpu = torch.device(options.device).type == "cpu"
    if options.parts is None:
        options.parts = ",".join(part for part in PARTS if part != "large") if on_cpu else ON_GPU
    packages = (*PACKAGES, "celer", "skglm", "highspy", "scs", "clarabel")
    command = "python benchmarks/solvers.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    results: dict[str, Any] = {
        "command": command,
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(options.device),
        "load": os.getloadavg(),  # what else the machine was doing
        "tolerance": TOLERANCE,
    }
    if not on_cpu:  # libraries are loaded at their first use
        own(on(options, programme("first", teacher(100, 16, 2), "cross_entropy", 0.1)))
    for part in options.parts.split(","):
        results[part] = []
        for rows in PARTS[part](options):
            results[part] += rows
            write("solvers" if on_cpu else "solvers_cuda", results, packages, options.output)
        show(part, results[part])


def timed(run: Callable[[], Any], most: int, device: str = "cpu") -> tuple[float, int, Any]:
    """Median seconds, number of runs (at most ``most``) and the last result."""
    wait = partial(torch.cuda.synchronize, device) if torch.device(device).type == "cuda" else (lambda: None)
    seconds: list[float] = []
    while not seconds or len(seconds) < min(most, next((n for limit, n in REPEATS if seconds[0] <= limit), 1)):
        wait()
        started = time.perf_counter()
        result = run()
        wait()
        seconds.append(time.perf_counter() - started)
    return median(seconds), len(seconds), result


def on(options: argparse.Namespace, problem: Problem) -> Problem:
    """The problem on the device."""
    return replace(problem, matrix=problem.matrix.to(options.device), targets=problem.targets.to(options.device))


def scale_of(problem: Problem) -> float:
    """Objective of the best constant predictor (of zero without an intercept)."""
    rho = 1e6  # so large that W = 0
    return solve(
        problem.matrix, problem.targets, num_outputs=problem.outputs, **{**problem.arguments, "rho": rho}
    ).primal


def own(problem: Problem, tolerance: float = TOLERANCE, **keywords: Any) -> Any:
    return solve(
        problem.matrix,
        problem.targets,
        num_outputs=problem.outputs,
        gap_tolerance=tolerance,
        **problem.arguments,
        **keywords,
    )


def matches(name: str, globs: str) -> bool:
    return any(fnmatch(name, glob) for glob in globs.split(","))


def known(options: argparse.Namespace) -> list[tuple[str, Callable[[], Problem]]]:
    """Selected problems; those whose data is absent are left out with a word."""
    chosen = [(name, make) for name, make in problems(options.mnist, options.quick) if matches(name, options.problems)]
    if not has_mnist(options):
        chosen = [(name, make) for name, make in chosen if not name.startswith("mnist")]
    return chosen


def has_mnist(options: argparse.Namespace) -> bool:
    present = (options.mnist / "t10k-images-idx3-ubyte.gz").exists()
    if not present:
        print(f"MNIST rows are skipped: no t10k-images-idx3-ubyte.gz in {options.mnist}; name a folder with --mnist.")
    return present


def compare(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Every solver on every selected problem."""
    for _, make in known(options):
        problem = make()
        mine = on(options, problem)
        scale = scale_of(problem)
        bound = own(mine, 1e-9).dual
        own(mine)  # warm-up
        seconds, runs, solution = timed(partial(own, mine), options.repeats, options.device)
        error, note = (solution.primal - bound) / scale, f"certified {solution.gap / scale:.0e}"
        rows = [row_of(problem, OWN, "gap 1e-6", seconds, runs, error, None, note)]
        for peer in PEERS:
            if peer.suits(problem) and matches(peer.name, options.solvers):
                rows.append(compare_peer(options, problem, peer, scale, bound, seconds))
        there = [row for row in rows[1:] if row["seconds"] is not None and row["seconds"] <= REPEATS[-1][0]]
        for row in [rows[0], *sorted(there, key=lambda row: row["seconds"])[:1]]:
            row["peak MB"] = peak_memory(options, problem.name, row["solver"], row["setting"])
        yield rows


def row_of(
    problem: Problem,
    solver: str,
    setting: str,
    seconds: float,
    runs: int,
    error: float,
    ratio: float | None,
    note: str,
) -> Row:
    reached = error <= TOLERANCE
    row = {
        "problem": problem.name,
        "solver": solver,
        "setting": setting,
        "seconds": seconds if reached else None,
        "runs": runs,
        "times ours": ratio,
        "suboptimality": error,
        "peak MB": None,
        "note": note if reached else f"not reached in {seconds:.1f} s. {note}".strip(),
    }
    print({key: value for key, value in row.items() if value is not None}, flush=True)
    return row


def compare_peer(
    options: argparse.Namespace, problem: Problem, peer: Peer, scale: float, bound: float, mine: float
) -> Row:
    """The cheapest setting of a peer that meets the rule, or the last one tried."""
    matrix = peer.matrix(problem)
    warm_up(problem, peer)
    for setting in peer.settings:
        run = partial(quietly, partial(peer.run, problem, matrix, setting))
        try:
            once, runs, (coef, intercept) = timed(run, 1)
        except Exception as failure:  # a peer's own fault is a result, and no reason to lose the others'
            return row_of(problem, peer.name, f"{setting:g}", 0.0, 0, math.inf, None, f"failed: {failure!r}"[:200])
        error = (primal_of(problem, coef, intercept) - bound) / scale
        if error <= TOLERANCE or once > options.limit:
            break
    if error <= TOLERANCE and once <= REPEATS[-1][0] and options.repeats > 1:
        once, runs, _ = timed(run, options.repeats)
    return row_of(problem, peer.name, f"{setting:g}", once, runs, error, once / mine, peer.note)


def warm_up(problem: Problem, peer: Peer) -> None:
    """Compile on a corner of the problem, for peers with a compiler."""
    if peer.name.startswith(("skglm", "celer")):
        small = problem.corner()
        quietly(lambda: peer.run(small, peer.matrix(small), peer.settings[0]))


def primal_of(problem: Problem, coef: np.ndarray, intercept: np.ndarray) -> float:
    return certificate(
        problem.matrix,
        problem.targets,
        torch.tensor(coef),
        torch.tensor(intercept) if problem.fit_intercept else None,
        **problem.arguments,
    ).primal


def peak_memory(options: argparse.Namespace, problem: str, solver: str, setting: str) -> float | None:
    """Megabytes, measured in a process of its own."""
    if options.no_memory or options.device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")  # imports once, and has used no threads that a fork would lose
    context.set_forkserver_preload(["__main__"])
    with context.Pool(1) as pool:
        return pool.apply(peak_of, (options.mnist, options.quick, problem, solver, setting))


def peak_of(folder: Path, quick: bool, name: str, solver: str, setting: str) -> float:
    problem = dict(problems(folder, quick))[name]()
    if solver == OWN:
        own(problem.corner())
        run: Callable[[], Any] = partial(own, problem)
    else:
        peer = next(peer for peer in PEERS if peer.name == solver)
        warm_up(problem, peer)
        run = partial(quietly, partial(peer.run, problem, peer.matrix(problem), float(setting)))
    return grown(run)


def grown(run: Callable[[], Any]) -> float:
    """Megabytes by which the process's high-water mark rises: 0 where memory that it has is enough."""

    def highest() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # down to what is in use
    before = highest()
    run()
    return max(
        round((highest() - before) / 1024, 1), 0.0
    )  # pages that are given back meanwhile count less than nothing


def hinge_paths(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Twenty values of rho against the hardest of them alone, from a cold start, at the path's tolerance."""
    data = xor(*((200, 100) if options.quick else (2000, 1000)))
    chosen = [programme(f"xor-{loss}", data, loss, 0.1) for loss in ("hinge", "squared", "logistic")]
    if has_mnist(options):  # one against the rest
        shape = (200, 32) if options.quick else (1000, 256)
        chosen.append(programme("mnist-hinge", mnist(options.mnist, *shape), "hinge", 0.1))
    for problem in (on(options, problem) for problem in chosen):
        held_out = torch.arange(problem.matrix.shape[0], device=options.device) % 5 == 0
        keywords = {key: value for key, value in problem.arguments.items() if key != "rho"}
        keywords |= {"num_outputs": problem.outputs}
        run = partial(path, problem.matrix, problem.targets, held_out=held_out, **keywords)
        seconds, runs, result = timed(run, options.repeats, options.device)
        alone = [
            timed(
                lambda r=rho, p=problem, h=held_out, k=keywords: solve(
                    p.matrix[~h], p.targets[~h], rho=r, gap_tolerance=1e-4, **k
                ),
                options.repeats,
                options.device,
            )[0]
            for rho in result.rhos
        ]
        row: Row = {"problem": problem.name, "values": len(result.rhos), "seconds": seconds, "runs": runs}
        row |= {"hardest alone": max(alone), "ratio": seconds / max(alone)}
        yield [row | {"certified": all(solution.converged for solution in result.solutions)}]


def softmax_path(options: argparse.Namespace) -> Iterator[list[Row]]:
    """The MNIST preset at three betas in turn, each from the one before."""
    if has_mnist(options):
        shape = (200, 32) if options.quick else (6000, 1024)
        matrix, targets = mnist(options.mnist, *shape)
        yield from in_turn(options, f"mnist{shape[0]}-softmax", matrix.to(options.device), targets, BETAS)


def large(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Packed counts of 60,000 rows and 8,192 units, ten classes, at two betas in turn."""
    shape = (600, 64) if options.quick else (60_000, 8192)
    dictionary, targets = mixture(*shape, 10, options.device)
    yield from in_turn(options, f"mixture{shape[0]}-softmax", dictionary, targets, (0.3, 0.1))


def in_turn(
    options: argparse.Namespace, name: str, dictionary: Any, targets: torch.Tensor, betas: tuple[float, ...]
) -> Iterator[list[Row]]:
    """Solutions for falling beta, each from the one before."""
    solution, total = None, 0.0
    for beta in betas:
        problem = Problem(
            f"{name}-{beta:g}", dictionary, targets, "cross_entropy", beta / dictionary.shape[1] ** 0.5, True
        )
        seconds, runs, solution = timed(partial(own, problem, init=solution and solution.point), 1, options.device)
        total += seconds
        row: Row = {"problem": problem.name, "seconds": seconds, "seconds so far": total, "runs": runs}
        row |= {"certified": solution.converged, "gap": solution.gap, "used": int(solution.coef.any(1).sum())}
        yield [row | {"objective": solution.primal, "device": solution.device}]


def resolves(options: argparse.Namespace) -> Iterator[list[Row]]:
    """A dictionary whose witnesses moved a little, from the old solution and cold."""
    cases = [("xor", loss, 0.1) for loss in ("hinge", "squared", "logistic")]
    if has_mnist(options):
        cases += [("mnist", loss, 0.1) for loss in ("cross_entropy", "hinge")]
    for source, loss, beta in cases:
        for noise in (0.001, 0.01):
            if source == "xor":
                shape = (200, 100) if options.quick else (2000, 1000)
                data = [xor(*shape, size) for size in (0.0, noise)]
            else:
                shape = (200, 32) if options.quick else (1000, 256)
                data = [mnist(options.mnist, *shape, size) for size in (0.0, noise)]
            old, new = (on(options, programme(f"{source}-{loss}-{beta:g}", each, loss, beta)) for each in data)
            before = own(old)
            cold, runs, first = timed(partial(own, new), options.repeats, options.device)
            warm, _, second = timed(partial(own, new, init=before.point), options.repeats, options.device)
            row: Row = {"problem": new.name, "entries changed": float((old.matrix != new.matrix).double().mean())}
            row |= {"cold": cold, "warm": warm, "runs": runs, "ratio": cold / warm}
            yield [row | {"certified": first.converged and second.converged}]


def growth(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Time against rows, columns and outputs, each over a factor of 16."""
    factors, base = ((1, 4), (100, 16, 2)) if options.quick else ((1, 2, 4, 8, 16), (500, 64, 2))
    middle = base[0] * 2, base[1] * 4, base[2] * 2
    for axis in range(3):
        for factor in factors:
            shape = [base[axis] * factor if axis == a else middle[a] for a in range(3)]
            row: Row = {"grows": "nPC"[axis], "n": shape[0], "P": shape[1], "C": shape[2]}
            for loss in ("hinge", "cross_entropy"):
                problem = on(options, programme("teacher", teacher(*shape), loss, 0.1))
                seconds, runs, solution = timed(partial(own, problem), options.repeats, options.device)
                row |= {f"{loss} seconds": seconds, f"{loss} certified": solution.converged, "runs": runs}
            yield [row]


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[list[Row]]]] = {
    "softmax_path": softmax_path,
    "resolve": resolves,
    "hinge_path": hinge_paths,
    "growth": growth,
    "large": large,
    "table": compare,
}
ON_GPU = "softmax_path,large"


if __name__ == "__main__":
    main()
