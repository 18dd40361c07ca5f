"""Two commits on the programmes of benchmarks/solvers.py, in interleaved pairs: `python benchmarks/pairs.py OLD NEW`.

OLD and NEW are folders of checkouts, such as `git worktree add ../old COMMIT` makes; the programmes are those of the
benchmarks that this file lies among. One process of each stays up; they solve in turn, the other one first each time,
CPU seconds of one thread. A row's figure is the median over pairs of new time / old time. Exits with 1 where the
geometric mean is above 1.05 or a row is above 1.15. results/pairs.json is written after every row.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from common import RESULTS, Row, show, write
from problems import BETAS, Problem, mnist, problems, programme, teacher, xor
from solvers import MNIST, matches, own

from lightning_cvxsnn.convex import path

MEAN, MOST = 1.05, 1.15
LONG = 10.0  # seconds beyond which three pairs are enough
Job = Callable[[], Callable[[], Any]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, help="OLD NEW; without: solve what stdin names")
    parser.add_argument("--quick", action="store_true", help="small matrices")
    parser.add_argument("--problems", default="*", help="globs over rows, with commas")
    parser.add_argument("--pairs", type=int, default=5, help="at most so many")
    parser.add_argument("--mnist", type=Path, default=MNIST, help="folder of the MNIST IDX files")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of pairs.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = {name: job for name, job in jobs(options.mnist, options.quick) if matches(name, options.problems)}
    if not options.checkouts:
        serve(chosen)
        return 0
    passed = [sys.executable, __file__, "--mnist", options.mnist, *(["--quick"] if options.quick else [])]
    solvers = [Solver(passed, folder.resolve()) for folder in options.checkouts]
    for solver in solvers:
        solver.check()
    rows: list[Row] = []
    for name in chosen:
        rows.append({"problem": name} | compare(solvers, name, options.pairs))
        print(rows[-1], flush=True)
        write(
            "pairs", {"checkouts": [str(folder) for folder in options.checkouts], "rows": rows}, folder=options.output
        )
    for solver in solvers:
        solver.close()
    ratios = [row["new / old"] for row in rows]
    show(f"geometric mean {geometric_mean(ratios):.3f}, largest {max(ratios):.3f}", rows)
    return int(geometric_mean(ratios) > MEAN or max(ratios) > MOST)


class Solver:
    """A process that solves with the package of one checkout."""

    def __init__(self, command: list[Any], folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, text=True, env=environment)
        self.folder = folder

    def check(self) -> None:
        """Refuse a folder that another package than its own was taken for."""
        if self.say("where") != str(self.folder):
            raise ValueError(f"{self.folder} is no checkout of the package.")

    def say(self, line: str) -> str:
        """The answer to a line."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(chosen: dict[str, Job]) -> None:
    """Answer `where` by the package's checkout, a name by its CPU seconds."""
    prepared: dict[str, Callable[[], Any]] = {}
    for line in map(str.strip, sys.stdin):
        if line == "where":
            import lightning_cvxsnn

            print(Path(lightning_cvxsnn.__file__).parents[1], flush=True)
        else:
            if line not in prepared:
                prepared = {line: chosen[line]()}
            started = time.process_time()
            prepared[line]()
            print(time.process_time() - started, flush=True)


def compare(solvers: list[Solver], name: str, most: int) -> Row:
    """Both once to warm up, then in pairs."""
    pairs: list[tuple[float, float]] = []
    first = max(float(solver.say(name)) for solver in solvers)
    while len(pairs) < min(most, 3 if first > LONG else most):
        order = solvers if len(pairs) % 2 else solvers[::-1]
        seconds = {id(solver): float(solver.say(name)) for solver in order}
        pairs.append((seconds[id(solvers[0])], seconds[id(solvers[1])]))
    old, new = (median(each) for each in zip(*pairs, strict=True))
    return {"old": old, "new": new, "new / old": median(b / a for a, b in pairs), "pairs": len(pairs)}


# -- the programmes ---------------------------------------------------------------------------------------------------


def jobs(folder: Path, quick: bool) -> Iterator[tuple[str, Job]]:
    """Names, and what makes the call that is timed: those of all parts of benchmarks/solvers.py that fit a CPU."""
    there = (folder / "t10k-images-idx3-ubyte.gz").exists()
    for name, make in problems(folder, quick):
        if there or not name.startswith("mnist"):
            yield name, partial(_alone, make)
    small, large = (200, 100) if quick else (2000, 1000), (200, 32) if quick else (1000, 256)
    data = {"xor": partial(xor, *small)} | ({"mnist": partial(mnist, folder, *large)} if there else {})
    for source, make in data.items():
        for loss in ("hinge", "squared", "logistic") if source == "xor" else ("cross_entropy", "hinge"):
            for noise in (0.001, 0.01):
                yield f"resolve-{source}-{loss}-{noise:g}", partial(_again, make, loss, noise)
            if (source, loss) != ("mnist", "cross_entropy"):
                yield f"path-{source}-{loss}", partial(_path, make, loss)
    if there:
        size = (200, 32) if quick else (6000, 1024)
        yield "softmax_path", partial(_in_turn, partial(mnist, folder, *size))
    for shape in sorted(_shapes(quick)):
        for loss in ("hinge", "cross_entropy"):
            name = f"growth-{'x'.join(map(str, shape))}-{loss}"
            yield name, partial(_alone, lambda s=shape, o=loss: programme("growth", teacher(*s), o, 0.1))


def _shapes(quick: bool) -> set[tuple[int, int, int]]:
    factors, base = ((1, 4), (100, 16, 2)) if quick else ((1, 2, 4, 8, 16), (500, 64, 2))
    middle = base[0] * 2, base[1] * 4, base[2] * 2
    return {tuple(base[a] * f if a == axis else middle[a] for a in range(3)) for axis in range(3) for f in factors}


def _alone(make: Callable[[], Problem]) -> Callable[[], Any]:
    return partial(own, make())


def _again(make: Callable[..., Any], loss: str, noise: float) -> Callable[[], Any]:
    old, new = (programme("again", make(size), loss, 0.1) for size in (0.0, noise))
    return partial(own, new, init=own(old).point)


def _path(make: Callable[[], Any], loss: str) -> Callable[[], Any]:
    problem = programme("path", make(), loss, 0.1)
    keywords = {key: value for key, value in problem.arguments.items() if key != "rho"}
    held_out = torch.arange(len(problem.targets)) % 5 == 0
    return partial(path, problem.matrix, problem.targets, held_out=held_out, num_outputs=problem.outputs, **keywords)


def _in_turn(make: Callable[[], Any]) -> Callable[[], Any]:
    matrix, targets = make()

    def run() -> None:
        solution = None
        for beta in BETAS:
            rho = beta / math.sqrt(matrix.shape[1])
            problem = Problem("in turn", matrix, targets, "cross_entropy", rho, True)
            solution = own(problem, init=solution and solution.point)

    return run


if __name__ == "__main__":
    sys.exit(main())
