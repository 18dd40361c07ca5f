"""Warnings derived from a run's reports, each given once: what was found, what it means, what to do.

They depend on the reports alone, which checkpoints keep, so a resumed run repeats none.
"""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from lightning_cvxsnn.reports.solve_report import SolveReport

_LOST = 0.05  # of right answers between start and end, that is told


def advise(reports: Sequence[SolveReport]) -> None:
    """Give the warnings that the newest report calls for and no earlier one did.

    Args:
        reports: All reports of the run, newest last.
    """
    for finding in (_dead_layers, _silent, _saturated, _few_patterns, _beta_at_the_edge, _rejected, _undone):
        message = finding(reports)
        if message and not any(finding(reports[:count]) for count in range(1, len(reports))):
            rank_zero_warn(f"ConvexReconstruction {message}")


def _dead_layers(reports: Sequence[SolveReport]) -> str | None:
    layers = [change.partition(" (")[0] for change in reports[-1].repaired.split("); ") if change]
    if not layers:
        return None
    return (
        f"brought dead or half dead spiking layers to life: {', '.join(layers)}. Half of their units or more sent the "
        "same on every row; the report tells how. Give them initial weights with which they fire now and then, or use "
        "witnesses='keep' to refuse them."
    )


def _silent(reports: Sequence[SolveReport]) -> str | None:
    silent, columns = reports[-1].silent, reports[-1].columns
    if 2 * silent <= columns:
        return None
    return (
        f"found {silent} of the {columns} units that the readout receives silent on every training row. The readout "
        "cannot use them, and hardly a gradient brings them back. Use witnesses='calibrated', larger weights or a "
        "lower v_threshold in the last hidden layer, or fewer units."
    )


def _saturated(reports: Sequence[SolveReport]) -> str | None:
    saturated, columns = reports[-1].saturated, reports[-1].columns
    if 2 * saturated <= columns:
        return None
    return (
        f"found {saturated} of the {columns} units that the readout receives saturated: they send the same on every "
        "training row, which is what a bias does. Use witnesses='calibrated', smaller weights or a higher "
        "v_threshold in the last hidden layer."
    )


def _few_patterns(reports: Sequence[SolveReport]) -> str | None:
    report = reports[-1]
    if 4 * report.distinct >= report.columns - report.silent - report.saturated:
        return None
    return (
        f"found only {report.distinct} different patterns among the {report.columns} units that the readout receives. "
        "Units with one pattern are one unit to the readout: the network is as good as one of that width. Show the "
        "input for more time steps, or give the units different weights, such as by witnesses='pairs' or 'priced'."
    )


def _beta_at_the_edge(reports: Sequence[SolveReport]) -> str | None:
    beta, edge = reports[-1].beta, reports[-1].beta_edge
    if edge == "largest" and reports[-1].l1_ratio == 0:
        return (
            f"chose beta = {beta:.3g}, the largest of its grid: a stronger penalty may be better still. Pass "
            f"beta={10 * beta:.1g} and compare held_out_loss_after."
        )
    if edge == "largest":
        return (
            f"chose beta = {beta:.3g}, the largest of its grid, at which no unit is used: on the held-out rows no "
            "readout of these spikes beats a constant answer. Check that inputs and targets belong together, and give "
            "the hidden layers other weights, such as by witnesses='priced'."
        )
    if edge == "smallest":
        return (
            f"chose beta = {beta:.3g}, the smallest of its grid: the held-out loss was still falling there, so a "
            f"weaker penalty may be better still. Pass beta={beta / 10:.1g} and compare held_out_loss_after."
        )
    return None


def _rejected(reports: Sequence[SolveReport]) -> str | None:
    last = reports[-3:]
    if len(last) < 3 or any(report.accepted for report in last):
        return None
    seconds = sum(report.seconds_patterns + report.seconds_solve for report in last)
    return (
        "rejected the last three solves: on the rows that judge the network as it is scores as well, or better "
        f"({last[-1].loss} {last[-1].held_out_loss_before:.4f} against {last[-1].held_out_loss_after:.4f} at "
        f"scale={last[-1].scale:g}). None was shown, and {seconds:.1f} s went into them; late in training this is "
        "usual. Space the solves with every_n_epochs; 0 leaves a warm start and a final solve."
    )


def _undone(reports: Sequence[SolveReport]) -> str | None:
    """What training has made of the start, where both were judged by the same rows."""
    first, last = reports[0], reports[-1]
    ends = first.reason.startswith("warm start") and last.reason.startswith("final solve")
    if not (ends and first.accepted and first.judge == last.judge):
        return None
    had, has = first.accuracy_after, last.accuracy_after if last.accepted else last.accuracy_before
    if had is None or has is None or has >= had - _LOST:
        return None
    return (
        f"answered {had:.1%} of the rows that judge rightly before training, {has:.1%} at the end: training has undone "
        "what the start had. Take a lower learning rate or fewer layers; reconstruct(model, loader) gives the start "
        f"alone.{'' if last.shown_epoch is None else ' The network that was shown before is left.'}"
    )
