"""`convex.solve` against the solvers a user would pick instead: `python benchmarks/solvers.py`.

The whole takes over an hour, `--quick` a minute or two; `--parts`, `--problems` and `--solvers` select.

One rule for all: time until primal <= best certified bound + 1e-6 of the best constant predictor's objective. Primal
values and bounds come from `certificate`, from the coefficients a solver returns. A peer runs at settings of increasing
accuracy and is given the time of the cheapest that meets the rule. Medians of `--repeats` runs, of one if it takes over
20 s. Peak memory: a fresh process for each row, the high-water mark of resident memory during one solve less what was
resident before it (Linux). All solvers get dense float64 in the order they like best; JIT compilers are warmed up.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import PACKAGES, RESULTS, write
from peers import PEERS, Peer, quietly
from problems import BETAS, Problem, mnist, problems, programme, teacher, xor
from rich.console import Console
from rich.table import Table

from lightning_cvxsnn.convex import certificate, mean_loss, path, solve

TOLERANCE = 1e-6
LONG = 20.0  # seconds beyond which a run is not repeated
MNIST = Path(__file__).parents[1] / "../shared/data/mnist10k"
PARTS = ("table", "hinge_path", "softmax_path", "resolve", "growth")
OWN = "lightning_cvxsnn"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small matrices, two repeats, no memory")
    parser.add_argument("--problems", default="*", help="globs over problems of the table, with commas")
    parser.add_argument("--solvers", default="*", help="globs over peers, with commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds after which a peer's next setting is skipped"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--mnist", type=Path, default=MNIST, help="folder of the MNIST IDX files")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for solvers.json")
    parser.add_argument("--peak", nargs=3, metavar=("PROBLEM", "SOLVER", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        return print(json.dumps(peak_of(options, *options.peak)))
    if options.quick:
        options.repeats, options.no_memory = min(options.repeats, 2), True
    parts = {
        "table": compare,
        "hinge_path": hinge_paths,
        "softmax_path": softmax_path,
        "resolve": resolves,
        "growth": growth,
    }
    packages = (*PACKAGES, "celer", "skglm", "highspy", "scs", "clarabel")
    command = "python benchmarks/solvers.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    results = {"command": command, "load": os.getloadavg(), "tolerance": TOLERANCE}  # what else the machine was doing
    for part in options.parts.split(","):
        results[part] = parts[part](options)
        show(part, results[part])
        write("solvers", results, packages, options.output)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys as one table."""
    if not rows:
        return
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=max(Console().width, 150)).print(table)


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, int, Any]:
    """Median seconds, number of runs and the last result; long runs are not repeated."""
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or seconds[0] <= LONG):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return median(seconds), len(seconds), result


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


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every solver on every selected problem."""
    rows: list[dict[str, Any]] = []
    for _, make in known(options):
        problem = make()
        scale = scale_of(problem)
        best = own(problem, 1e-9)
        bound = best.dual

        own(problem)  # warm-up
        seconds, runs, solution = timed(lambda problem=problem: own(problem), options.repeats)
        error = (solution.primal - bound) / scale
        mine = seconds
        rows.append(
            row_of(
                options, problem, OWN, "gap 1e-6", seconds, runs, error, None, f"certified {solution.gap / scale:.0e}"
            )
        )
        for peer in PEERS:
            size = problem.matrix.numel() * (problem.outputs or int(problem.targets.max()) + 1)
            if problem.loss in peer.losses and matches(peer.name, options.solvers) and size <= peer.most:
                rows.append(compare_peer(options, problem, peer, scale, bound, mine))
    return rows


def row_of(
    options: argparse.Namespace,
    problem: Problem,
    solver: str,
    setting: str,
    seconds: float,
    runs: int,
    error: float,
    ratio: float | None,
    note: str,
) -> dict[str, Any]:
    row = {
        "problem": problem.name,
        "solver": solver,
        "setting": setting,
        "seconds": seconds if error <= TOLERANCE else None,
        "runs": runs,
        "times ours": ratio,
        "suboptimality": error,
        "peak MB": peak_memory(options, problem.name, solver, setting),
        "note": note if error <= TOLERANCE else f"not reached in {seconds:.1f} s. {note}".strip(),
    }
    print({key: value for key, value in row.items() if value is not None}, flush=True)
    return row


def compare_peer(
    options: argparse.Namespace, problem: Problem, peer: Peer, scale: float, bound: float, mine: float
) -> dict[str, Any]:
    """The cheapest setting of a peer that meets the rule, or the last one tried."""
    matrix = np.asarray(problem.matrix.numpy(), order=peer.order)
    warm_up(problem, peer)
    for setting in peer.settings:
        once, runs, (coef, intercept) = timed(lambda s=setting: quietly(lambda: peer.run(problem, matrix, s)), 1)
        error = (primal_of(problem, coef, intercept) - bound) / scale
        if error <= TOLERANCE or once > options.limit:
            break
    if error <= TOLERANCE and once <= LONG and options.repeats > 1:
        again, runs, _ = timed(lambda: quietly(lambda: peer.run(problem, matrix, setting)), options.repeats)
        once = again
    return row_of(options, problem, peer.name, f"{setting:g}", once, runs, error, once / mine, peer.note)


def warm_up(problem: Problem, peer: Peer) -> None:
    """Compile on a corner of the problem, for peers with a compiler."""
    if peer.name.startswith(("skglm", "celer")):
        labels = problem.targets[:60]
        small = Problem("corner", problem.matrix[:60, :20], labels, problem.loss, problem.rho, problem.fit_intercept)
        quietly(lambda: peer.run(small, np.asarray(small.matrix.numpy(), order=peer.order), peer.settings[0]))


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
    if options.no_memory or not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--mnist", str(options.mnist), *(["--quick"] if options.quick else [])]
    result = subprocess.run([*command, "--peak", problem, solver, setting], capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[-1]))


def peak_of(options: argparse.Namespace, name: str, solver: str, setting: str) -> float:
    problem = dict(problems(options.mnist, options.quick))[name]()

    def status(key: str) -> int:
        return next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
        )

    if solver == OWN:
        small = Problem("corner", problem.matrix[:60, :20], problem.targets[:60], problem.loss, 0.01, True)
        own(small)
        run: Callable[[], Any] = partial(own, problem)
    else:
        peer = next(peer for peer in PEERS if peer.name == solver)
        warm_up(problem, peer)
        matrix = np.asarray(problem.matrix.numpy(), order=peer.order)
        run = partial(quietly, partial(peer.run, problem, matrix, float(setting)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    run()
    return round((status("VmHWM") - before) / 1024, 1)


def hinge_paths(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Twenty values of rho against the hardest of them alone, from a cold start, at the path's tolerance."""
    rows = []
    data = xor(*((200, 100) if options.quick else (2000, 1000)))
    chosen = [programme(f"xor-{loss}", data, loss, 0.1) for loss in ("hinge", "squared", "logistic")]
    if has_mnist(options):  # one against the rest
        shape = (200, 32) if options.quick else (1000, 256)
        chosen.append(programme("mnist-hinge", mnist(options.mnist, *shape), "hinge", 0.1))
    for problem in chosen:
        held_out = torch.arange(problem.matrix.shape[0]) % 5 == 0
        keywords = {key: value for key, value in problem.arguments.items() if key != "rho"}
        keywords |= {"num_outputs": problem.outputs}
        run = partial(path, problem.matrix, problem.targets, held_out=held_out, **keywords)
        seconds, runs, result = timed(run, min(options.repeats, 3))
        alone = [
            timed(
                lambda r=rho, p=problem, h=held_out, k=keywords: solve(
                    p.matrix[~h], p.targets[~h], rho=r, gap_tolerance=1e-4, **k
                ),
                1,
            )[0]
            for rho in result.rhos
        ]
        rows.append(
            {
                "problem": problem.name,
                "values": len(result.rhos),
                "seconds": seconds,
                "runs": runs,
                "hardest alone": max(alone),
                "ratio": seconds / max(alone),
                "certified": all(solution.converged for solution in result.solutions),
            }
        )
    return rows


def softmax_path(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The MNIST preset at three betas in turn, each from the one before."""
    if not has_mnist(options):
        return []
    rows, columns = (200, 32) if options.quick else (6000, 1024)
    data = mnist(options.mnist, rows, columns)
    results, solution, total = [], None, 0.0
    for beta in BETAS:
        problem = programme(f"mnist{rows}-softmax-{beta:g}", data, "cross_entropy", beta)
        solution = own(problem, init=solution)
        total += solution.seconds
        outputs = problem.matrix @ solution.coef + solution.intercept
        results.append(
            {
                "problem": problem.name,
                "seconds": solution.seconds,
                "seconds so far": total,
                "certified": solution.converged,
                "gap": solution.gap,
                "loss": mean_loss(outputs, problem.targets, loss="cross_entropy"),
            }
        )
    return results


def resolves(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A dictionary whose witnesses moved a little, from the old solution and cold."""
    rows = []
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
            old, new = (programme(f"{source}-{loss}-{beta:g}", each, loss, beta) for each in data)
            before = own(old)
            cold, runs, first = timed(lambda new=new: own(new), options.repeats)
            warm, _, second = timed(lambda new=new, before=before: own(new, init=before), options.repeats)
            rows.append(
                {
                    "problem": new.name,
                    "entries changed": float((old.matrix != new.matrix).double().mean()),
                    "cold": cold,
                    "warm": warm,
                    "runs": runs,
                    "ratio": cold / warm,
                    "certified": first.converged and second.converged,
                }
            )
    return rows


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time against rows, columns and outputs, each over a factor of 16."""
    rows = []
    factors, base = ((1, 4), (100, 16, 2)) if options.quick else ((1, 2, 4, 8, 16), (500, 64, 2))
    middle = base[0] * 2, base[1] * 4, base[2] * 2
    for axis in range(3):
        for factor in factors:
            shape = [base[axis] * factor if axis == a else middle[a] for a in range(3)]
            row: dict[str, Any] = {
                "grows": "nPC"[axis], "n": shape[0], "P": shape[1], "C": shape[2],
            }  # fmt: skip
            for loss in ("hinge", "cross_entropy"):
                problem = programme("teacher", teacher(*shape), loss, 0.1)
                seconds, runs, solution = timed(lambda p=problem: own(p), min(options.repeats, 3))
                row |= {f"{loss} seconds": seconds, f"{loss} certified": solution.converged, "runs": runs}
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
