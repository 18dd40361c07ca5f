"""What one solve found and did."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SolveReport:
    """One solve: the certificate, the decision, and what was found in the dictionary.

    Attributes:
        epoch: Epochs finished before the solve.
        step: The Trainer's global step.
        loss: Loss of the programme.
        beta: Regularisation in the paper's units, ``rho * sqrt(columns)``.
        rho: L1 penalty of the programme.
        primal: Objective at the float64 solution, over ``rows`` rows.
        dual: Certified lower bound on the optimum over the dictionary.
        gap: ``primal - dual``.
        gap_written: Objective at the readout as it is stored after the solve (scaled, rounded, or kept) minus the best
            bound known then, ``dual`` or a tighter one.
        scope: What the bound holds over: ``"dictionary"``, the columns at hand.
        rows: Rows of the programme: all where the solution was accepted, else the four fifths that the guard fitted.
        columns: Units that the readout receives.
        distinct: Distinct columns.
        silent: Columns that are always zero.
        saturated: Columns that are constant but not zero.
        active: Columns with a non-zero coefficient.
        scale: Factor on the readout as written.
        accepted: Whether the readout was (or with ``dry_run`` would have been) written.
        reason: The occasion, and why the solution was accepted or rejected.
        held_out_loss_before: Unpenalised loss on the held-out rows before the solve.
        held_out_loss_after: The same with the candidate, fitted on the other rows and scaled.
        seconds_patterns: Wall-clock seconds of the pattern passes.
        seconds_solve: Wall-clock seconds of the convex solves.
        work: Multiply-adds of pattern passes, searches for witnesses and convex solves; those in float64 count twice.
        overhead: Work of all periodic solves so far over that of training so far.
        violation: Largest ``|d^T U| / rho`` of the last candidate units that a search for witnesses tried (``pool``,
            ``priced``): above 1, more units would lower the objective. It proves nothing about units not tried. None
            without a search, and for a ``pool`` of branches, which are compared by their objectives.
        candidates: Units that the search tried.
        accuracy_before: Share of held-out rows that the network as found classifies rightly; None for
            ``squared``, unless firing rates decide (a spiking output layer).
        accuracy_after: The same with the candidate.
        beta_edge: ``"largest"`` or ``"smallest"`` where this solve chose beta at that end of its grid.
        repaired: Dead layers that were repaired before the solve, and how.
    """

    epoch: int
    step: int
    loss: str
    beta: float
    rho: float
    primal: float
    dual: float
    gap: float
    gap_written: float
    scope: str
    rows: int
    columns: int
    distinct: int
    silent: int
    saturated: int
    active: int
    scale: float
    accepted: bool
    reason: str
    held_out_loss_before: float
    held_out_loss_after: float
    seconds_patterns: float
    seconds_solve: float
    work: float = 0.0
    overhead: float = 0.0
    violation: float | None = None
    candidates: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    beta_edge: Literal["largest", "smallest"] | None = None
    repaired: str = ""

    def metrics(self) -> dict[str, float]:
        """The numeric fields as ``convex/<field>``, for loggers."""
        return {f"convex/{k}": float(v) for k, v in asdict(self).items() if isinstance(v, (bool, int, float))}

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; ``SolveReport(**state)`` reads them."""
        return asdict(self)

    def line(self) -> str:
        """One line for a log: the decision, what it rests on, and the certificate."""
        accuracy = "" if self.accuracy_after is None else f", accuracy {self._accuracies()}"
        return (
            f"{self.reason}; held-out {self.loss} {self.held_out_loss_before:.4f} -> {self.held_out_loss_after:.4f}"
            f"{accuracy}; gap {self.gap:.1e} at beta {self.beta:.3g} over {self.rows} rows x {self.columns} columns "
            f"({self.active} active, {self.silent} silent); {self.seconds_patterns + self.seconds_solve:.1f} s"
        )

    def __str__(self) -> str:
        """A small table."""
        cells = {
            "held-out loss": f"{self.held_out_loss_before:.4f} -> {self.held_out_loss_after:.4f} ({self.loss})",
            "held-out accuracy": "" if self.accuracy_after is None else self._accuracies(),
            "objective": f"{self.primal:.6g}, at least {self.dual:.6g} over this {self.scope}",
            "duality gap": f"{self.gap:.1e}, as stored {self.gap_written:.1e}",
            "programme": f"{self.rows} rows x {self.columns} columns, beta {self.beta:.3g}, scale {self.scale:g}",
            "units": f"{self.active} active, {self.distinct} distinct, "
            f"{self.silent} silent, {self.saturated} saturated",
            "search": f"{self.candidates} candidates" if self.candidates else "",
            "repaired": self.repaired.replace("); ", ")\n"),  # a line for each layer
            "seconds": f"{self.seconds_patterns:.1f} patterns, {self.seconds_solve:.1f} solve",
        }
        if self.violation is not None:
            cells["search"] += f", worst violation {self.violation:.3g}"
        width = max(map(len, cells))
        rows = [f"  {k:<{width}}  {v}".replace("\n", "\n" + " " * (width + 4)) for k, v in cells.items() if v]
        return "\n".join([f"{self.reason} (epoch {self.epoch}, step {self.step})", *rows])

    def _accuracies(self) -> str:
        return " -> ".join(
            "?" if a is None else f"{100 * a:.1f} %" for a in (self.accuracy_before, self.accuracy_after)
        )
