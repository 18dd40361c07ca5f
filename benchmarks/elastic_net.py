"""Readouts at the sizes that real networks have, from ridge to L1, against the solvers a user would pick instead.

    python benchmarks/elastic_net.py                              all rows and all peers; hours
    python benchmarks/elastic_net.py --problems ridge-trained     one row
    python benchmarks/elastic_net.py --problems 'l1-*' --solvers lightning_cvxsnn --again

One rule for all: time until primal <= best certified bound + tolerance x the best constant predictor's objective, at
1e-3 and 1e-6; we have to prove it, too, by our own gap. A solver runs at settings of increasing accuracy and is given
the time of the cheapest that meets the rule; it stops after one that takes more than `--limit` seconds. Times are CPU
seconds of one thread, medians of 5 runs, 3 beyond 30 s; `--threads 2` compares wall seconds. Primal values are computed
by benchmarks/objective.py; bounds are those of our solutions and, for ridge, of every point by its strong convexity. We
are given counts of one byte, peers dense arrays of floats in the order they like best, made beforehand. JIT compilers
are warmed up. Memory: the rise of the high-water mark of a fresh process during our solve, and what the package would
have asked for beforehand.

results/elastic_net.json is written after every solver; what is there is not run again without `--again`.
"""

import argparse
import json
import multiprocessing
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from common import PACKAGES, RESULTS, Row, show, write
from layers import CACHE, Sources
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from objective import objective, ridge_bound
from peers import PEERS, Peer, quietly
from problems import Problem
from readouts import LOOSE, Case, Readout, ask, readouts
from solvers import MNIST, OWN, grown, matches, scale_of, warm_up
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_cvxsnn.runtime import memory

Points = Sequence[Any]  # with coef [P, C] and intercept [C], one for each programme
REFERENCE = 1e-9  # gap of the bounds that all are measured by
ROUNDING = 1e-9
LONG = 30.0  # seconds beyond which three runs are enough


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny matrices")
    parser.add_argument("--problems", default="*", help="globs over rows, with commas")
    parser.add_argument("--solvers", default="*", help=f"globs over peers and {OWN}, with commas")
    parser.add_argument("--threads", type=int, default=1, help="of all libraries; beyond 1, wall seconds are compared")
    parser.add_argument("--repeats", type=int, default=5, help="at most so many runs")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which no next setting is tried")
    parser.add_argument("--again", action="store_true", help="run what is there, too")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--mnist", type=Path, default=MNIST, help="folder of the MNIST IDX files")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where matrices are kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of elastic_net.json")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    file = "elastic_net_quick" if options.quick else "elastic_net"
    path = options.output / f"{file}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {"problems": {}, "rows": []}
    rows = readouts(Sources(options.mnist, options.cache), options.quick)
    chosen = {name: row for name, row in rows.items() if matches(name, options.problems)}
    with threadpool_limits(options.threads):
        for name, row in chosen.items():
            for _ in measured(name, row, results, options):
                write(file, results, (*PACKAGES, "celer", "skglm", "highspy", "clarabel"), options.output)
    found = [line for name, row in chosen.items() for line in lines(name, row, results, options.threads)]
    show(f"{'CPU' if options.threads == 1 else 'wall'} seconds, {options.threads} threads", found)
    show("what is to be met", [line for name, row in chosen.items() for line in goals(name, row, found)])


# -- measuring --------------------------------------------------------------------------------------------------------


def measured(name: str, row: Readout, results: dict[str, Any], options: argparse.Namespace) -> Iterator[None]:
    """Run the solvers that are missing, ourselves first, and yield after each."""
    mine = [r for r in results["rows"] if (r["problem"], r["threads"]) == (name, options.threads)]
    there = set() if options.again else {r["solver"] for r in mine if r["attempts"]}
    wanted = [s for s in (OWN, *(peer.name for peer in PEERS)) if matches(s, options.solvers) and s not in there]
    if not wanted:
        return
    case = row.make()
    known = results["problems"].setdefault(name, {"scale": scale(case), "bounds": [0.0] * len(case.problems)})
    if not known.get("referred"):
        refer(case, known)
    suiting = {peer.name: peer for peer in PEERS if peer.suits(case.problems[0])}
    for solver in (each for each in wanted if each == OWN or each in suiting):
        new: dict[str, Any] = {"problem": name, "threads": options.threads, "solver": solver}
        results["rows"] = [r for r in results["rows"] if not new.items() <= r.items()]
        new |= {"load": os.getloadavg()[0], "attempts": [], "note": ""}  # load: what else the machine is doing
        try:
            new["attempts"] = attempts(*runner(case, row, suiting.get(solver)), case, row, known, options)
            if solver == OWN and options.threads == 1 and not options.no_memory:
                new |= {"peak MB": peak(name, options), "estimate MB": estimate(case.problems[0])}
        except Exception as failure:  # a solver's own fault is a result, and no reason to lose the others'
            new["note"] = f"failed: {failure!r}"[:200]
        results["rows"].append(new)
        print(name, solver, new["note"], [(a["setting"], median(a["cpu"])) for a in new["attempts"]], flush=True)
        yield


def scale(case: Case) -> float:
    """Objective of the best constant predictor."""
    problem = case.problems[0]
    nothing = torch.zeros(len(problem.targets), 1, dtype=torch.float64)
    return scale_of(Problem("constant", nothing, problem.targets, problem.loss, 1.0, problem.fit_intercept))


def refer(case: Case, known: dict[str, Any]) -> None:
    """Raise the bounds by our own solutions to a tight tolerance; until one has converged, each call tries again."""
    found = [ask(problem, REFERENCE) for problem in case.problems]
    known["bounds"] = [max(bound, each.dual) for bound, each in zip(known["bounds"], found, strict=True)]
    known["referred"] = all(each.converged for each in found)


def runner(case: Case, row: Readout, peer: Peer | None) -> tuple[Callable[[float], Points], Sequence[float]]:
    """What is timed, and its settings."""
    if peer is None:
        case.run(LOOSE)  # prepares, and warms up
        return case.run, row.tolerances
    warm_up(case.problems[0], peer)
    matrix = peer.matrix(case.problems[0])

    def run(setting: float) -> Points:
        found = [quietly(partial(peer.run, problem, matrix, setting)) for problem in case.problems]
        return [Found(*(torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in point)) for point in found]

    return run, peer.settings


class Found(NamedTuple):
    """A point of a peer."""

    coef: Tensor
    intercept: Tensor


def attempts(
    run: Callable[[float], Points],
    settings: Sequence[float],
    case: Case,
    row: Readout,
    known: dict[str, Any],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Settings of increasing accuracy until the strictest tolerance is met; those that count run several times."""
    tried: list[dict[str, Any]] = []
    for setting in settings:
        points, cpu, wall = clock(partial(run, setting))
        pairs = zip(case.problems, points, strict=True)
        primals = [objective(problem, point.coef, point.intercept) for problem, point in pairs]
        gaps = [point.gap for point in points if hasattr(point, "gap")]
        tried.append({"setting": setting, "cpu": [cpu], "wall": [wall], "primals": primals, "gaps": gaps})
        raise_bounds(case, points, known)
        if met(tried[-1], min(row.tolerances), known) or wall > options.limit:
            break
    for attempt in filter(None, [cheapest(tried, tolerance, known) for tolerance in row.tolerances]):
        while len(attempt["cpu"]) < min(options.repeats, 3 if attempt["wall"][0] > LONG else 5):
            _, cpu, wall = clock(partial(run, attempt["setting"]))
            attempt["cpu"].append(cpu)
            attempt["wall"].append(wall)
    return tried


def clock(run: Callable[[], Points]) -> tuple[Points, float, float]:
    """Result, CPU seconds of all threads, wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def raise_bounds(case: Case, points: Points, known: dict[str, Any]) -> None:
    """To what the points prove by themselves, of ridge programmes with a smooth loss."""
    if case.problems[0].penalty == "ridge" and not case.problems[0].loss.endswith("hinge"):
        pairs = zip(case.problems, points, strict=True)
        found = [ridge_bound(problem, point.coef, point.intercept) for problem, point in pairs]
        known["bounds"] = list(map(max, known["bounds"], found))


def error(attempt: dict[str, Any], known: dict[str, Any]) -> float:
    """The largest suboptimality of all values of rho, relative to the best constant predictor's objective."""
    pairs = zip(attempt["primals"], known["bounds"], strict=True)
    return max(primal - bound for primal, bound in pairs) / known["scale"]


def met(attempt: dict[str, Any], tolerance: float, known: dict[str, Any]) -> bool:
    return max(error(attempt, known), *(gap / known["scale"] for gap in attempt["gaps"]), 0.0) <= tolerance


def cheapest(tried: list[dict[str, Any]], tolerance: float, known: dict[str, Any]) -> dict[str, Any] | None:
    return next((attempt for attempt in tried if met(attempt, tolerance, known)), None)


def peak(name: str, options: argparse.Namespace) -> float | None:
    """Megabytes of our own solve, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (name, Sources(options.mnist, options.cache), options.quick))


def peak_of(name: str, sources: Sources, quick: bool) -> float:
    torch.set_num_threads(1)
    row = readouts(sources, quick)[name]
    case = row.make()
    ask(case.problems[0].corner(), LOOSE)
    return grown(lambda: case.run(row.tolerances[-1]))


def estimate(problem: Problem) -> int:
    """Megabytes below which the package refuses the programme, of spikes that are captured as bytes."""

    def fits(megabytes: int) -> bool:
        with mock.patch.object(memory, "available_memory", return_value=megabytes * 2**20):
            try:
                memory.check_memory(*problem.matrix.shape, problem.width, captured=1, solved=1)
            except MisconfigurationException:
                return False
        return True

    return bisect_left(range(2**20), True, key=fits)


# -- telling ----------------------------------------------------------------------------------------------------------


def lines(name: str, row: Readout, results: dict[str, Any], threads: int) -> list[Row]:
    """Of the table: each solver at each tolerance."""
    mine = [r for r in results["rows"] if (r["problem"], r["threads"]) == (name, threads)]
    mine.sort(key=lambda r: r["solver"] != OWN)
    return [line(r, tolerance, results["problems"][name]) for tolerance in row.tolerances for r in mine]


def line(measured: Row, tolerance: float, known: dict[str, Any]) -> Row:
    """The cheapest attempt that meets the tolerance; without one, the last."""
    attempt = cheapest(measured["attempts"], tolerance, known)
    last = attempt or next(reversed(measured["attempts"]), None)
    shown: Row = {"problem": measured["problem"], "tolerance": tolerance, "solver": measured["solver"]}
    seconds = {which: last and median(last[which]) for which in ("cpu", "wall")}
    counted = seconds["cpu" if measured["threads"] == 1 else "wall"]
    shown |= {"setting": last and last["setting"], "seconds": counted if attempt else None, "wall": seconds["wall"]}
    shown |= {"runs": last and len(last["cpu"]), "suboptimality": last and error(last, known)}
    shown |= {key: measured.get(key) for key in ("peak MB", "estimate MB")} | {"note": measured["note"][:60]}
    if last and not attempt:
        shown["note"] += f"not reached in {counted:.1f} s"
    if last and shown["suboptimality"] < -ROUNDING:
        shown["note"] += " BELOW A BOUND, which is wrong"
    return shown


def goals(name: str, row: Readout, found: list[Row]) -> list[Row]:
    """Of the table of goals: our seconds and how many times faster we are, at the strictest tolerance."""
    here = [r for r in found if (r["problem"], r["tolerance"]) == (name, min(row.tolerances)) and r["seconds"]]
    ours = next((r["seconds"] for r in here if r["solver"] == OWN), None)
    rows = []
    for glob, factor in (row.ratios or {"*": None}).items():
        peers = [r for r in here if r["solver"] != OWN and (glob == "*" or r["solver"] == glob)]
        best = min(peers, key=lambda r: r["seconds"], default=None)
        ratio = best["seconds"] / ours if best and ours else None
        line: Row = {"problem": name, "ours": ours, "to meet": row.seconds, "best peer": best and best["solver"]}
        line |= {"its seconds": best and best["seconds"], "times ours": ratio, "times to meet": factor}
        slow = ours is None or (row.seconds is not None and ours > row.seconds)
        rows.append(line | {"met": "no" if slow or (factor and (ratio or 0) < factor) else "yes"})
    return rows


def markdown(results: dict[str, Any], rows: dict[str, Readout]) -> str:
    """A line for each row that was run: our CPU seconds and the fastest peer's, at the strictest tolerance."""
    told = ["| readout | CPU s | fastest peer | its CPU s |", "|---|---|---|---|"]
    for name, row in rows.items():
        found = [r for r in lines(name, row, results, 1) if r["tolerance"] == min(row.tolerances)]
        ours = next((r["seconds"] for r in found if r["solver"] == OWN), None)
        if any(r["solver"] == OWN for r in found):
            peers = [r for r in found if r["solver"] != OWN and r["seconds"]]
            best = min(peers, key=lambda r: r["seconds"], default=None)
            cells = (f"{best['solver']}", f"{best['seconds']:.2g}") if best else ("", "")
            told.append(f"| {row.what} | {f'{ours:.2g}' if ours else 'not reached'} | {' | '.join(cells)} |")
    return "\n".join(told)


if __name__ == "__main__":
    main()
