"""Figures of a run's solves and of a dictionary. Needs matplotlib, the extra ``plot``.

Figures are made without pyplot: none is shown, no backend is chosen, and pyplot's state stays as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reports.solve_report import SolveReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["log_solves", "raster", "solves"]

# Okabe and Ito: colours that differ for colour-blind eyes too.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777"


def solves(reports: Sequence[SolveReport]) -> Figure:
    """Draw a run's solves over the Trainer's steps, in three or four panels.

    - *objective*: the solution's and its certified lower bound, the gap between them shaded (at 1e-6 no wider than
      the line; its largest value is in the title), and, lighter, up to the objective of the readout as it is stored
      after the solve: scaled, rounded, or kept where the solve was rejected;
    - *units* that the readout receives: active in the solution, distinct, dead (silent or saturated), of all;
    - *held-out loss* before and after each solve;
    - *held-out accuracy* before and after, for losses that classify.

    Solves whose solution was written are marked by filled circles, rejected ones by crosses.

    Args:
        reports: Those of one run, such as ``callback.reports``.

    Returns:
        The figure; ``figure.savefig("solves.png")`` writes it.

    Raises:
        ModuleNotFoundError: Without matplotlib.
        MisconfigurationException: Without a report.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN, plots, reconstruct
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> report = reconstruct(LitSNN(hidden=[32]), data.train_dataloader(), beta=0.01)
        >>> ", ".join(axes.get_ylabel() for axes in plots.solves([report]).axes)
        'objective, units, held-out loss, held-out accuracy'
    """
    if not reports:
        raise MisconfigurationException(
            "There is no solve to draw yet. Expected at least one report; draw after the Trainer has fitted."
        )
    accuracies = any(report.accuracy_after is not None for report in reports)
    figure = _figure(7.5, 2.3 * (3 + accuracies))
    panels = figure.subplots(3 + accuracies, 1, sharex=True)
    steps = [report.step for report in reports]

    objective, units = panels[:2]
    primal, dual = [r.primal for r in reports], [r.dual for r in reports]
    stored = [r.dual + r.gap_written for r in reports]
    objective.plot(steps, stored, color=_GREY, linestyle=":", label="readout as stored")
    objective.plot(steps, primal, color=_BLUE, label="solution")
    objective.plot(steps, dual, color=_GREEN, linestyle="--", label="certified lower bound")
    objective.fill_between(steps, dual, primal, color=_ORANGE, alpha=0.8, label="duality gap")
    objective.fill_between(steps, dual, stored, color=_ORANGE, alpha=0.2, label="gap as stored")
    _mark(objective, reports, primal)
    objective.set_ylabel("objective")
    objective.set_title(f"{reports[-1].loss}, duality gap at most {max(r.gap for r in reports):.1e}")

    for values, color, label in (
        ([r.columns for r in reports], _GREY, "all"),
        ([r.distinct for r in reports], _GREEN, "distinct"),
        ([r.active for r in reports], _BLUE, "active"),
        ([r.silent + r.saturated for r in reports], _RED, "dead"),
    ):
        units.plot(steps, values, color=color, marker=".", label=label)
    units.set_ylim(bottom=0)
    units.set_ylabel("units")

    for axes, (name, field) in zip(panels[2:], (("loss", "held_out_loss"), ("accuracy", "accuracy")), strict=False):
        before, after = ([getattr(r, f"{field}_{when}") for r in reports] for when in ("before", "after"))
        axes.plot(steps, before, color=_GREY, marker=".", label="before")
        axes.plot(steps, after, color=_BLUE, linewidth=1, label="after")
        _mark(axes, reports, after)
        axes.set_ylabel(f"held-out {name}")

    for axes in panels:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("step")
    return figure


def raster(before: SpikeDictionary, after: SpikeDictionary | None = None, *, rows: int = 64) -> Figure:
    """Draw a dictionary: a line for each training row, a column for each unit, the darker the more it fires.

    White columns are silent units, evenly dark ones saturated; equal columns are one unit to the readout.

    Args:
        before: The dictionary of a network, such as `spike_dictionary` gives it.
        after: That of the same network later, to its right and in the same shades.
        rows: Draw this many rows, the first ones.

    Returns:
        The figure; ``figure.savefig("raster.png")`` writes it.

    Raises:
        ModuleNotFoundError: Without matplotlib.
        MisconfigurationException: If ``rows`` is no positive integer.

    Example:
        >>> import torch
        >>> from lightning_cvxsnn import plots
        >>> D = SpikeDictionary(torch.randint(0, 5, (100, 30), dtype=torch.uint8), scale=0.25)
        >>> plots.raster(D).axes[0].get_xlabel()
        '30 units: 30 distinct, 0 silent, 0 saturated'
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise MisconfigurationException(f"Invalid value rows={rows!r}. Expected a positive integer.")
    shown = {"before": before} if after is None else {"before": before, "after": after}
    figure = _figure(5.5 * len(shown), 4.5)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    entries = [d.rows(torch.arange(min(rows, d.shape[0]))).to_dense(torch.float32).cpu() for d in shown.values()]
    darkest = max(float(part.max()) for part in entries) or 1.0
    for axes, (name, dictionary), part in zip(panels, shown.items(), entries, strict=True):
        image = axes.imshow(part.numpy(), cmap="Greys", vmin=0, vmax=darkest, aspect="auto", interpolation="nearest")
        axes.set_title("what the readout receives" if after is None else name)
        axes.set_xlabel(
            f"{dictionary.shape[1]} units: {dictionary.distinct} distinct, {dictionary.silent} silent, "
            f"{dictionary.saturated} saturated"
        )
    panels[0].set_ylabel(f"first {len(entries[0])} of {before.shape[0]} rows")
    figure.colorbar(image, ax=list(panels), label="sent by the unit, reduced over time")
    return figure


def log_solves(loggers: Sequence[Logger], reports: Sequence[SolveReport], step: int) -> None:
    """Log the figure of `solves` to the TensorBoard loggers among ``loggers``, if matplotlib is installed.

    Args:
        loggers: Those of the Trainer.
        reports: Those of one run.
        step: The Trainer's global step.
    """
    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if boards and reports and importlib.util.find_spec("matplotlib"):
        for board in boards:
            board.experiment.add_figure("convex/solves", solves(reports), step)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Figures need matplotlib, which is not installed. Install the extra: pip install 'lightning-cvxsnn[plot]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _mark(axes: Axes, reports: Sequence[SolveReport], values: Sequence[float | None]) -> None:
    """Mark accepted solves by filled circles, rejected ones by crosses."""
    for accepted, marker, label in ((True, "o", "written"), (False, "x", "rejected")):
        points = [(r.step, v) for r, v in zip(reports, values, strict=True) if r.accepted is accepted]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=_BLUE if accepted else _RED, label=label)
