"""Two training runs side by side: what both logged, at its end and at its best, and as curves."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lightning_cvxsnn.ablation import figures
from lightning_cvxsnn.ablation.metric_names import better_mode
from lightning_cvxsnn.ablation.results import read_history

#: Columns of logs that say when, and measure nothing.
_PLACES = ("epoch", "step", "stage", "cpu_seconds")
_FORMATS = (".pdf", ".png", ".svg")


def compare_runs(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Set what two runs logged side by side.

    Args:
        a: Folder of a run: a cell of ``cvxsnn ablate``, or logs of Lightning's ``CSVLogger`` (``metrics.csv``) or
            ``TensorBoardLogger`` (which needs the package tensorboard). Where several runs are inside, the newest
            counts.
        b: Folder of the other.

    Returns:
        A line for each metric that both logged: ``metric``, ``final_a``, ``final_b``, ``difference`` (b - a, at the
        end), ``best_a``, ``best_b`` and ``best``: ``"min"`` for losses, errors and gaps, else ``"max"``.

    Raises:
        MisconfigurationException: If a folder has no logs, or the two share no metric.
    """
    logs = [_read(Path(folder)) for folder in (a, b)]
    lines = []
    for metric in _shared(*logs):
        values = [log[metric].dropna() for log in logs]
        final_a, final_b = (float(each.iloc[-1]) for each in values)
        best = better_mode(metric)
        best_a, best_b = (float(getattr(each, best)()) for each in values)
        lines.append((metric, final_a, final_b, final_b - final_a, best_a, best_b, best))
    columns = ["metric", "final_a", "final_b", "difference", "best_a", "best_b", "best"]
    return pd.DataFrame(lines, columns=columns)


def print_comparison(frame: pd.DataFrame) -> None:
    """Print ``compare_runs`` as a table.

    Args:
        frame: Of ``compare_runs``.
    """
    table = Table(box=SIMPLE_HEAD)
    table.add_column("metric", overflow="fold")
    for name in ("A, end", "B, end", "B - A", "A, best", "B, best"):
        table.add_column(name, justify="right")
    for line in frame.itertuples():
        numbers = (f"{value:.4g}" for value in (line.final_a, line.final_b))
        best = (f"{value:.4g} ({line.best})" for value in (line.best_a, line.best_b))
        table.add_row(line.metric, *numbers, f"{line.difference:+.3g}", *best)
    Console().print(table)


def draw_comparison(a: str | Path, b: str | Path, output: str | Path) -> None:
    """Draw the curves of all metrics that both runs logged, over the Trainer's step.

    Args:
        a: Folder of a run, as for ``compare_runs``.
        b: Folder of the other.
        output: File to write, .png, .svg or .pdf.

    Raises:
        MisconfigurationException: If a folder has no logs, the two share no metric, or the file has another ending.
    """
    if Path(output).suffix not in _FORMATS:
        raise MisconfigurationException(f"Found output {output}. Expected a file that ends in .png, .svg or .pdf.")
    logs = [_read(Path(folder)) for folder in (a, b)]
    metrics = _shared(*logs)
    rows = -(-len(metrics) // 2)
    with figures.style():
        figure = Figure(figsize=(9, 2.4 * rows + 0.4), layout="constrained")
        every = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, metric in zip(every, metrics, strict=False):
            for log, folder, color in zip(logs, (a, b), ("#0072b2", "#d55e00"), strict=True):
                points = log.dropna(subset=[metric])
                marker = "o" if len(points) < 40 else ""
                axes.plot(points["step"], points[metric], color=color, marker=marker, label=str(folder))
            axes.set_title(metric)
            axes.set_xlabel("step")
        for axes in every[len(metrics) :]:
            axes.remove()
        figure.legend(*every[0].get_legend_handles_labels(), loc="outside upper left")
        figure.savefig(output, dpi=150)


def _shared(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Metrics that both have a finite value of."""
    shared = [
        name for name in a if name in b and name not in _PLACES and a[name].notna().any() and b[name].notna().any()
    ]
    if not shared:
        raise MisconfigurationException(
            f"Found no metric that both runs logged (A: {_names(a)}; B: {_names(b)}). Expected at least one."
        )
    return shared


def _names(log: pd.DataFrame) -> str:
    return ", ".join(name for name in log if name not in _PLACES) or "none"


def _read(folder: Path) -> pd.DataFrame:
    """Logged values by name, a line for each time something was logged, with its step; not finite ones are NaN."""
    if (folder / "history.csv").exists():
        log = read_history(folder / "history.csv")
    elif csvs := sorted(folder.rglob("metrics.csv"), key=_version):
        log = read_history(csvs[-1])
    elif events := sorted(folder.rglob("events.out.tfevents.*"), key=_version):
        log = _read_events(events[-1].parent)
    else:
        raise MisconfigurationException(
            f"Found no logs in {folder}. Expected a cell of cvxsnn ablate, or a folder of Lightning's CSVLogger or "
            "TensorBoardLogger."
        )
    return log.where(np.isfinite(log))


def _version(path: Path) -> tuple[int, float]:
    """Of several runs in a folder that of the highest ``version_N``, then the newest file."""
    found = re.findall(r"version_(\d+)", str(path))
    return int(found[-1]) if found else -1, path.stat().st_mtime


def _read_events(folder: Path) -> pd.DataFrame:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise MisconfigurationException(
            f"Found TensorBoard logs in {folder}, and no package tensorboard to read them. Expected it: pip install "
            "tensorboard."
        ) from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
        if name != "hp_metric"
    }
    return pd.DataFrame(found).sort_index().rename_axis("step").reset_index()
