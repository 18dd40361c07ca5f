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
        l1_ratio: Share of the L1 term in the penalty: 1 L1, 0 ridge.
        rho: Penalty of the programme.
        primal: Objective at the float64 solution, over ``rows`` rows.
        dual: Certified lower bound on the optimum over the dictionary.
        gap: ``primal - dual``.
        gap_written: Objective at the readout as it is stored after the solve (scaled, rounded, or kept) minus the best
            bound known then, ``dual`` or a tighter one; of this solve's network, whatever is shown.
        scope: What the bound holds over: ``"dictionary"``, the columns at hand.
        rows: Rows of the programme: all training rows, or the four fifths that a rejected solution was fitted to.
        columns: Units that the readout receives.
        distinct: Distinct columns.
        silent: Columns that are always zero.
        saturated: Columns that are constant but not zero.
        active: Columns with a non-zero coefficient.
        scale: Factor on the solution as written.
        relaxation: How far the trained readout was drawn towards the solution: 0 not at all, 1 it is the solution.
        judge: The rows that chose between the readout as found and the solution: ``"train"``, the held-out fifth of the
            training rows; ``"validation"``; or ``"both"``.
        accepted: Whether the solution is (or with ``dry_run`` would be) in the network after the solve, unless
            ``shown_epoch`` names an earlier one.
        reason: The occasion, and why the solution was accepted or rejected.
        held_out_loss_before: Unpenalised loss before the solve, on the rows that judge.
        held_out_loss_after: The same with the candidate, fitted on other rows and scaled.
        seconds_patterns: Wall-clock seconds of the pattern passes.
        seconds_solve: Wall-clock seconds of the convex solves.
        work: Multiply-adds of pattern passes, searches for witnesses and convex solves; those in float64 count twice.
        overhead: Work of all solves so far over that of training so far.
        violation: Largest ``|d^T U| / rho`` of the last candidate units that a search for witnesses tried (``pool``,
            ``priced``): above 1, more units would lower the objective. It proves nothing about units not tried. None
            without a search, and for a ``pool`` of branches, which are compared by their objectives.
        candidates: Units that the search tried.
        accuracy_before: Share of the rows that judge that the network as found classifies rightly; None for
            ``squared``, unless firing rates decide (a spiking output layer).
        accuracy_after: The same with the candidate.
        beta_edge: ``"largest"`` or ``"smallest"`` where this solve chose beta at that end of its grid.
        repaired: Dead layers that were repaired before the solve, and how.
        relays: Hidden layers that send on the spikes of the layer below, and are held while the others train.
        shown_epoch: Epoch of the earlier network that is shown instead, since it scores better; None: there is none.
    """

    epoch: int
    step: int
    loss: str
    beta: float
    l1_ratio: float
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
    relaxation: float
    judge: str
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
    relays: int = 0
    shown_epoch: int | None = None

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
            f"{self.reason}; {self.loss} on {self._judges()} rows "
            f"{self.held_out_loss_before:.4f} -> {self.held_out_loss_after:.4f}{accuracy}; "
            f"gap {self.gap:.1e} at beta {self.beta:.3g}, l1_ratio {self.l1_ratio:g} "
            f"over {self.rows} rows x {self.columns} columns ({self.active} active, {self.silent} silent); "
            f"{self.seconds_patterns + self.seconds_solve:.1f} s"
        )

    def __str__(self) -> str:
        """A small table."""
        step = f", trained on after a step of {self.relaxation:g} towards the solution"
        trains = not self.reason.startswith(("final solve", "single solve"))  # else nothing trains on
        cells = {
            "judged by": f"{self._judges()} rows",
            "held-out loss": f"{self.held_out_loss_before:.4f} -> {self.held_out_loss_after:.4f} ({self.loss})",
            "held-out accuracy": "" if self.accuracy_after is None else self._accuracies(),
            "objective": f"{self.primal:.6g}, at least {self.dual:.6g} over this {self.scope}",
            "duality gap": f"{self.gap:.1e}, as stored {self.gap_written:.1e}",
            "programme": f"{self.rows} rows x {self.columns} columns, beta {self.beta:.3g}, l1_ratio {self.l1_ratio:g}",
            "readout": f"scale {self.scale:g}{step if trains else ''}",
            "units": f"{self.active} active, {self.distinct} distinct, "
            f"{self.silent} silent, {self.saturated} saturated",
            "search": f"{self.candidates} candidates" if self.candidates else "",
            "relays": f"{self.relays} layers, held while the others train" if self.relays else "",
            "shown": ""
            if self.shown_epoch is None
            else f"the network of epoch {self.shown_epoch}, which scores better",
            "repaired": self.repaired.replace("); ", ")\n"),  # a line for each layer
            "seconds": f"{self.seconds_patterns:.1f} patterns, {self.seconds_solve:.1f} solve",
        }
        if self.violation is not None:
            cells["search"] += f", worst violation {self.violation:.3g}"
        width = max(map(len, cells))
        rows = [f"  {k:<{width}}  {v}".replace("\n", "\n" + " " * (width + 4)) for k, v in cells.items() if v]
        return "\n".join([f"{self.reason} (epoch {self.epoch}, step {self.step})", *rows])

    def _judges(self) -> str:
        return {"train": "held-out training", "both": "held-out training and validation"}.get(self.judge, self.judge)

    def _accuracies(self) -> str:
        return " -> ".join(
            "?" if a is None else f"{100 * a:.1f} %" for a in (self.accuracy_before, self.accuracy_after)
        )
