"""Figures of a run's solves, of layers, of spikes and of a dictionary.

Figures are made without pyplot: none is shown, no backend is chosen, and pyplot's state stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, groupby
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reports.solve_report import SolveReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_cvxsnn.reports.diagnosis import LayerHealth

__all__ = ["dictionary", "layers", "log_solves", "raster", "solves"]

#: The Trainer's step of a validation and its metrics by name.
Validation = tuple[int, Mapping[str, float]]

# Okabe and Ito: colours that differ for colour-blind eyes too.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777"


def solves(reports: Sequence[SolveReport], validations: Sequence[Validation] = ()) -> Figure:
    """Draw a run's solves over the Trainer's steps, in four or five panels.

    - *objective*: the solution's and its certified lower bound, the gap between them shaded (at 1e-6 no wider than
      the line; its largest value is in the title), and, lighter, up to the objective of the readout as it is stored
      after the solve: scaled, rounded, or kept where the solve was rejected. Lines end where beta changes: objectives
      of different beta do not compare;
    - *duality gap* of the solution and of the readout as stored, on a logarithmic axis;
    - *units* that the readout receives: active in the solution, distinct, dead (silent or saturated), of all;
    - *held-out loss* before and after each solve, and over it the validation losses;
    - *held-out accuracy* before and after, for losses that classify, and over it the validation accuracies.

    Accepted solves are marked by filled circles, rejected ones by crosses.

    Args:
        reports: Those of one run, such as ``callback.reports``.
        validations: Step and metrics of each validation, such as ``callback.validations``; metrics whose names contain
            ``loss`` or ``acc`` are drawn.

    Returns:
        The figure; ``figure.savefig("solves.png")`` writes it.

    Raises:
        MisconfigurationException: Without a report.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN, plots, reconstruct
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> report = reconstruct(LitSNN(hidden=[32]), data.train_dataloader(), beta=0.01)
        >>> ", ".join(axes.get_ylabel() for axes in plots.solves([report]).axes)
        'objective, duality gap, units, held-out loss, held-out accuracy'
    """
    if not reports:
        raise MisconfigurationException(
            "There is no solve to draw yet. Expected at least one report; draw after the Trainer has fitted."
        )
    accuracies = any(report.accuracy_after is not None for report in reports)
    figure = _figure(7.5, 2.3 * (4 + accuracies))
    panels = figure.subplots(4 + accuracies, 1, sharex=True)
    steps = [report.step for report in reports]

    _draw_objectives(panels[0], panels[1], reports)
    for values, color, label in (
        ([r.columns for r in reports], _GREY, "all"),
        ([r.distinct for r in reports], _GREEN, "distinct"),
        ([r.active for r in reports], _BLUE, "active"),
        ([r.silent + r.saturated for r in reports], _RED, "dead"),
    ):
        panels[2].plot(steps, values, color=color, marker=".", label=label)
    panels[2].set_ylim(bottom=0)
    panels[2].set_ylabel("units")

    names = (("loss", "held_out_loss"), ("acc", "accuracy"))
    for axes, (word, field) in zip(panels[3:], names, strict=False):
        before, after = ([getattr(r, f"{field}_{when}") for r in reports] for when in ("before", "after"))
        axes.plot(steps, before, color=_GREY, marker=".", label="before")
        axes.plot(steps, after, color=_BLUE, linewidth=1, label="after")
        _mark(axes, reports, after)
        _draw_validations(axes, validations, word)
        axes.set_ylabel(field.replace("held_out_", "held-out ") if word == "loss" else "held-out accuracy")

    for axes in panels:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("step")
    return figure


def _draw_objectives(objective: Axes, gap: Axes, reports: Sequence[SolveReport]) -> None:
    """The objectives and their gaps; lines join solves of one beta only."""
    for number, (_, group) in enumerate(groupby(reports, key=lambda r: r.beta)):
        same = list(group)
        steps, primal, dual = [r.step for r in same], [r.primal for r in same], [r.dual for r in same]
        stored = [r.dual + r.gap_written for r in same]

        def style(color: str, line: str, label: str, first: bool = number == 0) -> dict[str, Any]:
            return {"color": color, "linestyle": line, "label": label if first else "_"}

        objective.plot(steps, stored, marker=".", **style(_GREY, ":", "readout as stored"))
        objective.plot(steps, primal, **style(_BLUE, "-", "solution"))
        objective.plot(steps, dual, marker="_", **style(_GREEN, "--", "certified lower bound"))
        objective.fill_between(steps, dual, primal, alpha=0.8, **style(_ORANGE, "-", "duality gap"))
        objective.fill_between(steps, dual, stored, alpha=0.2, **style(_ORANGE, "-", "gap as stored"))
        gap.plot(steps, [r.gap_written for r in same], marker=".", **style(_GREY, ":", "readout as stored"))
        gap.plot(steps, [r.gap for r in same], **style(_BLUE, "-", "solution"))
    _mark(objective, reports, [r.primal for r in reports])
    _mark(gap, reports, [r.gap for r in reports])
    gap.set_yscale("log", nonpositive="clip")
    gap.set_ylabel("duality gap")
    objective.set_ylabel("objective")
    objective.set_title(f"{reports[-1].loss}, duality gap at most {max(r.gap for r in reports):.1e}")


def _draw_validations(axes: Axes, validations: Sequence[Validation], word: str) -> None:
    """The curves of all validation metrics with ``word`` in their names."""
    names = dict.fromkeys(name for _, metrics in validations for name in metrics if word in name.lower())
    for name, line in zip(names, cycle(("-", "--", ":")), strict=False):
        points = [(step, metrics[name]) for step, metrics in validations if name in metrics]
        axes.plot(*zip(*points, strict=True), color=_GREEN, linestyle=line, label=name)


def layers(every: Sequence[LayerHealth]) -> Figure:
    """Draw what a doctor found, layers from left to right, in three panels.

    - *firing rate*: spikes per unit and step;
    - *dead units*, the share that is silent and that is saturated;
    - *probe accuracy* of a readout of that layer alone; for targets that are no classes the share of their variance
      that it explains.

    Args:
        every: The layers, such as ``diagnose(model, dataloader).layers``.

    Returns:
        The figure; ``figure.savefig("layers.png")`` writes it.

    Raises:
        MisconfigurationException: Without a layer.

    Example:
        >>> from lightning_cvxsnn import LayerHealth, plots
        >>> figure = plots.layers([LayerHealth("net.1", units=8, rate=0.2, silent=2, saturated=0, distinct=5)])
        >>> ", ".join(axes.get_ylabel() for axes in figure.axes)
        'firing rate, dead units, probe'
    """
    if not every:
        raise MisconfigurationException("There is no layer to draw. Expected at least one, such as diagnose() finds.")
    figure = _figure(2.5 + max(1.0 * len(every), 4.0), 6.5)
    panels = figure.subplots(3, 1, sharex=True)
    places = range(len(every))
    rates = [layer.rate for layer in every]
    panels[0].bar(places, rates, color=_BLUE)
    panels[0].set_ylim(0, max(0.1, 1.1 * max(rates)))  # where nearly nothing fires it shall look so
    panels[0].set_ylabel("firing rate")

    shares = {
        "silent": (_GREY, [layer.silent / layer.units for layer in every]),
        "saturated": (_RED, [layer.saturated / layer.units for layer in every]),
    }
    below = [0.0] * len(every)
    for label, (color, values) in shares.items():
        panels[1].bar(places, values, bottom=below, color=color, label=label)
        below = [a + b for a, b in zip(below, values, strict=True)]
    panels[1].set_ylim(0, 1)
    panels[1].set_ylabel("dead units")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)

    classes = any(layer.accuracy is not None for layer in every)
    probes = [layer.accuracy if classes else None if layer.error is None else 1 - layer.error for layer in every]
    drawn = [(place, probe) for place, probe in zip(places, probes, strict=True) if probe is not None]
    if drawn:
        panels[2].plot(*zip(*drawn, strict=True), marker="o", color=_GREEN)
        panels[2].set_ylabel("probe accuracy" if classes else "probe, variance explained")
    else:
        panels[2].set_ylabel("probe")
    panels[2].set_ylim(0, 1)
    for axes in panels:
        axes.grid(alpha=0.25)
    panels[2].set_xticks(places, [layer.name for layer in every], rotation=45, ha="right")
    return figure


def raster(before: Tensor, after: Tensor | None = None, *, sample: int = 0) -> Figure:
    """Draw the spikes of one sample: time steps from left to right, a line for each unit, a mark for each spike.

    Args:
        before: Spikes ``[T, N, *units]`` of a layer, such as ``model.layers(x)`` gives them.
        after: Those of the same layer later, to the right.
        sample: Which of the N samples.

    Returns:
        The figure; ``figure.savefig("raster.png")`` writes it.

    Raises:
        MisconfigurationException: If these are no spikes of that shape, or there is no such sample.

    Example:
        >>> import torch
        >>> from lightning_cvxsnn import plots
        >>> axes = plots.raster((torch.rand(20, 4, 30) < 0.1).float()).axes[0]
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('time step', 'unit')
    """
    if not isinstance(sample, int):
        raise MisconfigurationException(f"Found sample={sample!r}. Expected an integer, one of the N samples.")
    shown = {"spikes": before} if after is None else {"before": before, "after": after}
    for spikes in shown.values():
        if not isinstance(spikes, Tensor) or spikes.ndim < 3 or not -spikes.shape[1] <= sample < spikes.shape[1]:
            found = f"shape {list(spikes.shape)}" if isinstance(spikes, Tensor) else type(spikes).__name__
            raise MisconfigurationException(
                f"Found {found} and sample={sample!r}. Expected spikes [T, N, *units] and one of the N samples; "
                "plots.dictionary draws a SpikeDictionary."
            )
    figure = _figure(5.5 * len(shown), 4.5)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, spikes) in zip(panels, shown.items(), strict=True):
        units = spikes[:, sample].detach().flatten(1).T.float().cpu()
        axes.imshow(units.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower")
        axes.set_title(f"{name}, firing rate {float(units.mean()):.3f}")
        axes.set_xlabel("time step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("unit")
    return figure


def dictionary(before: SpikeDictionary, after: SpikeDictionary | None = None, *, rows: int = 64) -> Figure:
    """Draw a dictionary: a line for each training row, a column for each unit, the darker the more it fires.

    White columns are silent units, evenly dark ones saturated; equal columns are one unit to the readout.

    Args:
        before: The dictionary of a network, such as `spike_dictionary` gives it.
        after: That of the same network later, to its right and in the same shades.
        rows: Draw this many rows, the first ones.

    Returns:
        The figure; ``figure.savefig("dictionary.png")`` writes it.

    Raises:
        MisconfigurationException: If ``rows`` is no positive integer.

    Example:
        >>> import torch
        >>> from lightning_cvxsnn import plots
        >>> D = SpikeDictionary(torch.randint(0, 5, (100, 30), dtype=torch.uint8), scale=0.25)
        >>> plots.dictionary(D).axes[0].get_xlabel()
        '30 units: 30 distinct, 0 silent, 0 saturated'
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise MisconfigurationException(f"Invalid value rows={rows!r}. Expected a positive integer.")
    shown = {"before": before} if after is None else {"before": before, "after": after}
    figure = _figure(5.5 * len(shown), 4.5)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    entries = [d.rows(torch.arange(min(rows, d.shape[0]))).to_dense(torch.float32).cpu() for d in shown.values()]
    darkest = max(float(part.max()) for part in entries) or 1.0
    for axes, (name, spikes), part in zip(panels, shown.items(), entries, strict=True):
        image = axes.imshow(part.numpy(), cmap="Greys", vmin=0, vmax=darkest, aspect="auto", interpolation="nearest")
        axes.set_title("what the readout receives" if after is None else name)
        axes.set_xlabel(
            f"{spikes.shape[1]} units: {spikes.distinct} distinct, {spikes.silent} silent, {spikes.saturated} saturated"
        )
    panels[0].set_ylabel(f"first {len(entries[0])} of {before.shape[0]} rows")
    figure.colorbar(image, ax=list(panels), label="sent by the unit, reduced over time")
    return figure


def log_solves(
    loggers: Sequence[Logger], reports: Sequence[SolveReport], validations: Sequence[Validation], step: int
) -> None:
    """Log the figure of `solves` as ``convex/solves`` to the loggers that take figures.

    These are Lightning's for TensorBoard, Weights & Biases, MLflow and Comet, each by its own method, and any logger
    of yours with a method ``log_figure(name, figure, step)``.

    Args:
        loggers: Those of the Trainer.
        reports: Those of one run.
        validations: Step and metrics of each of its validations.
        step: The Trainer's global step.
    """
    takers = [log for log in map(_figure_logging, loggers) if log is not None]
    if takers and reports:
        figure = solves(reports, validations)
        for log in takers:
            log("convex/solves", figure, step)


def _figure_logging(logger: Any) -> Callable[[str, Figure, int], object] | None:
    """How ``logger`` takes a figure; None: not at all."""
    if isinstance(logger, TensorBoardLogger):
        return logger.experiment.add_figure
    if isinstance(logger, WandbLogger):
        return lambda name, figure, step: logger.log_image(name, [figure], step)
    if isinstance(logger, MLFlowLogger):
        return lambda name, figure, _: logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")
    if isinstance(logger, CometLogger):
        return lambda name, figure, step: logger.experiment.log_figure(name, figure, step=step)
    return getattr(logger, "log_figure", None)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # takes half a second, and not every run draws

    return Figure(figsize=(width, height), layout="constrained")


def _mark(axes: Axes, reports: Sequence[SolveReport], values: Sequence[float | None]) -> None:
    """Mark accepted solves by filled circles, rejected ones by crosses."""
    for accepted, marker, label in ((True, "o", "accepted"), (False, "x", "rejected")):
        points = [(r.step, v) for r, v in zip(reports, values, strict=True) if r.accepted is accepted]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=_BLUE if accepted else _RED, label=label)
