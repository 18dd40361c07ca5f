"""What one reconstruction says of itself, of what its stages did."""

from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.reconstruction.budget import Budget
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.policy import Policy
from lightning_cvxsnn.reconstruction.stages import Finished
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.witnesses.kinds import describe_repairs


def report_of(
    finished: Finished,
    policy: Policy,
    context: TrainerContext,
    readout: Readout,
    budget: Budget,
    work: float,
    stands: int | None,
) -> SolveReport:
    """The report.

    Args:
        finished: What the stages did.
        policy: The occasion and the settings.
        context: The Trainer's part.
        readout: The proved readout.
        budget: The account, this solve entered.
        work: Work of this solve.
        stands: The epoch of the earlier network that is still shown; None: it is this solve's.
    """
    outcome, search, judgement = finished.outcome, finished.search, finished.outcome.judgement
    verdict = "rejected, not better"
    if outcome.accepted:
        verdict = "would be accepted" if policy.settings.dry_run else "accepted"
    if readout.neuron is not None:
        verdict += (
            f" by the firing rates of '{readout.neuron_name}'; the certificate is about the linear programme only"
        )
    if stands is not None:
        verdict += f", but the network of epoch {stands} scores better and is shown"
    return SolveReport(
        epoch=context.epoch,
        step=context.step,
        loss=policy.settings.loss,
        beta=outcome.penalty.beta,
        l1_ratio=outcome.penalty.l1_ratio,
        rho=outcome.penalty.rho(outcome.columns),
        primal=outcome.primal,
        dual=outcome.dual,
        gap=outcome.gap,
        gap_written=outcome.gap_written,
        scope="dictionary",
        rows=outcome.rows,
        columns=outcome.columns,
        distinct=outcome.distinct,
        silent=outcome.silent,
        saturated=outcome.saturated,
        active=outcome.active,
        scale=judgement.scale,
        relaxation=outcome.relaxation,
        judge=outcome.judge,
        accepted=outcome.accepted,
        reason=f"{policy.occasion}: {verdict}",
        held_out_loss_before=judgement.before,
        held_out_loss_after=judgement.after,
        seconds_patterns=finished.seconds_patterns,
        seconds_solve=finished.seconds_solve,
        work=work,
        overhead=budget.overhead(context.epoch),
        violation=None if search is None else search.violation,
        candidates=0 if search is None else search.candidates,
        accuracy_before=judgement.accuracy_before,
        accuracy_after=judgement.accuracy_after,
        beta_edge=outcome.edge,
        repaired=describe_repairs(finished.layers),
        relays=len(finished.relays),
        shown_epoch=stands,
    )
