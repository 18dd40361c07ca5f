"""One convex reconstruction of a network: prepare, capture, solve, judge, write. The callback decides when."""

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.convex import Point, Solution
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme, capture_programme
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.network.transaction import Transaction, all_or_nothing
from lightning_cvxsnn.patterns import resolve_backend
from lightning_cvxsnn.reconstruction.budget import FLOAT64, Budget, Meter, measure
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.guard import SCALES, Judgement, is_clear, judge_linear, judge_spiking
from lightning_cvxsnn.reconstruction.policy import Occasion, Policy
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.reconstruction.shadow import Shadow
from lightning_cvxsnn.reconstruction.stages import Finished, Outcome, Prepared, Solved
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.runtime.ranks import checksum
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.runtime.work import Work, counting
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer
from lightning_cvxsnn.witnesses.choice import fresh_layers
from lightning_cvxsnn.witnesses.kinds import describe_repairs, repair_dead_layers
from lightning_cvxsnn.witnesses.replace import Replacement, recycle_units, replace_witnesses
from lightning_cvxsnn.witnesses.search import SearchStatistics

_TOLERANCE = 1e-3  # of a forward pass, relative
_LOW_PRECISION_TOLERANCE = 3e-2


class Reconstructor:
    """Reconstructs one network, possibly many times: keeps beta and the last solution from one solve to the next.

    Attributes:
        settings: The arguments.
        beta: Regularisation in use; None until ``beta="auto"`` has chosen. A start that is trained on has its own.
        last: Coefficients and intercept of the last solution, the starting point of the next solve.
        readout: The proved readout; None before the first solve.
        shadow: The accepted solution that is not to be trained on, with what it stands in for; None: there is none.
            After a solve the network holds it.
        budget: What the periodic solves have cost and may cost.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.beta: float | None = None if settings.beta == "auto" else float(settings.beta)
        self.last: Point | None = None
        self.readout: Readout | None = None
        self.shadow: Shadow | None = None
        self.budget = Budget(settings.max_overhead)
        self._meter: Meter | None = None
        self._once = Work()  # that part of the last solve's which the next one will not repeat

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that make the next solve the same after a resume."""
        last = {} if self.last is None else {"coef": self.last.coef, "intercept": self.last.intercept}
        shadow = {} if self.shadow is None else {"shadow": self.shadow.state_dict()}
        return {"beta": self.beta, "budget": self.budget.state_dict(), **last, **shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self.beta = state["beta"]
        if "coef" in state:
            self.last = Point(state["coef"], state["intercept"])
        self.budget = Budget(self.settings.max_overhead, **state["budget"])
        self.shadow = Shadow(**state["shadow"]) if "shadow" in state else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle leaves out what belongs to one module: its proved readout and the cost of its forward."""
        return {**vars(self), "readout": None, "_meter": None}

    def begin_schedule(self) -> None:
        """Another fit counts its epochs from 0, and may bring another loader."""
        self.readout = self._meter = None
        self.budget = Budget(self.settings.max_overhead, expected=self.budget.expected)

    def run(
        self, module: nn.Module, rows: TrainingRows, occasion: Occasion, context: TrainerContext | None = None
    ) -> SolveReport:
        """Prepare hidden weights, capture, solve, judge and, where the held-out rows agree, write.

        Where several processes share the rows, each captures its part, rank 0 solves and judges, and all write.

        Args:
            module: The LightningModule, with the same parameters in all processes.
            rows: Its training rows.
            occasion: Why now. Only a warm start and a single solve may replace or calibrate hidden weights. Where
                nothing trains on from the readout it has full scale.
            context: The Trainer's part.

        Returns:
            The report. The solution is in the network; if it is not to be trained on, `shadow` takes it out again.
            Whatever is raised, parameters, buffers and optimiser states are as before.

        Raises:
            MisconfigurationException: If the network, the data or a setting does not allow it.
            ValueError: If the data holds NaN or infinity.
            RuntimeError: If another process fails, or the parameters are not the same in all of them afterwards.
        """
        context, policy = context or TrainerContext(), Policy(self.settings, occasion)
        tolerance = _TOLERANCE if context.precision is None else _LOW_PRECISION_TOLERANCE
        # Proved anew at each solve: sequences may have become longer since the last one.
        network = Network(module, rows, self.readout.name if self.readout else self.settings.readout, tolerance)
        network.check_initialised()
        self._once = Work()
        if self.shadow is not None:
            self.shadow.leave(module)
        with isolate_rng(), all_or_nothing(module, context.optimizers) as transaction:
            with (context.precision or nullcontext)(), undisturbed(module):
                module.eval()
                meter = self._find_readout(network, context)
                with meter.counting(network.readout.module) as work:
                    finished = self._run_stages(network, policy, context)
                buffers = [(b, b.clone()) for b in (*network.statistics, *network.constants)]
            if self.settings.dry_run:
                transaction.roll_back()
            elif finished.outcome.accepted or finished.layers:
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
            if not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise RuntimeError(
                    "The reconstruction found weights that hold NaN or infinity, so nothing was written. Expected "
                    "finite inputs of moderate size; use witnesses='keep' or 'calibrated', and report the case."
                )
            told = rows.ranks.exchange((checksum(*module.parameters()), work(), FLOAT64 * self._once.multiply_adds))
            if len({bits for bits, *_ in told}) > 1:
                raise RuntimeError(
                    "The processes hold different parameters after a reconstruction, so nothing was written. Expected "
                    "the same bits in all; do they write to the network on their own?"
                )
            stand_ins: list[Tensor] = []
            if finished.outcome.accepted and not self.settings.dry_run and policy.shadows:
                stand_ins = _stand_ins(network, transaction)
            self.shadow = Shadow.of(module, stand_ins, transaction.found) if stand_ins else None
            transaction.forget_history(p for p in transaction.changed() if not any(p is t for t in stand_ins))
        _, spent, once = told[0]
        accepted = finished.outcome.accepted
        self.budget.charge(spent, periodic=occasion == "periodic solve", accepted=accepted, once=once)
        return self._report(finished, policy, context, spent)

    def _find_readout(self, network: Network, context: TrainerContext) -> Meter:
        """Prove the readout and, if it is another one than at the last solve, measure a forward pass."""
        network.check_finite()
        found, known = network.readout, self.readout
        if self._meter is None or known is None or found.reduction != known.reduction:
            context.check(network)
            self._meter = measure(network.module, found.module, network.first().x)
        self.readout = found
        self.budget.epoch = self._meter.epoch(context.batches)
        try:
            resolve_backend(self.settings.backend, network.readout.module.weight.device)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        return self._meter

    def _run_stages(self, network: Network, policy: Policy, context: TrainerContext) -> Finished:
        started = time.perf_counter()
        prepared = self._prepare(network, policy, context)
        programme = self._capture(network, context, "patterns")
        if programme is not None and bool(programme.dictionary.constant.all()):
            raise MisconfigurationException(network.describe_dead())
        captured = time.perf_counter()
        with context.progress("convex solve", None):
            outcome = None
            if programme is not None:
                solved = self._solve(network, programme, prepared, policy)
                outcome = self._write(network, programme, solved)
            outcome = self._share(network, outcome)
        if outcome.accepted and not self.settings.dry_run:
            network.verify()
        search, layers = prepared.search, prepared.layers
        if policy.recycles:
            search = self._recycle(network, programme, outcome.rho, context)
        if prepared.replaced and not outcome.accepted:
            layers = self._take_back(network, prepared)
        tried = network.rows.ranks.exchange(search)[0]
        return Finished(outcome, layers, tried, captured - started, time.perf_counter() - captured)

    def _capture(self, network: Network, context: TrainerContext, stage: str) -> CapturedProgramme | None:
        """The programme of the network as it is, on rank 0; None elsewhere."""
        settings = self.settings
        return capture_programme(
            network, loss=settings.loss, seed=settings.seed, progress=context.progress, stage=stage
        )

    def _prepare(self, network: Network, policy: Policy, context: TrainerContext) -> Prepared:
        """Bring dead layers to life, calibrate, or give hidden weights new values, as the settings say."""
        settings, fresh = self.settings, policy.may_change_hidden
        network.synchronise()
        replaced = fresh and settings.witnesses not in ("auto", "keep", "calibrated")
        if policy.occasion == "warm start" and settings.witnesses == "auto":
            replaced = bool(fresh_layers(network))
        as_found = self._capture(network, context, "patterns as found") if network.norms or replaced else None
        network.refresh_norms()
        found: list[tuple[Tensor, Tensor]] = []
        done = Replacement([])
        if replaced:
            found = [(t, t.detach().clone()) for t in (*network.module.parameters(), *network.constants)]
            if as_found is not None:  # on rank 0, whose parameters the others then take over
                with context.progress("witnesses", None), counting(self._once):
                    done = replace_witnesses(network, as_found, settings.witness_options, self.beta)
                self.beta = self.beta if done.beta is None else done.beta
        elif settings.witnesses != "keep":
            everything = fresh and settings.witnesses == "calibrated"
            done = Replacement(repair_dead_layers(network, only_dead=not everything, untrained=fresh))
        network.synchronise()
        return Prepared(as_found, replaced, found, done.layers, done.statistics, done.rough)

    @torch.no_grad()
    def _take_back(self, network: Network, prepared: Prepared) -> list[CalibratedLayer]:
        """Put the hidden weights back that were found, repair what is dead of them, and forget what was learned."""
        for tensor, value in prepared.found:
            tensor.copy_(value)
        network.refresh_norms()
        layers = repair_dead_layers(network, only_dead=True, untrained=True)
        network.synchronise()
        self.last, self.beta = None, None if self.settings.beta == "auto" else self.beta
        return layers

    def _solve(self, network: Network, programme: CapturedProgramme, prepared: Prepared, policy: Policy) -> Solved:
        """Solve on four fifths, judge on the rest; only what passes is solved on all rows.

        A rough solution, such as a path of penalties or a search for witnesses leaves, need not be refined to be judged
        if it wins clearly.
        """
        tolerance, columns = self.settings.gap_tolerance, programme.dictionary.shape[1]
        rough, beta, edge = prepared.rough, self.beta, None
        if beta is None:
            start = policy.chooses_start_beta(self.beta)
            with counting(self._once):
                walk = programme.choose_rho(start=start)
            rough, edge = walk.solution, walk.edge
            beta = walk.rho * columns**0.5
            if not start:  # training does better than a start's; later solutions are to be as good as they can
                self.beta = beta
        rho, scale = beta / columns**0.5, policy.scale(self.beta)
        fitted: Tensor | None = ~programme.held_out
        solution, judgement = rough, None
        if rough is not None:
            judgement = self._judge(network, programme, prepared.as_found, rough, scale)
        if solution is None or judgement is None or not is_clear(judgement, programme):
            solution = programme.solve(rho, tolerance, rough.point if rough else self.last, fitted)
            judgement = self._judge(network, programme, prepared.as_found, solution, scale)
        if judgement.accepted:
            fitted = None
            solution = programme.solve(rho, tolerance, solution.point)
        self.last = Point(solution.coef, solution.intercept)
        if not solution.converged:
            rank_zero_warn(
                f"The convex solve stopped at a certified gap of {solution.gap:.2e}, above "
                f"gap_tolerance={tolerance:g}; its solution is valid, not optimal. Raise beta or gap_tolerance."
            )
        return Solved(solution, judgement, beta, edge, fitted)

    def _judge(
        self,
        network: Network,
        programme: CapturedProgramme,
        as_found: CapturedProgramme | None,
        solution: Solution,
        scale: float,
    ) -> Judgement:
        """Compare a solution with the network as found."""
        if network.readout.neuron is None:
            judgement = judge_linear(programme, as_found, solution, scale)
        else:
            scales = SCALES if self.settings.scale == "auto" else [float(self.settings.scale)]
            judgement = judge_spiking(network, programme, solution, scales)
        if as_found is not None:  # another network than that of the programme: its batch norms, its dead layers
            before = min(judgement.before, as_found.found_loss())
            accepted = judgement.accepted and judgement.after < before
            judgement = replace(judgement, before=before, accepted=accepted)
        return judgement

    def _write(self, network: Network, programme: CapturedProgramme, solved: Solved) -> Outcome:
        """Write an accepted solution, and certify what is then in the network."""
        solution, judgement, readout = solved.solution, solved.judgement, network.readout
        dictionary, rho = programme.dictionary, solved.beta / programme.dictionary.shape[1] ** 0.5
        coef, intercept = judgement.scale * solution.coef, judgement.scale * solution.intercept
        if judgement.accepted and self.settings.dry_run:
            gap_written = programme.gap_at(coef, intercept, solution, rho, solved.fitted)
        else:
            if judgement.accepted:
                readout.write(coef, intercept)
            gap_written = programme.gap_at(*readout.read(), solution, rho, solved.fitted)
        return Outcome(
            judgement=judgement,
            beta=solved.beta,
            rho=rho,
            edge=solved.edge,
            primal=solution.primal,
            dual=solution.dual,
            gap=solution.gap,
            gap_written=gap_written,
            rows=dictionary.shape[0] if solved.fitted is None else int(solved.fitted.sum()),
            columns=dictionary.shape[1],
            distinct=dictionary.distinct,
            silent=dictionary.silent,
            saturated=dictionary.saturated,
            active=int((solution.coef != 0).any(1).sum()),
        )

    def _share(self, network: Network, outcome: Outcome | None) -> Outcome:
        """Take over what rank 0 has solved, decided and written; the others wait for it here."""
        readout = network.readout
        told = network.rows.ranks.exchange(outcome and (outcome, self.state_dict(), readout.read()))[0]
        if outcome is None:
            outcome, state, stored = told
            self.load_state_dict(state)
            if outcome.accepted and not self.settings.dry_run:
                readout.write(*stored)
        return outcome

    def _recycle(
        self, network: Network, programme: CapturedProgramme | None, rho: float, context: TrainerContext
    ) -> SearchStatistics | None:
        """Give units that contribute nothing other weights, on rank 0."""
        seed = self.settings.seed + context.step  # other candidates each time
        tried = None
        with context.progress("witnesses", None):
            if programme is not None:
                options = replace(self.settings.witness_options, seed=seed)
                tried = recycle_units(network, programme, options, rho, self.last)
        network.synchronise()
        return tried

    def _report(self, finished: Finished, policy: Policy, context: TrainerContext, work: float) -> SolveReport:
        outcome, search, readout = finished.outcome, finished.search, self.readout
        verdict = "rejected, not better"
        if outcome.accepted:
            verdict = "would be accepted" if self.settings.dry_run else "accepted"
        if readout is not None and readout.neuron is not None:
            verdict += (
                f" by the firing rates of '{readout.neuron_name}'; the certificate is about the linear programme only"
            )
        return SolveReport(
            epoch=context.epoch,
            step=context.step,
            loss=self.settings.loss,
            beta=outcome.beta,
            rho=outcome.rho,
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
            scale=outcome.judgement.scale,
            accepted=outcome.accepted,
            reason=f"{policy.occasion}: {verdict}",
            held_out_loss_before=outcome.judgement.before,
            held_out_loss_after=outcome.judgement.after,
            seconds_patterns=finished.seconds_patterns,
            seconds_solve=finished.seconds_solve,
            work=work,
            overhead=self.budget.overhead(context.epoch),
            violation=None if search is None else search.violation,
            candidates=0 if search is None else search.candidates,
            accuracy_before=outcome.judgement.accuracy_before,
            accuracy_after=outcome.judgement.accuracy_after,
            beta_edge=outcome.edge,
            repaired=describe_repairs(finished.layers),
        )


def _stand_ins(network: Network, transaction: Transaction) -> list[Tensor]:
    """What training is not to go on from: the readout and, of hidden weights as found, the statistics."""
    written: list[Tensor] = list(network.readout.parameters)
    only_readout = all(any(p is own for own in written) for p in transaction.changed())
    return written + network.statistics if only_readout else written
