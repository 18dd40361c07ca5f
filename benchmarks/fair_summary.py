"""Tables and pictures of benchmarks/fair.py: scores, and paired differences to SG with their intervals."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from common import show
from fair_arms import ARMS, OURS_IN_TIME, RAW
from fair_choice import RATES, UNTUNED, Cell, Run, better_sg, choice
from fair_unseen import EVERY
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATCHED = ("start", "ep 1", "ep 2", "ep 5", "half", "end")
TIMED = ("t 1", "t 2", "t 5", "t half", "t end", "t late")  # at the CPU time at which SG has finished these epochs
WORKED = ("w 1", "w 2", "w 5", "w half", "w end")  # at the same number of multiply-adds
LATE = 0.5  # CPU seconds; "t late" is the later of this and SG's second epoch, from which equal time counts
Figures = dict[str, float | None]


def at(run: Run, value: float, before: float, axis: str = "seconds") -> float:
    """Test score at a CPU time: on a line between looks, ``before`` the first one, and the last one's after it."""
    points = run["points"]
    return float(np.interp(value, [p[axis] for p in points], [p["test"] for p in points], left=before))


def time_to(run: Run, goal: float) -> float | None:
    """CPU seconds after which the test score first reaches a goal."""
    points = [(point["seconds"], point["test"]) for point in run["points"]]
    if points[0][1] >= goal:
        return points[0][0]
    for (early, low), (late, high) in pairwise(points):
        if high >= goal:
            return early + (goal - low) / (high - low) * (late - early)
    return None


def first_above(run: Run, score: float) -> float | None:
    """The first look's epoch at which the test score is above another."""
    return next((point["epoch"] for point in run["points"] if point["test"] > score), None)


def with_work(run: Run) -> Run:
    """The run, with the multiply-adds before each look."""
    if "epoch_work" not in run:
        return run
    solves = run["solves"]
    done = [sum(s["work"] for s in solves if s["epoch"] <= p["epoch"]) for p in run["points"]]
    points = zip(run["points"], done, strict=True)
    return run | {"points": [p | {"work": p["epoch"] * run["epoch_work"] + work} for p, work in points]}


def matched(run: Run) -> dict[str, dict[str, float]]:
    """The points before training, after epochs and at the end."""
    points, epochs = {int(point["epoch"]): point for point in run["points"]}, run["epochs"]
    wanted = {"start": 0, "ep 1": 1, "ep 2": 2, "ep 5": 5, "half": epochs // 2, "end": epochs}
    return {name: points[epoch] for name, epoch in wanted.items() if epoch in points}


def figures(run: Run, sg: Run) -> Figures:
    """A run's figures beside those of SG with the same seed."""
    own, theirs = matched(run), matched(sg)
    before, final = theirs["start"]["test"], theirs["end"]["test"]
    # A linear model of the inputs has no epochs: what it is at once, it stays.
    found: Figures = {name: own.get(name, run["points"][-1])["test"] for name in theirs}
    later = {name.removeprefix("ep "): point for name, point in theirs.items() if name != "start"}
    found |= {f"t {name}": at(run, point["seconds"], before) for name, point in later.items()}
    found["t late"] = at(run, max(later["2"]["seconds"] if "2" in later else 0.0, LATE), before)
    if "work" in run["points"][0]:
        found |= {f"w {name}": at(run, point["work"], before, "work") for name, point in later.items()}
        found["G multiply-adds"] = run["points"][-1]["work"] / 1e9
    found |= {f"to {share} %": time_to(run, share / 100 * final) for share in (95, 99)}
    return found | {"start, % of SG's end": 100 * found["start"] / final, "CPU s": run["points"][-1]["seconds"]}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t; infinite for a single value."""
    if len(values) < 2:
        return mean(values), float("inf")
    return mean(values), float(stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5)


class Summary:
    """Of all runs that are there.

    Args:
        runs: By the keys of their cells.
        rates: Learning rates among which arms chose.
    """

    def __init__(self, runs: dict[str, Run], rates: Sequence[float] = RATES) -> None:
        self.runs, self.rates = runs, rates

    def chosen(self, task: str, arm: str) -> tuple[float, str] | None:
        """Rate and schedule; None where the choice is not complete."""
        if arm == RAW:
            return 0.0, ""
        try:
            return choice(task, arm, self.runs, self.rates)
        except KeyError:
            return None

    def reference(self, task: str) -> str | None:
        """SG's arm; None where the choice is not complete."""
        try:
            return better_sg(task, self.runs, self.rates)
        except KeyError:
            return None

    def paired(self, task: str, arm: str, setting: tuple[float, str] | None) -> dict[int, Run]:
        """Runs that ended, by seed."""
        keys = {} if setting is None else {s: Cell(task, arm, *setting, s).key for s in range(EVERY[task].seeds)}
        there = {seed: self.runs[key] for seed, key in keys.items() if key in self.runs}
        return {seed: with_work(run) for seed, run in there.items() if "error" not in run}

    def figures(self, task: str, arm: str, setting: tuple[float, str] | None = None) -> dict[str, list[Figures]]:
        """Figures of an arm and of SG at the same seeds, at the arms' own choices or at one setting for both."""
        sg = self.reference(task)
        if sg is None:
            return {}
        theirs = self.paired(task, sg, setting or self.chosen(task, sg))
        own = self.paired(task, arm, setting or self.chosen(task, arm))
        seeds = sorted(own.keys() & theirs.keys())
        return {arm: [figures(own[s], theirs[s]) for s in seeds], "SG": [figures(theirs[s], theirs[s]) for s in seeds]}

    def differences(self, task: str, arm: str, setting: tuple[float, str] | None = None) -> dict[str, list[float]]:
        """Paired differences to SG of all scores, by seed."""
        found = self.figures(task, arm, setting)
        pairs = list(zip(found.get(arm, []), found.get("SG", []), strict=True))
        names = [name for name in (*MATCHED, *TIMED, *WORKED) if pairs and name in pairs[0][0]]
        return {name: [own[name] - sg[name] for own, sg in pairs] for name in names}  # type: ignore[operator]  # both have them

    def between(self, task: str, arm: str, other: str) -> list[float]:
        """Paired differences of two arms at the end, each at its own choice, by seed."""
        own, theirs = (self.paired(task, name, self.chosen(task, name)) for name in (arm, other))
        ends = [{seed: run["points"][-1]["test"] for seed, run in runs.items()} for runs in (own, theirs)]
        return [ends[0][seed] - ends[1][seed] for seed in sorted(own.keys() & theirs.keys())]

    # -- tables -------------------------------------------------------------------------------------------------------

    def print(self, tasks: Sequence[str]) -> None:
        """Two tables a task, and those over tasks."""
        for task in tasks:
            kind = "100 (1 - NRMSE)" if EVERY[task].loss == "squared" else "%"
            named = f"{task}: test score, {kind}; SG is {self.reference(task)}"
            tell(f"{named}; means over seeds", self.scores(task))
            rows = [self.told(arm, self.differences(task, arm)) for arm in ARMS]
            tell(f"{task}: paired differences to SG, 95 % intervals", [row for row in rows if len(row) > 1])
        classified = [task for task in tasks if EVERY[task].loss != "squared"]
        for title, setting in (("each at its best rate", None), ("all at 1e-3, constant", UNTUNED)):
            tell(f"Differences to SG, means over tasks: {title}", self.over_tasks(classified, setting))

    def scores(self, task: str) -> list[dict[str, Any]]:
        """A row an arm: its choice, its scores, and the end at 1e-3 held constant."""
        rows = []
        for arm in ARMS:
            found = self.figures(task, arm).get(arm)
            if found:
                rate, schedule = self.chosen(task, arm) or UNTUNED
                row = {"arm": arm, "rate": f"{rate:g} {schedule}", "seeds": len(found)}
                names = [name for name in found[0] if name not in (*TIMED, *WORKED)]
                row |= {name: _mean([each[name] for each in found]) for name in names}
                own, raw = (
                    self.paired(task, arm, self.chosen(task, arm)),
                    self.paired(task, RAW, self.chosen(task, RAW)),
                )
                passed = [first_above(own[s], raw[s]["points"][0]["test"]) for s in own.keys() & raw.keys()]
                untuned = [run["points"][-1]["test"] for run in self.paired(task, arm, UNTUNED).values()]
                rows.append(row | {"above raw, ep": _mean(passed), "end at 1e-3": _mean(untuned)})
        return rows

    def over_tasks(self, tasks: Sequence[str], setting: tuple[float, str] | None) -> list[dict[str, Any]]:
        """Means of the tasks' means; of the tasks with intervals, how many are wholly below 0."""
        rows = []
        for arm in ARMS:
            each = [found for task in tasks if (found := self.differences(task, arm, setting))]
            if each:
                names = (*MATCHED, *TIMED, *WORKED)
                row = self.told(arm, {n: [mean(d[n]) for d in each if n in d] for n in names})
                ends = [interval(found["end"]) for found in each]
                rows.append(row | {"tasks": len(each), "worse": sum(m + half < 0 for m, half in ends)})
        return rows

    @staticmethod
    def told(arm: str, differences: dict[str, list[float]]) -> dict[str, Any]:
        """A row of means and intervals."""
        cells = {name: interval(values) for name, values in differences.items() if values}
        return {"arm": arm} | {name: f"{m:+.1f}±{half:.1f}" for name, (m, half) in cells.items()}

    def markdown(self, tasks: Sequence[str], arm: str) -> str:
        """One table of an arm beside SG, for the docs: scores, the difference at the end, and both at 1e-3.

        The last rows have the means over tasks that classify, shallow, deep and all, with intervals over tasks.
        """
        lines = [
            f"| task (seeds) | before training | epoch 1 | epoch 2 | epoch 5 | end | {arm} ahead at the end | at equal "
            "CPU time | ended in SG's CPU time | end, both at 1e-3 | linear model of the inputs |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        both, looks, ahead = ("SG", arm), [name for name in MATCHED if name != "half"], ("end", "t end")
        every: list[tuple[bool, dict[str, list[float | None]], dict[str, float]]] = []
        for task in tasks:
            found, untuned = self.figures(task, arm), self.figures(task, arm, UNTUNED)
            if not found.get(arm) or len(untuned.get(arm, [])) < len(found[arm]):
                continue  # not complete
            row = {look: [_mean([run.get(look) for run in found[who]]) for who in both] for look in looks}
            row["flat"] = [_mean([run["end"] for run in untuned[who]]) for who in both]
            differences = {name: self.differences(task, arm)[name] for name in ahead}
            differences["shortened"] = self.differences(task, OURS_IN_TIME).get("end", [])
            raw = [run["points"][0]["test"] for run in self.paired(task, RAW, (0.0, "")).values()]
            name = f"{task} ({len(found[arm])})"
            lines.append(_line(name, row, differences, f"{mean(raw):.1f}" if raw else "-"))
            if EVERY[task].loss != "squared":
                gains = {name: mean(values) for name, values in differences.items() if values}
                every.append((EVERY[task].deep, row, gains))
        for kind, depths in (
            (" of fewer than four layers", [False]),
            (" of four and more", [True]),
            ("", [False, True]),
        ):
            chosen = [(row, gains) for deep, row, gains in every if deep in depths]
            if len(chosen) < 2 or (kind and len(chosen) == len(every)):
                continue
            rows, apart = zip(*chosen, strict=True)
            row = {look: [_mean(each) for each in zip(*(r[look] for r in rows), strict=True)] for look in rows[0]}
            over = {name: [each[name] for each in apart if name in each] for name in (*ahead, "shortened")}
            lines.append(_line(f"mean of {len(rows)} tasks{kind}", row, over, ""))
        return "\n".join(lines)

    def arms(self, tasks: Sequence[str], arm: str) -> str:
        """An arm beside each of the others, for the docs: a row of means over the tasks that both were run on."""
        lines = [f"| other | tasks | before training | epoch 1 | end | {arm} ahead at the end | ahead, behind |"]
        lines.append("|---|---|---|---|---|---|---|")
        for other in ARMS:
            scores: dict[str, list[tuple[float, float]]] = {"start": [], "ep 1": [], "end": []}
            ends: list[list[float]] = []
            for task in tasks:
                runs = [self.paired(task, name, self.chosen(task, name)) for name in (other, arm)]
                seeds = sorted(runs[0].keys() & runs[1].keys())
                if other in (arm, OURS_IN_TIME, RAW) or len(seeds) < len(runs[1]):
                    continue  # not complete
                theirs, own = ([matched(each[seed]) for seed in seeds] for each in runs)
                for look, values in scores.items():
                    values.append((mean(run[look]["test"] for run in theirs), mean(run[look]["test"] for run in own)))
                ends.append(self.between(task, arm, other))
            if ends:
                told = [" / ".join(f"{mean(side):.1f}" for side in zip(*each, strict=True)) for each in scores.values()]
                centre, half = interval([mean(each) for each in ends])
                sure = [interval(each) for each in ends]
                count = f"{sum(m > half for m, half in sure)}, {sum(-m > half for m, half in sure)}"
                lines.append(f"| {' | '.join([other, str(len(ends)), *told, f'{centre:+.1f} ± {half:.1f}', count])} |")
        return "\n".join(lines)

    # -- picture ------------------------------------------------------------------------------------------------------

    def plot(self, tasks: Sequence[str], arms: Sequence[str], columns: int = 4) -> "Figure":
        """Test score of some arms over CPU time, a panel a task, with 95 % intervals of the means over seeds."""
        from matplotlib.figure import Figure

        shown = [task for task in tasks if self.reference(task)]
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, task in zip(panels, shown, strict=False):
            self._panel(panel, task, arms)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        handles = {label: h for p in figure.axes for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        return figure

    def _panel(self, panel: Any, task: str, arms: Sequence[str]) -> None:
        for place, arm in enumerate(ARMS):
            if arm not in arms:
                continue
            runs, colour = list(self.paired(task, arm, self.chosen(task, arm)).values()), f"C{place % 10}"
            if arm == RAW and runs:
                panel.axhline(mean(run["points"][0]["test"] for run in runs), color="0.5", linestyle=":", label=arm)
            elif runs:
                first, last = (max(run["points"][point]["seconds"] for run in runs) for point in (0, -1))
                seconds = np.linspace(first, last, 200)
                centre, half = map(
                    np.array, zip(*(interval([at(r, s, float("nan")) for r in runs]) for s in seconds), strict=True)
                )
                style = "-" if place < 10 else "--"
                panel.plot(seconds, centre, style, color=colour, label=arm, linewidth=1.2)
                panel.fill_between(seconds, centre - half, centre + half, color=colour, alpha=0.15, linewidth=0)
        panel.set(title=task, xlabel="CPU s", ylabel="test score", ylim=(0, 100))
        panel.set_xscale("symlog", linthresh=0.3)
        panel.set_xlim(left=0)


def _line(name: str, row: dict[str, list[float | None]], ahead: dict[str, list[float]], raw: str) -> str:
    """A row of the table for the docs: SG's score and the arm's, and by how much this is ahead."""
    told = ["-" if None in both else " / ".join(f"{score:.1f}" for score in both) for both in row.values()]
    *scores, flat = told
    differences = ["{:+.1f} ± {:.1f}".format(*interval(values)) if values else "-" for values in ahead.values()]
    return f"| {' | '.join([name, *scores, *differences, flat, raw])} |"


def tell(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows; what one of them lacks is empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    show(title, [{name: row.get(name) for name in names} for row in rows], 280)


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a run has none, as one that never got there."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None
