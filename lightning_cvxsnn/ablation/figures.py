"""Figures of a sweep, one panel each: curves with bands, solves, and a metric over an axis of the grid.

Figures are made without pyplot, inside ``style()``. In SVG their text stays text: it can be searched, copied and
read aloud.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lightning_cvxsnn.ablation.results import Results, words
from lightning_cvxsnn.ablation.statistics import interval
from lightning_cvxsnn.ablation.tables import Scale

# Okabe and Ito: colours that differ for colour-blind eyes too. The baseline is grey.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
_BASELINE = "#555555"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.labelcolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lightning_cvxsnn",  # equal figures are equal files
}
_WIDTH, _HEIGHT = 4.4, 2.5  # inches; of the height that of the axes alone

Line = tuple[str, str]  # colour and line style


@dataclass(frozen=True)
class Panel:
    """A figure of the report.

    Attributes:
        task: What it belongs to.
        kind: What it shows.
        setting: At which setting; empty if there is only one.
        figure: The figure.
    """

    task: str
    kind: str
    setting: str
    figure: Figure

    @property
    def name(self) -> str:
        """Name for its files."""
        words = " ".join(filter(None, (self.task, self.kind, self.setting)))
        return re.sub(r"[^\w.=]+", "-", words).strip("-")


def style() -> AbstractContextManager[None]:
    """How all figures look: draw and save them inside."""
    return matplotlib.rc_context(_STYLE)


def lines_of(results: Results) -> dict[str, Line]:
    """A colour and a line style for each method, the same in all figures.

    Args:
        results: Of ``read_results``.
    """
    methods = list(dict.fromkeys(results.cells["method"]))
    others = [method for method in methods if method != results.baseline]
    looks = cycle([(color, style) for style, color in product(("-", "--", ":"), _COLORS)])
    return dict.fromkeys(methods, (_BASELINE, "-")) | dict(zip(others, looks, strict=False))


def panels(results: Results) -> Iterator[Panel]:
    """All figures of a sweep: task by task, kind by kind.

    Args:
        results: Of ``read_results``.
    """
    looks = lines_of(results)
    history, solves = results.of_cells(results.history), results.of_cells(results.solves)
    metric = curve_metric(results)
    kinds: list[tuple[str, pd.DataFrame, Callable[[pd.DataFrame], Figure]]] = []
    if metric is not None:
        scale, lines = Scale.of(metric, history[metric]), history.dropna(subset=[metric])
        for column, over in (("epoch", "epochs"), ("cpu_seconds", "CPU time")):
            kinds.append((f"{scale.name} over {over}", lines, partial(_curve, metric, scale, column, looks)))
    for field, kind in (("gap", "duality gap of solves"), ("primal", "objective of solves")):
        kinds.append((kind, solves, partial(_solves, field, looks)))
    for task, runs in results.runs.groupby("task", sort=False):
        for key in results.axes:
            yield from _over_axis(results, runs, key, looks)
        for kind, frame, draw in kinds:
            for setting, here in frame[frame["task"] == task].groupby("setting", sort=False):
                yield Panel(task, kind, setting, draw(here))


def curve_metric(results: Results) -> str | None:
    """The metric of validations that is drawn over training: the sweep's, or its validation twin.

    Args:
        results: Of ``read_results``.
    """
    candidates = (results.metric, results.metric.replace("test", "val", 1), "val_accuracy", "val_loss")
    return next((name for name in candidates if name in results.history), None)


def _curve(metric: str, scale: Scale, column: str, looks: dict[str, Line], history: pd.DataFrame) -> Figure:
    """The metric over ``column``: at each validation the mean over seeds of both."""
    figure, axes = _panel(column.replace("cpu_seconds", "CPU seconds"), scale.label)
    for method, lines in history.groupby("method", sort=False):
        points = [
            (group[column].mean(), *(scale.factor * each for each in interval(group[metric])))
            for _, group in lines.groupby(lines.groupby("id").cumcount())  # of several fits two share an epoch
        ]
        _band(axes, method, points, looks[method])
    if column == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, metric)
    return figure


def _over_axis(results: Results, runs: pd.DataFrame, key: str, looks: dict[str, Line]) -> Iterator[Panel]:
    """The metric over one axis of the grid, a figure for each combination of the others."""
    others = [other for other in results.axes if other != key]
    runs = runs[[key in settings for settings in runs["settings"]]]
    given = [settings[key] for settings in runs["settings"]]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
    texts = list(dict.fromkeys(words(value) for value in (sorted(given) if numbers else given)))
    if len(texts) < 2:
        return
    places = {text: float(text) if numbers else float(place) for place, text in enumerate(texts)}
    at = [places[words(value)] for value in given]
    elsewhere = [
        ", ".join(f"{results.axes[other]} = {words(settings[other])}" for other in others if other in settings)
        for settings in runs["settings"]
    ]
    scale = Scale.of(results.metric, runs["value"])
    for where, cells in runs.assign(at=at, elsewhere=elsewhere).groupby("elsewhere", sort=False):
        figure, axes = _panel(results.axes[key], scale.label)
        for method, lines in cells.groupby("method", sort=False):
            points = [
                (x, *(scale.factor * each for each in interval(group["value"]))) for x, group in lines.groupby("at")
            ]
            _band(axes, method, points, looks[method])
        _ticks(axes, places, numbers)
        _finish(figure, axes, results.metric)
        yield Panel(cells["task"].iloc[0], f"{scale.name} over {results.axes[key]}", where, figure)


def _ticks(axes: Axes, places: Mapping[str, float], numbers: bool) -> None:
    """Marks at the values themselves; on a logarithmic axis if they span more than a factor of eight."""
    low, high = min(places.values()), max(places.values())
    if numbers and low > 0 and high >= 8 * low:
        axes.set_xscale("log")
    if not numbers or len(places) <= 8:
        long = sum(map(len, places)) > 36
        axes.set_xticks([*places.values()], [*places], rotation=30 if long else 0, ha="right" if long else "center")
        axes.minorticks_off()


def _solves(field: str, looks: dict[str, Line], solves: pd.DataFrame) -> Figure:
    """Gap or objective of every solve, a line for each seed; dotted the objective of the readout as stored.

    They are drawn over the epoch, or by number where a cell has several fits, whose epochs begin anew.
    """
    solves = solves.assign(number=solves.groupby("id").cumcount() + 1)
    over = "epoch" if solves.groupby("id")["epoch"].is_monotonic_increasing.all() else "number"
    figure, axes = _panel("epoch" if over == "epoch" else "solve", "duality gap" if field == "gap" else "objective")
    for method, lines in solves.groupby("method", sort=False):
        color, style = looks[method]
        for number, (_, cell) in enumerate(lines.groupby("seed", sort=False)):
            label = method if number == 0 else "_"
            look: dict[str, Any] = {"color": color, "linewidth": 1.2, "alpha": 0.7}
            axes.plot(cell[over], cell[field], linestyle=style, marker="o", label=label, **look)
            if field == "primal":
                axes.plot(cell[over], cell["dual"] + cell["gap_written"], linestyle=":", marker="x", **look)
    if field == "gap":
        _decades(axes, solves["gap"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes)
    return figure


def cell_figure(history: pd.DataFrame, reports: Sequence[Mapping[str, Any]], metric: str | None) -> Figure | None:
    """A cell's validations and the gaps of its solves; None without either.

    Args:
        history: Of ``read_history``.
        reports: Of ``read_reports``.
        metric: Which metric to draw.
    """
    drawn = metric is not None and metric in history and bool(history[metric].notna().any())
    rows = drawn + bool(reports)
    if not rows:
        return None
    figure = Figure(figsize=(_WIDTH, 2.0 * rows + 0.6))
    figure.subplots_adjust(left=0.17, right=0.97, top=0.97, bottom=0.55 / (2.0 * rows + 0.6))
    every = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    if drawn:
        points = history.dropna(subset=[metric])
        scale = Scale.of(str(metric), points[metric])
        every[0].plot(points["epoch"], scale.factor * points[metric], color=_COLORS[0], marker="o")
        every[0].set_ylabel(scale.label)
    if reports:
        gaps = pd.Series([report["gap"] for report in reports], dtype=float)
        every[-1].plot([report["epoch"] for report in reports], gaps, color=_COLORS[1], marker="o", linestyle="none")
        _decades(every[-1], gaps)
        every[-1].set_ylabel("duality gap")
    every[-1].set_xlabel("epoch")
    every[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _band(axes: Axes, method: str, points: Sequence[tuple[float, ...]], look: Line) -> None:
    """A line through means, and their intervals as a band."""
    color, style = look
    x, mean, low, high = np.array(points, dtype=float).reshape(-1, 4).T
    axes.plot(x, mean, color=color, linestyle=style, marker="o", label=method)
    axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)


def _decades(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis of whole decades."""
    axes.set_yscale("log", nonpositive="clip")
    positive = values[(values > 0) & np.isfinite(values)]
    if len(positive):
        low, high = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
        axes.set_ylim(10**low, 10 ** max(high, low + 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"1e{round(np.log10(value))}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, axes: Axes, metric: str | None = None) -> None:
    """Limits, legend and margins; a metric's lines decide: bands of three seeds are wide and would flatten them."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.array([])])
    drawn = drawn[np.isfinite(drawn)]
    if metric is not None and len(drawn):
        margin = 0.12 * max(float(np.ptp(drawn)), 0.01 * float(np.abs(drawn).max()), 1e-12)
        axes.set_ylim(drawn.min() - margin, drawn.max() + margin)
    handles, names = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, names), default=0) <= 14 else 2
    tilted = any(label.get_rotation() for label in axes.get_xticklabels())
    below = 0.55 + 0.2 * -(-len(names) // columns) + 0.6 * tilted  # inches
    figure.set_size_inches(_WIDTH, _HEIGHT + below)
    figure.subplots_adjust(left=0.17, right=0.97, top=0.97, bottom=below / (_HEIGHT + below))
    figure.legend(handles, names, loc="lower center", ncols=columns, fontsize=9, borderaxespad=0.1)


def svg(figure: Figure) -> str:
    """The figure as an SVG file.

    Args:
        figure: The figure.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def inline(text: str, name: str) -> str:
    """An SVG file as an element of a page.

    Args:
        text: The file.
        name: Unique in the page: it keeps the element's ids apart from those of others.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    prefix = re.sub(r"\W+", "-", name)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text)
