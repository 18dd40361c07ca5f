"""The readouts that benchmarks/elastic_net.py solves: for each row its programmes, how we are asked, what is to be met.

rho is `beta / sqrt(P)` everywhere. Cross-entropy, hinge and squared programmes have an intercept; the binary one has
none, as for liblinear and celer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from layers import Data, Sources, random_layer, regression, trained
from problems import Problem, mixture

from lightning_cvxsnn.convex import Solution, path, solve

STRICT, LOOSE = 1e-6, 1e-3
PATIENCE = 120.0  # seconds
Run = Callable[[float], Sequence[Solution]]


@dataclass(frozen=True)
class Case:
    """A row, in use: several problems are several values of rho on one matrix, which count together.

    Attributes:
        problems: What is solved.
        run: Our solutions to a tolerance; called once, untimed, before it is measured.
    """

    problems: tuple[Problem, ...]
    run: Run


@dataclass(frozen=True)
class Readout:
    """A row: ``make`` loads and prepares it.

    Attributes:
        make: The case.
        what: It in words, for the docs.
        seconds: CPU seconds that are to be met at the last tolerance.
        ratios: How many times faster than the best of the peers that a glob matches.
        tolerances: Of the suboptimality, relative to the best constant predictor's objective.
    """

    make: Callable[[], Case]
    what: str
    seconds: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    tolerances: tuple[float, ...] = (LOOSE, STRICT)


def readouts(sources: Sources, quick: bool) -> dict[str, Readout]:
    """All rows by name; ``quick``: tiny ones of the same kinds."""

    def size(rows: int, columns: int) -> tuple[int, int]:
        return (150, 24) if quick else (rows, columns)

    small, wide, clustered = size(6000, 512), size(8000, 2048), size(5000, 512)
    classes = 5 if quick else 100
    softmax = partial(single, loss="cross_entropy")
    ridge = partial(softmax, beta=4e-3, l1_ratio=0.0)
    many = partial(mixture, *clustered, classes)
    held_out = 50 if quick else 2000
    targets = partial(regression, sources, wide[0] + held_out, wide[1], 20)
    ten = "cross-entropy, 10 classes"
    rows = {
        "ridge-trained": Readout(
            partial(ridge, partial(trained, sources, *small, 3)), f"ridge, {ten}, 6000 x 512, trained spikes",
            0.5, {"*": 2},
        ),
        "ridge-next-epoch": Readout(
            partial(resolve, ridge, sources, small),
            "the same an epoch later, from the old solution, to 1e-3", 0.08, {"*": 6}, (LOOSE,),
        ),
        "ridge-squared-ten-rhos": Readout(
            partial(along, targets, held_out), "ridge, squared, 20 targets, 8000 x 2048, ten penalties",
            ratios={"sklearn Ridge": 4, "sklearn Ridge float32": 2},
        ),
        "ridge-60000": Readout(
            partial(ridge, partial(random_layer, sources, *size(60_000, 2048))), f"ridge, {ten}, 60,000 x 2048",
            ratios={"*": 2},
        ),
        "ridge-100-classes": Readout(
            partial(ridge, many), "ridge, cross-entropy, 100 classes, 5000 x 512", 2.5, {"*": 3}
        ),
    }  # fmt: skip
    for data in (trained, random_layer):
        kind = data.__name__.split("_")[0]
        for beta, seconds in ((0.3, 0.5), (0.03, 1.5), (0.003, 6.0)):
            make = partial(data, sources, *wide, *([3] if data is trained else []))
            what = f"L1, {ten}, 8000 x 2048, {kind} spikes, beta {beta:g}"
            rows[f"l1-{kind}-{beta:g}"] = Readout(partial(softmax, make, beta=beta), what, seconds)
    binary = partial(mixture, *size(20_000, 4000), 2, clusters=50)
    hinge = partial(mixture, *size(5000, 1000), 5 if quick else 10, clusters=50)
    lasso = partial(regression, sources, *wide, 20)
    return rows | {
        "l1-100-classes": Readout(
            partial(softmax, many, beta=0.01), "L1, cross-entropy, 100 classes, 5000 x 512, beta 0.01", 5.0
        ),
        "l1-binary": Readout(
            partial(single, binary, "logistic", 0.01), "L1, logistic, 20,000 x 4000, beta 0.01", 5.0
        ),
        "l1-squared": Readout(
            partial(single, lasso, "squared", 0.01), "L1, squared, 20 targets, 8000 x 2048, beta 0.01",
            ratios={"sklearn Lasso+Gram": 1.3, "sklearn Lasso": 2},
        ),
        "hinge-0.1": Readout(
            partial(single, hinge, "hinge", 0.1), "L1, hinge, 10 classes, 5000 x 1000, beta 0.1", 5.0
        ),
        "hinge-0.01": Readout(
            partial(single, hinge, "hinge", 0.01), "the same, beta 0.01", 12.0
        ),
    }  # fmt: skip


def ask(problem: Problem, tolerance: float, init: Solution | None = None) -> Solution:
    """Our own solution, or what there is of it when patience ends."""
    return solve(
        problem.matrix, problem.targets, num_outputs=problem.outputs, gap_tolerance=tolerance, max_seconds=PATIENCE,
        init=init and init.point, **problem.arguments,
    )  # fmt: skip


def programme(data: Data, loss: str, beta: float, l1_ratio: float = 1.0) -> Problem:
    dictionary, targets = data
    rho = beta / math.sqrt(dictionary.shape[1])
    return Problem(f"{loss}-{beta:g}", dictionary, targets, loss, rho, loss != "logistic", l1_ratio)


def single(data: Callable[[], Data], loss: str, beta: float, l1_ratio: float = 1.0) -> Case:
    """One programme, from nothing."""
    problem = programme(data(), loss, beta, l1_ratio)
    return Case((problem,), lambda tolerance: [ask(problem, tolerance)])


def resolve(ridge: Callable[..., Case], sources: Sources, size: tuple[int, int]) -> Case:
    """After another epoch of training, from the solution before it; peers start from nothing."""
    old, new = (ridge(partial(trained, sources, *size, epochs)).problems[0] for epochs in (3, 4))
    known: list[Solution] = []

    def run(tolerance: float) -> list[Solution]:
        if not known:
            known.append(ask(old, LOOSE))
        return [ask(new, tolerance, known[0])]

    return Case((new,), run)


def along(data: Callable[[], Data], held_out: int) -> Case:
    """Ten values of rho that are judged on the last rows, down to where the held-out loss is least."""
    dictionary, targets = data()
    last = torch.arange(len(targets)) >= len(targets) - held_out
    fitted = dictionary.rows(~last), targets[~last]
    first = programme(fitted, "squared", 1.0, 0.0)
    problems = tuple(
        replace(first, rho=first.rho * float(beta), name=f"squared-{beta:.2g}") for beta in np.geomspace(30, 0.5, 10)
    )
    rhos = [problem.rho for problem in problems]
    arguments = {key: value for key, value in first.arguments.items() if key != "rho"}

    def run(tolerance: float) -> list[Solution]:
        found = path(dictionary, targets, held_out=last, rhos=rhos, gap_tolerance=tolerance, **arguments)
        if found.rhos != rhos:
            raise ValueError(f"The path ended after {len(found.rhos)} of {len(rhos)} values.")
        return found.solutions

    return Case(problems, run)
