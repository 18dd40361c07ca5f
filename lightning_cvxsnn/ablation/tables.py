"""Tables of a sweep: as numbers (CSV), and in words (Markdown, and the report's HTML)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lightning_cvxsnn.ablation.results import Results, words
from lightning_cvxsnn.ablation.statistics import ALONE, ARM, differences, means


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: As it is read.
        order: What a column is sorted by; the text where it is None.
        link: Cell whose page the entry opens.
    """

    text: str
    order: float | None = None
    link: str | None = None


@dataclass
class Table:
    """Lines of entries; a column's kind is ``"name"``, ``"words"`` (which one may filter by) or ``"number"``."""

    columns: list[str]
    kinds: list[str]
    rows: list[list[Entry]] = field(default_factory=list)

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *([entry.text for entry in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


@dataclass(frozen=True)
class Scale:
    """How a metric is written: accuracies in %.

    Example:
        >>> scale = Scale.of("val_accuracy", [0.5, 0.93])
        >>> scale.label, scale.mean(0.9312, 0.92, 0.9424), scale.difference(0.0112, 0.0, 0.0224)
        ('val accuracy, %', '93.1 ± 1.1', '+1.1 ± 1.1')
    """

    name: str
    factor: float = 1.0

    @property
    def label(self) -> str:
        """For an axis or a column."""
        return f"{self.name}, %" if self.factor == 100 else self.name

    @classmethod
    def of(cls, metric: str, values: Sequence[float] | pd.Series) -> "Scale":
        """The scale of a metric with these values."""
        given = np.asarray(values, dtype=float)
        given = given[np.isfinite(given)]
        percent = "acc" in metric.lower() and len(given) > 0 and bool(np.all((given >= 0) & (given <= 1)))
        return cls(metric.replace("_", " "), 100.0 if percent else 1.0)

    def mean(self, mean: float, low: float, high: float) -> str:
        """A mean with half its interval."""
        return self._half(self._number(mean), low, high) if np.isfinite(mean) else "-"

    def difference(self, mean: float, low: float, high: float) -> str:
        """A difference with its sign, and half its interval."""
        return self._half(self._number(mean, "+"), low, high) if np.isfinite(mean) else "-"

    def _half(self, number: str, low: float, high: float) -> str:
        return f"{number} ± {self._number((high - low) / 2)}" if np.isfinite(low) else number

    def _number(self, value: float, sign: str = "") -> str:
        return f"{value * self.factor:{sign}.1f}" if self.factor == 100 else f"{value:{sign}.3g}"


def comparison(results: Results) -> pd.DataFrame:
    """Every arm with its mean, its difference from the baseline and its budget, as numbers.

    Args:
        results: Of ``read_results``.

    Returns:
        Lines of ``statistics.means`` joined with those of ``statistics.differences``, with a column for each axis.
    """
    frame = means(results.runs)
    if results.baseline is not None:
        found = differences(results.runs, results.baseline, results.mode)
        frame = frame.merge(found, on=ARM, how="left")
    else:
        columns = ["pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict"]
        frame = frame.assign(**dict.fromkeys(columns, np.nan))
    verdict = frame["verdict"].astype(object)
    frame["verdict"] = verdict.where(verdict.notna(), np.where(frame["method"] == results.baseline, "baseline", ALONE))
    frame = frame.sort_values(["task", "setting"], key=_as_they_come, kind="stable")
    settings = results.runs.drop_duplicates("setting").set_index("setting")["settings"]
    for place, (key, name) in enumerate(results.axes.items()):
        values = [words(settings[setting][key]) if key in settings[setting] else "" for setting in frame["setting"]]
        frame.insert(1 + place, name, values)
    frame = frame.drop(columns="setting")
    return frame.rename(columns={"chosen": f"chosen_{results.chosen}"} if results.chosen else {}).drop(
        columns=[] if results.chosen else "chosen"
    )


def results_table(results: Results, frame: pd.DataFrame) -> Table:
    """``comparison`` in words.

    Args:
        results: Of ``read_results``.
        frame: Of ``comparison``.

    Returns:
        The table.
    """
    scale = Scale.of(results.metric, results.runs["value"])
    axes = list(frame.columns[1 : 1 + len(results.axes)])
    chosen = [column for column in frame.columns if column.startswith("chosen_")]
    table = Table(
        columns=[
            *("task", *axes, "method", "seeds", scale.label, f"against {results.baseline}", "p (Holm)", "verdict"),
            *(f"chosen {results.chosen}" for _ in chosen),
            *("epochs", "CPU seconds", "trained parameters"),
        ],
        kinds=["words", *("words" for _ in axes), "words", "number", "number", "number", "number", "words"]
        + ["words" for _ in chosen]
        + ["number"] * 3,
    )
    for row in frame.to_dict("records"):
        mean, difference = ([row[f"{p}{name}"] for name in ends] for p, ends in _ENDS)
        compared = row["verdict"] not in ("baseline", ALONE)
        table.rows.append(
            [
                *(Entry(str(row[name]), _as_number(row[name])) for name in ("task", *axes, "method")),
                Entry(
                    f"{row['used']} of {row['seeds']}" if row["used"] < row["seeds"] else f"{row['seeds']}", row["used"]
                ),
                Entry(scale.mean(*mean), row["mean"]),
                Entry(scale.difference(*difference) if compared else "", row["difference"]),
                Entry(p_words(row["p_holm"]), row["p_holm"]),
                Entry(row["verdict"]),
                *(Entry(row[name]) for name in chosen),
                *(Entry(amount(row[name]), row[name]) for name in ("epochs", "cpu_seconds", "trained_parameters")),
            ]
        )
    return table


def _as_they_come(column: pd.Series) -> pd.Series:
    """Places of first appearance, to sort by."""
    return column.map({value: place for place, value in enumerate(column.unique())})


_ENDS = (("", ("mean", "low", "high")), ("difference", ("", "_low", "_high")))


def _as_number(text: Any) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def p_words(p: float) -> str:
    """A p value as one writes it.

    Example:
        >>> p_words(0.0312), p_words(0.00001), p_words(1.0), p_words(float("nan"))
        ('0.031', '< 0.001', '1', '')
    """
    if not np.isfinite(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def amount(value: float) -> str:
    """A count or a number of seconds, to about three digits.

    Example:
        >>> amount(12345.0), amount(3.14159), amount(10.0), amount(float("nan"))
        ('12,345', '3.14', '10', '-')
    """
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"


def cells_table(results: Results) -> Table:
    """All cells, each with a link to its page.

    Args:
        results: Of ``read_results``.

    Returns:
        The table.
    """
    scale = Scale.of(results.metric, results.cells["value"])
    stages = results.cells["stage"].nunique() > 1
    keys = dict(results.axes) | ({} if results.chosen is None else {results.choose: results.chosen})
    table = Table(
        ["cell", "task", "method", *keys.values(), "seed"]
        + ["stage"] * stages
        + ["state", scale.label]
        + ["epochs", "CPU seconds", "trained parameters"],
        ["name", "words", "words", *("words" for _ in keys), "words"]
        + ["words"] * stages
        + ["words", "number"]
        + ["number"] * 3,
    )
    for cell in results.cells.to_dict("records"):
        given = cell["settings"] | cell["choice"]
        settings = [words(given[key]) if key in given else "" for key in keys]
        table.rows.append(
            [
                Entry(cell["id"], cell["order"], cell["id"]),
                Entry(cell["task"]),
                Entry(cell["method"]),
                *(Entry(text, _as_number(text)) for text in settings),
                Entry(words(cell["seed"]), _as_number(words(cell["seed"]))),
                *([Entry({"choose": "choice", "run": "run"}[cell["stage"]])] if stages else []),
                Entry(cell["state"]),
                Entry(scale.mean(cell["value"], np.nan, np.nan), cell["value"]),
                *(Entry(amount(cell[name]), cell[name]) for name in ("epochs", "cpu_seconds", "trained_parameters")),
            ]
        )
    return table


def solves_table(results: Results) -> Table | None:
    """The solves of every arm that has any: how many, their gaps and their wall-clock seconds; None without a solve.

    Args:
        results: Of ``read_results``.

    Returns:
        The table.
    """
    solves = results.of_cells(results.solves)
    if not len(solves):
        return None
    columns = ["task", "setting", "method", "solves", "accepted", "largest gap", "largest as stored"]
    table = Table([*columns, "wall seconds a run"], ["words", "words", "words", *["number"] * 5])
    for (task, setting, method), lines in solves.groupby(ARM, sort=False):
        seconds = lines[["seconds_patterns", "seconds_solve"]].sum().sum() / lines["id"].nunique()
        gaps = [lines["gap"].max(), lines["gap_written"].max()]
        counts = [len(lines), int(lines["accepted"].sum())]
        table.rows.append(
            [
                *(Entry(each) for each in (task, setting, method)),
                *(Entry(str(count), count) for count in counts),
                *(Entry(f"{gap:.1e}", gap) for gap in gaps),
                Entry(amount(seconds), seconds),
            ]
        )
    return table


def choices_table(results: Results) -> Table | None:
    """What each method chose for itself before the sweep, with what was tried; None if nothing was chosen.

    Args:
        results: Of ``read_results``.

    Returns:
        The table.
    """
    cells = results.cells[results.cells["stage"] == "choose"]
    if not len(cells) or results.chosen is None:
        return None
    metrics = [cell.get(results.choice_metric, np.nan) for cell in cells["metrics"]]
    scale = Scale.of(results.choice_metric, metrics)
    columns = ["task", "setting", "method", results.chosen, "seeds", scale.label, "chosen"]
    table = Table(columns, ["words"] * 4 + ["number"] * 2 + ["words"])
    run = results.runs.groupby(ARM)["chosen"].agg(lambda values: {words(each) for each in values})
    tried = cells.assign(tried=cells["chosen"].map(words), found=metrics).groupby([*ARM, "tried"], sort=False)
    for (task, setting, method, value), lines in tried:
        mean = lines["found"].mean(skipna=False)  # a value that fails for a seed is not one to choose
        taken = value in run.get((task, setting, method), set())
        texts = [Entry(task), Entry(setting), Entry(method), Entry(value, _as_number(value))]
        counted = Entry(str(len(lines)), len(lines))
        table.rows.append([*texts, counted, Entry(scale.mean(mean, np.nan, np.nan), mean), Entry("chosen" * taken)])
    return table


def facts(cell: Mapping[str, Any], results: Results) -> list[tuple[str, str]]:
    """What is to be said of a cell in a line or two.

    Args:
        cell: A line of ``Results.cells``.
        results: Of ``read_results``.

    Returns:
        Names and values.
    """
    machine = cell["machine"] if isinstance(cell["machine"], dict) else {}
    found = {
        "task": cell["task"],
        "method": cell["method"],
        **{results.names[key]: words(value) for key, value in (cell["settings"] | cell["choice"]).items()},
        "seed": words(cell["seed"]),
        "epochs": amount(cell["epochs"]),
        "CPU seconds": amount(cell["cpu_seconds"]),
        "wall seconds": amount(cell["seconds"]),
        "trained parameters": amount(cell["trained_parameters"]),
        "attempts": words(cell["attempts"]),
        "machine": ", ".join(f"{key} {words(value)}" for key, value in machine.items() if value is not None),
    }
    return [(name, value) for name, value in found.items() if value not in ("", "-")]
