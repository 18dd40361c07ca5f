"""Which runs benchmarks/fair.py needs: rates, schedules and SG's weights are chosen on validation rows alone."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from statistics import mean
from typing import Any

import numpy as np
from fair_arms import ARMS, CALIBRATED, RAW, SG, Weights
from fair_tasks import Task
from fair_unseen import EVERY

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
UNTUNED = (1e-3, "constant")
SELECTION = 1000  # the first of the seeds that choose
FEW = 100  # validation rows, of which one seed cannot choose
Run = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What makes a run: a row of the results."""

    task: str
    arm: str
    rate: float
    schedule: str
    seed: int

    @property
    def key(self) -> str:
        return " | ".join(map(str, astuple(self)))

    @property
    def selects(self) -> bool:
        return self.seed >= SELECTION


def selection_seeds(task: Task) -> range:
    return range(SELECTION, SELECTION + (3 if task.sizes[1] < FEW else 1))


def validated(task: str, arm: str, rate: float, schedule: str, runs: dict[str, Run]) -> tuple[float, float]:
    """Validation score at the end and, to decide between equals, over all looks; the seeds that choose together."""
    chosen = [runs[Cell(task, arm, rate, schedule, seed).key] for seed in selection_seeds(EVERY[task])]
    if any("error" in each for each in chosen):
        return -float("inf"), -float("inf")
    scores = [[point["validation"] for point in each["points"]] for each in chosen]
    return mean(each[-1] for each in scores), mean(map(mean, scores))


def best_rate(task: str, arm: str, runs: dict[str, Run], rates: Sequence[float]) -> float:
    return max(rates, key=lambda rate: validated(task, arm, rate, "cosine", runs))


def choice(task: str, arm: str, runs: dict[str, Run], rates: Sequence[float]) -> tuple[float, str]:
    """Learning rate and schedule, by validation rows alone."""
    arm = ARMS[arm].shortened or arm
    rate = best_rate(task, arm, runs, rates)
    return rate, max(("cosine", "constant"), key=lambda schedule: validated(task, arm, rate, schedule, runs))


def better_sg(task: str, runs: dict[str, Run], rates: Sequence[float]) -> str:
    """SG's arm of the comparison, by validation rows alone."""
    return max((SG, CALIBRATED), key=lambda arm: validated(task, arm, *choice(task, arm, runs, rates), runs))


def selecting(task: str, arm: str, runs: dict[str, Run], rates: Sequence[float]) -> Iterator[Cell]:
    """The runs that choose; each is there when the next is asked for."""
    for rate in rates:
        yield from (Cell(task, arm, rate, "cosine", seed) for seed in selection_seeds(EVERY[task]))
    rate = best_rate(task, arm, runs, rates)
    yield from (Cell(task, arm, rate, "constant", seed) for seed in selection_seeds(EVERY[task]))


def cells(task: str, arm: str, runs: dict[str, Run], rates: Sequence[float], seeds: int) -> Iterator[Cell]:
    """All runs of an arm; each is there when the next is asked for."""
    paired = range(min(seeds, EVERY[task].seeds))
    if long := ARMS[arm].shortened:
        for each in (SG, CALIBRATED, long):
            yield from cells(task, each, runs, rates, seeds)
        yield from (Cell(task, arm, *choice(task, long, runs, rates), seed) for seed in paired)
        return
    if arm == RAW:
        yield from (Cell(task, arm, 0.0, "", seed) for seed in paired)
        return
    if ARMS[arm].weights == "better":
        for each in (SG, CALIBRATED):
            yield from selecting(task, each, runs, rates)
    yield from selecting(task, arm, runs, rates)
    for rate, schedule in dict.fromkeys([choice(task, arm, runs, rates), UNTUNED]):
        yield from (Cell(task, arm, rate, schedule, seed) for seed in paired)


def epochs_in_time(task: str, arm: str, runs: dict[str, Run], rates: Sequence[float], seeds: int) -> int:
    """The most epochs that end, final solve and all, when SG does or before, one at least; by runs that are there."""

    def curve(name: str) -> list[tuple[float, float]]:
        keys = [Cell(task, name, *choice(task, name, runs, rates), seed).key for seed in range(seeds)]
        looks = zip(*(runs[key]["points"] for key in keys), strict=True)
        return [(look[0]["epoch"], mean(point["seconds"] for point in look)) for look in looks]

    sg, own = curve(better_sg(task, runs, rates)), curve(arm)
    *own, (epochs, end) = own
    (before, start), (last, stop) = own[-2:] if len(own) > 1 else (own[0], (epochs, end))
    trained = min(stop + (epochs - last) * (stop - start) / (last - before), end)
    known, seconds = zip(*own, (epochs, trained), strict=True)
    final = max(0.0, end - trained)
    allowed = [n for n in range(1, int(epochs) + 1) if np.interp(n, known, seconds) + final <= sg[-1][1]]
    return max(allowed, default=1)


def weights_of(cell: Cell, runs: dict[str, Run], rates: Sequence[float]) -> Weights:
    weights = ARMS[cell.arm].weights
    return ARMS[better_sg(cell.task, runs, rates)].weights if weights == "better" else weights
