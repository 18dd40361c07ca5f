"""What a doctor finds in a spiking network, layer by layer: a table, and a figure by `plots.layers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_cvxsnn.reports import plots
from lightning_cvxsnn.reports.solve_report import SolveReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerHealth:
    """How one spiking layer does.

    Attributes:
        name: Dotted name of the neuron module.
        units: Its units; behind a convolution each place of each channel is one.
        rate: Mean firing rate, spikes per unit and step.
        silent: Units that never fire.
        saturated: Units that fire, and equally often on every row.
        distinct: Different ones among the units, told apart by how often they fire on each row.
        deviation: Standard deviation of the membrane's voltage before each spike, over rows, steps and units; None
            where the neuron's dynamics are not known.
        width: Distance from the threshold at which the surrogate gradient is half of its peak; None where unknown.
        error: Share of the targets' variance that a ridge readout of the layer's firing rates leaves on rows that it
            was not fitted to; None where targets are not one for each row.
        accuracy: Share of these rows that it classifies rightly; None without classes.
    """

    name: str
    units: int
    rate: float
    silent: int
    saturated: int
    distinct: int
    deviation: float | None = None
    width: float | None = None
    error: float | None = None
    accuracy: float | None = None

    @property
    def spread(self) -> float | None:
        """The membrane's deviation over the surrogate's width: far above 1, most voltages get hardly a gradient."""
        return None if self.deviation is None or self.width is None else self.deviation / self.width

    @property
    def state(self) -> str:
        """``dead``: at most one unit in twenty tells rows apart; ``poor``: most repeat others; else ``alive``."""
        if (self.units - self.silent - self.saturated) * 20 <= self.units:
            return "dead"
        return "poor" if self.distinct * 2 < self.units else "alive"


#: Headings of the table and what stands below them; a column without an entry is left out.
_COLUMNS: dict[str, Callable[[LayerHealth], str]] = {
    "layer": lambda layer: layer.name,
    "state": lambda layer: layer.state,
    "units": lambda layer: str(layer.units),
    "firing rate": lambda layer: f"{layer.rate:.4f}",
    "silent": lambda layer: str(layer.silent),
    "saturated": lambda layer: str(layer.saturated),
    "distinct": lambda layer: str(layer.distinct),
    "spread/width": lambda layer: "" if layer.spread is None else f"{layer.spread:.2f}",
    "probe error": lambda layer: "" if layer.error is None else f"{layer.error:.3f}",
    "probe accuracy": lambda layer: "" if layer.accuracy is None else f"{100 * layer.accuracy:.1f} %",
}


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; ``str`` gives it as a table.

    Attributes:
        layers: The spiking layers, in the order in which a batch reaches them.
        rows: Rows that they were measured on.
        report: That of a dry run of the reconstruction: what it would do; None where it would refuse.
        refusal: Why it would refuse; "" where it would not.
    """

    layers: Sequence[LayerHealth]
    rows: int
    report: SolveReport | None = None
    refusal: str = ""

    def __str__(self) -> str:
        """A table of the layers, and what the callback would do."""
        columns = {heading: [cell(layer) for layer in self.layers] for heading, cell in _COLUMNS.items()}
        lines = [""] * (len(self.layers) + 1)
        for heading, cells in columns.items():
            if not any(cells):
                continue
            width = max(map(len, [heading, *cells]))
            for place, cell in enumerate([heading, *cells]):
                lines[place] += "  " + (cell.ljust(width) if heading in ("layer", "state") else cell.rjust(width))
        title = f"{len(self.layers)} spiking layer{'s' * (len(self.layers) != 1)} on {self.rows} rows"
        return "\n".join([title, *lines, "", *self._callback()])

    def plot(self) -> Figure:
        """Draw the layers side by side, see `plots.layers`."""
        return plots.layers(self.layers)

    def _callback(self) -> list[str]:
        report = self.report
        if report is None:
            return ["ConvexReconstruction would refuse this network:", f"  {self.refusal}"]
        does = "show its solution" if report.accepted else "keep the readout as it is"
        before, after = report.held_out_loss_before, report.held_out_loss_after
        lines = [
            f"ConvexReconstruction would {does}:",
            f"  held-out loss      {before:.4f} -> {after:.4f} ({report.loss})",
        ]
        if report.accuracy_before is not None and report.accuracy_after is not None:
            lines.append(f"  held-out accuracy  {report.accuracy_before:.1%} -> {report.accuracy_after:.1%}")
        repaired = report.repaired.replace("); ", ")\n    ")
        return [*lines, f"  repaired layers\n    {repaired}" if repaired else "  repaired layers    none"]
