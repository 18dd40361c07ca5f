"""A sweep in three sentences: what was run, which differences are real, what is inside the noise or failed."""

from typing import Any

import pandas as pd

from lightning_cvxsnn.ablation.results import Results
from lightning_cvxsnn.ablation.statistics import ALONE, BETTER, FEW, NOISE, WORSE
from lightning_cvxsnn.ablation.tables import Scale, amount

#: How many differences a sentence names; the table has all.
_MOST_NAMED = 4


def summarise(results: Results, frame: pd.DataFrame) -> list[str]:
    """The three sentences.

    Args:
        results: Of ``read_results``.
        frame: Of ``tables.comparison``.

    Returns:
        What was run; which differences are real; what is inside the noise, has too few seeds, or failed.
    """
    return [_what_was_run(results), _what_is_real(results, frame), _what_is_not(results, frame)]


def _what_was_run(results: Results) -> str:
    runs, finished = results.runs, results.runs[results.runs["state"] == "finished"]
    parts = [_counted(runs["method"], "method"), _counted(runs["task"], "task")]
    parts += [_number(runs["setting"].nunique(), "setting")] if results.axes else []
    parts += [_number(runs["seed"].nunique(), "seed")]
    before = len(results.cells) - len(runs)
    choice = f", after {_number(before, 'run')} that chose {results.chosen}" if before else ""
    each = finished.groupby("method", sort=False)["cpu_seconds"].mean()
    means = ", ".join(f"{method} {amount(seconds)}" for method, seconds in each.items())
    cost = f"{amount(results.cells['cpu_seconds'].sum())} CPU seconds"
    cost += f" (a run: {means})" if 1 < len(each) <= _MOST_NAMED else ""
    better = "larger" if results.mode == "max" else "smaller"
    return (
        f"{len(finished)} of {_number(len(runs), 'run')} finished{choice}: {', '.join(parts[:-1])} and {parts[-1]}, "
        f"compared by {results.metric.replace('_', ' ')} ({better} is better), "
        f"trained in {cost}."
    )


def _what_is_real(results: Results, frame: pd.DataFrame) -> str:
    compared = frame[frame["verdict"].isin([BETTER, WORSE, NOISE, FEW])]
    if not len(compared):
        return "Nothing was compared: it takes two methods, one of them the baseline."
    tested = int((compared["verdict"] != FEW).sum())
    scale = Scale.of(results.metric, results.runs["value"])
    said = []
    for verdict in (BETTER, WORSE):
        real = [_named(results, lines, scale) for _, lines in _real(compared, verdict)]
        more = f" and {len(real) - _MOST_NAMED} more" if len(real) > _MOST_NAMED else ""
        if real:
            said.append(f"{verdict} than {results.baseline} {_be(len(real))} {'; '.join(real[:_MOST_NAMED])}{more}")
    family = f"paired t tests at 5 %, corrected by Holm's method for {_number(tested, 'comparison')}"
    if not tested:
        return "No difference could be tested: too few seeds (three pairs are needed)."
    if not said:
        return f"No difference from {results.baseline} is real, by {family}."
    text = ", and ".join(said)
    return f"{text[0].upper()}{text[1:]}, by {family}."


def _real(compared: pd.DataFrame, verdict: str) -> list[tuple[Any, pd.DataFrame]]:
    """Comparisons with this verdict by method and task, the largest first."""
    grouped = compared[compared["verdict"] == verdict].groupby(["method", "task"], sort=False)
    return sorted(grouped, key=lambda item: -item[1]["difference"].abs().max())


def _named(results: Results, lines: pd.DataFrame, scale: Scale) -> str:
    """A method on a task, at one setting or several, and how far it is ahead."""
    first = lines.iloc[0]
    settings = int((results.runs.drop_duplicates(["task", "setting"])["task"] == first["task"]).sum())
    place = f" on {first['task']}" if first["task"] else ""
    if settings > 1:
        named = [
            ", ".join(f"{name} = {line[name]}" for name in results.axes.values()) for line in lines.to_dict("records")
        ]
        many = f"{len(lines)} of {settings} settings" if len(lines) < settings else f"all {settings} settings"
        place += f" at {named[0] if len(named) == 1 else many}"
    ends = lines.loc[[lines["difference"].idxmin(), lines["difference"].idxmax()], "difference"]
    low, high = (scale.difference(end, float("nan"), float("nan")) for end in ends)
    half = scale.difference(first["difference"], first["difference_low"], first["difference_high"])
    unit = " points" if scale.factor == 100 else ""
    return f"{first['method']}{place} ({half if len(lines) == 1 else f'{low} to {high}'}{unit})"


def _what_is_not(results: Results, frame: pd.DataFrame) -> str:
    counts = frame["verdict"].value_counts()
    states = results.cells["state"].value_counts()
    diverged = int(((results.runs["state"] == "finished") & results.runs["value"].isna()).sum())
    parts = [f"{_number(counts[NOISE], 'difference')} {_be(counts[NOISE])} inside the noise"] if NOISE in counts else []
    parts += [f"{_number(counts[FEW], 'comparison')} {_have(counts[FEW])} too few seeds"] if FEW in counts else []
    parts += (
        [f"{_number(counts[ALONE], 'arm')} {_have(counts[ALONE])} no baseline"]
        if ALONE in counts and results.baseline
        else []
    )
    parts += [f"{_number(states['failed'], 'cell')} failed"] if "failed" in states else []
    parts += [f"{_number(diverged, 'run')} ended without a finite {results.metric}"] if diverged else []
    open_ = int(states.get("running", 0) + states.get("not started", 0))
    parts += [f"{_number(open_, 'cell')} {_be(open_)} not finished"] if open_ else []
    if not parts:
        return "Nothing is inside the noise, and no cell failed."
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if "failed" in states else f"{text[0].upper()}{text[1:]}; no cell failed."


def _counted(names: pd.Series, noun: str) -> str:
    different = [name for name in dict.fromkeys(names) if name]
    listed = f" ({', '.join(different)})" if 0 < len(different) <= _MOST_NAMED else ""
    return f"{_number(max(len(different), 1), noun)}{listed}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
