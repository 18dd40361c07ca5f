"""One convex reconstruction of a network: prepare, capture, solve, judge, write. The callback decides when."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_cvxsnn.convex import Point
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.network.quick import quick_neurons
from lightning_cvxsnn.network.readout import Readout
from lightning_cvxsnn.network.relays import Relay
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.patterns import resolve_backend
from lightning_cvxsnn.reconstruction.budget import FLOAT64, Budget, Meter, measure
from lightning_cvxsnn.reconstruction.capturing import Captures, Validation
from lightning_cvxsnn.reconstruction.choosing import Choice, choose, neighbours
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.guard import SCALES, Judgement, Judges, judge_linear, judge_spiking
from lightning_cvxsnn.reconstruction.holding import relays_to_hold
from lightning_cvxsnn.reconstruction.policy import SHOWN_TOLERANCE, Occasion, Policy
from lightning_cvxsnn.reconstruction.report import report_of
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.reconstruction.showing import Showing, lay_out
from lightning_cvxsnn.reconstruction.stages import Finished, Outcome, Prepared, Solved
from lightning_cvxsnn.reconstruction.untrained import tell_untrained
from lightning_cvxsnn.reconstruction.weaker import weakened
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.runtime.ranks import checksum
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.runtime.work import counting
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer
from lightning_cvxsnn.witnesses.choice import choose_start, fresh_layers
from lightning_cvxsnn.witnesses.kinds import repair_dead_layers
from lightning_cvxsnn.witnesses.replace import Replacement, replace_witnesses

_TOLERANCE = 1e-3  # of a forward pass, relative
_LOW_PRECISION_TOLERANCE = 3e-2
_SEARCHES = 2  # solves that look for a penalty everywhere: the first, and the first over features that have trained


class Reconstructor:
    """Reconstructs one network, possibly many times: keeps its penalty and last solution from one solve to the next.

    Attributes:
        settings: The arguments.
        penalty: That of the last solve; None before the first.
        last: Coefficients and intercept of the last solution, the starting point of the next solve.
        readout: The proved readout; None before the first solve.
        showing: What the network shows between training steps.
        budget: What the periodic solves have cost and may cost.
        relays: Hidden layers that are to be held while the others train.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.penalty: Penalty | None = None
        self.last: Point | None = None
        self.readout: Readout | None = None
        self.showing = Showing()
        self.budget = Budget(settings.max_overhead)
        self.relays: tuple[Relay, ...] = ()
        self._meter: Meter | None = None
        self._solves = 0  # that have a penalty
        self._captures = Captures(settings)
        self._once = 0.0  # that part of the last solve's work which the next one will not repeat

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that make the next solve the same after a resume."""
        last = {} if self.last is None else {"coef": self.last.coef, "intercept": self.last.intercept}
        penalty = {} if self.penalty is None else {"penalty": asdict(self.penalty)}
        relays = [tuple(relay) for relay in self.relays]
        return {
            "solves": self._solves, "budget": self.budget.state_dict(), "relays": relays, **penalty, **last,
            **self.showing.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self._solves = state["solves"]
        self.penalty = Penalty(**state["penalty"]) if "penalty" in state else None
        if "coef" in state:
            self.last = Point(state["coef"], state["intercept"])
        self.budget = Budget(self.settings.max_overhead, **state["budget"])
        self.relays = tuple(Relay(*relay) for relay in state.get("relays", ()))
        self.showing.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle leaves out what belongs to one module: its proved readout and the cost of its forward."""
        return {**vars(self), "readout": None, "_meter": None}

    def begin_schedule(self) -> None:
        """Another fit counts its epochs from 0, and may bring another loader."""
        self.readout = self._meter = None
        self.showing.begin()
        self._captures = Captures(self.settings)
        self.budget = Budget(self.settings.max_overhead, epoch=self.budget.epoch, expected=self.budget.expected)

    def run(
        self,
        module: nn.Module,
        rows: TrainingRows,
        occasion: Occasion,
        context: TrainerContext | None = None,
        validation: Validation | None = None,
    ) -> SolveReport:
        """Prepare hidden weights, capture, solve, judge; draw the readout towards the solution, show the better one.

        Where several processes share the rows, each captures its part, rank 0 solves and judges, and all write.

        Args:
            module: The LightningModule, with the same parameters in all processes.
            rows: Its training rows.
            occasion: Why now. Only a warm start and a single solve may replace or calibrate hidden weights.
            context: The Trainer's part.
            validation: The Trainer's validation rows, which judge as the settings say; None: there are none.

        Returns:
            The report. What is shown is in the network; if training goes on from something else, `showing` knows
            it. Whatever is raised, parameters, buffers and optimiser states are as before.

        Raises:
            MisconfigurationException: If the network, the data or a setting does not allow it.
            ValueError: If the data holds NaN or infinity.
            RuntimeError: If another process fails, or the parameters are not the same in all of them afterwards.
        """
        context = context or TrainerContext()
        policy = Policy(self.settings, occasion, context.watched)
        # Proved anew at each solve: sequences may have become longer since the last one.
        sought = self.readout.name if self.readout else self.settings.readout
        network = Network(module, rows, sought, _tolerance(context))
        network.check_initialised()
        self._once = 0.0
        self.showing.leave(module)
        with isolate_rng(), all_or_nothing(module, context.optimizers) as transaction:
            with (context.precision or nullcontext)(), undisturbed(module), quick_neurons(module):
                module.eval()
                network.check_finite()
                with self._find_readout(network, context).counting(network.readout.module) as work:
                    finished = self._run_stages(network, policy, context, validation, work)
                buffers = [(b, b.clone()) for b in (*network.statistics, *network.constants)]
            if not self.settings.dry_run and (finished.outcome.accepted or finished.layers):
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
            outcome, shadow = finished.outcome, None
            if self.settings.dry_run:
                transaction.roll_back()
            elif outcome.written:
                shadow = lay_out(network, transaction, outcome, policy)
            else:
                transaction.forget_history(transaction.changed())
            tell_untrained(network, transaction, context.optimizers)
            if not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise RuntimeError(
                    "The reconstruction found weights that hold NaN or infinity, so nothing was written. Expected "
                    "finite inputs of moderate size; use witnesses='keep' or 'calibrated', and report the case."
                )
            told = rows.ranks.exchange((checksum(*module.parameters()), work(), self._once))
            if len({bits for bits, *_ in told}) > 1:
                raise RuntimeError(
                    "The processes hold different parameters after a reconstruction, so nothing was written. Expected "
                    "the same bits in all; do they write to the network on their own?"
                )
        self.showing.shadow, stands, self.relays = shadow, None, finished.relays
        if policy.shows and not self.settings.dry_run:
            score = outcome.judgement.best if context.may_stand and outcome.judge == "validation" else None
            stands = self.showing.judge(network, score, context.epoch, solved=outcome.accepted)
        _, spent, once = told[0]
        self.budget.charge(spent, periodic=occasion == "periodic solve", accepted=outcome.accepted, once=once)
        return report_of(finished, policy, context, network.readout, self.budget, spent, stands)

    def look(
        self, module: nn.Module, rows: TrainingRows, context: TrainerContext, validation: Validation | None
    ) -> None:
        """Whether to show on what was shown, without a solve: unless training has passed it on the validation rows.

        Arguments and errors are those of `run`, but a network that has diverged is no error: it is passed by any other.
        """
        network = Network(module, rows, self.readout or self.settings.readout, _tolerance(context))
        with isolate_rng(), (context.precision or nullcontext)(), undisturbed(module), quick_neurons(module):
            module.eval()
            with self._find_readout(network, context).counting(network.readout.module) as work:
                score = self._captures.score(network, context, validation)
            spent = rows.ranks.exchange(work())[0]
        self.showing.judge(network, score, context.epoch, solved=False)
        self.budget.charge_look(spent)

    def _find_readout(self, network: Network, context: TrainerContext) -> Meter:
        """Prove the readout and, if it is another one than at the last solve, measure a forward pass."""
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

    def _run_stages(
        self,
        network: Network,
        policy: Policy,
        context: TrainerContext,
        validation: Validation | None,
        work: Callable[[], float],
    ) -> Finished:
        started = time.perf_counter()
        prepared = self._prepare(network, policy, context, validation)
        # Rank 0 alone may have searched.
        tried, layers = network.rows.ranks.exchange((prepared.search, prepared.layers))[0]
        relays = relays_to_hold(network, self.relays, policy, layers)
        self._once = work() if policy.may_change_hidden else 0.0
        programme, judges = self._captures.take(network, context, "patterns", validation)
        if programme is not None and bool(programme.dictionary.constant.all()):
            raise MisconfigurationException(network.describe_dead())
        captured = time.perf_counter()
        with context.progress("convex solve", None):
            outcome = None
            if programme is not None and judges is not None:
                solved = self._solve(network, programme, judges, prepared, policy)
                outcome = self._write(network, programme, solved, policy, keeps=not prepared.replaced)
            outcome = self._share(network, outcome)
        if outcome.accepted and not self.settings.dry_run:
            network.verify()
        if prepared.replaced and not outcome.accepted:
            layers = self._take_back(network, prepared)
            relays = relays_to_hold(network, relays, policy, layers)
        seconds = captured - started, time.perf_counter() - captured
        return Finished(outcome, layers, tried, relays, *seconds)

    def _prepare(
        self, network: Network, policy: Policy, context: TrainerContext, validation: Validation | None
    ) -> Prepared:
        """Bring dead layers to life, calibrate, or give hidden weights new values, as the settings say."""
        settings, fresh = self.settings, policy.may_change_hidden
        network.synchronise()
        searched = fresh and settings.witnesses not in ("auto", "keep", "calibrated")
        chosen = policy.starts_training and settings.witnesses == "auto" and bool(fresh_layers(network))
        as_found, judges = None, None
        if searched:
            as_found, judges = self._captures.take(network, context, "patterns as found", validation)
        elif chosen or network.norms:
            judges = self._captures.judges(network, context, "patterns as found", validation)
        network.refresh_norms()
        tensors: list[tuple[Tensor, Tensor]] = []
        done = Replacement([])
        if searched or chosen:
            tensors = [(t, t.detach().clone()) for t in (*network.module.parameters(), *network.constants)]
            if network.rows.ranks.rank == 0:  # whose parameters the others then take over
                with context.progress("witnesses", None):
                    if as_found is None:
                        done = Replacement(choose_start(network, settings.witness_options))
                    else:
                        done = replace_witnesses(network, as_found, settings.witness_options, settings.given_beta)
        elif settings.witnesses != "keep":
            everything = fresh and settings.witnesses == "calibrated"
            done = Replacement(repair_dead_layers(network, only_dead=not everything, untrained=fresh))
        network.synchronise()
        return Prepared(
            None if judges is None else judges.found(), bool(tensors), tensors, done.layers, done.statistics
        )

    @torch.no_grad()
    def _take_back(self, network: Network, prepared: Prepared) -> list[CalibratedLayer]:
        """Put the hidden weights back that were found, repair what is dead of them, and forget what was learned."""
        for tensor, value in prepared.tensors:
            tensor.copy_(value)
        network.refresh_norms()
        layers = repair_dead_layers(network, only_dead=True, untrained=True)
        network.synchronise()
        self.last, self._solves = None, 0
        return layers

    def _choose(self, programme: CapturedProgramme, judging: CapturedProgramme | None, policy: Policy) -> Choice:
        """The penalty of this solve, as given or chosen, and a point to start from."""
        beta, ratio = self.settings.given_beta, self.settings.l1_ratio
        self._solves += 1
        if beta is not None and ratio != "auto":
            return Choice(Penalty(beta, float(ratio)), self.last, None)
        if self.penalty is None or self._solves <= _SEARCHES:
            # A start that is shown, and not trained on, gains nothing from few units.
            both = [0.0] if policy.occasion == "warm start" and not policy.relaxation else [1.0, 0.0]
            ratios = both if ratio == "auto" else [float(ratio)]
            with counting() as searching:
                choice = choose(programme, ratios, None if beta is None else [beta], judging)
            self._once += FLOAT64 * searching.multiply_adds
            return choice if beta is None else replace(choice, penalty=replace(choice.penalty, beta=beta), edge=None)
        if beta is None and (self._solves & (self._solves - 1) == 0 or policy.occasion == "final solve"):
            return neighbours(programme, self.penalty, judging)  # now and then, as features move less and less
        return Choice(self.penalty, self.last, None)

    def _solve(
        self, network: Network, programme: CapturedProgramme, judges: Judges, prepared: Prepared, policy: Policy
    ) -> Solved:
        """Solve on rows that do not judge, judge, and solve what passes on all training rows."""
        choice, judge = self._choose(programme, judges.chooser, policy), partial(self._judge, network, judges, prepared)
        fitted = None if judges.kind == "validation" else ~programme.held_out
        if self.settings.chooses_ridge and judges.chooser is not None and policy.occasion == "final solve":
            choice = weakened(programme, choice, SHOWN_TOLERANCE, partial(judge, scale=policy.scale))
        self.penalty = choice.penalty
        tolerance = policy.tolerance if fitted is None else max(policy.tolerance, SHOWN_TOLERANCE)
        solution = programme.solve(choice.penalty, tolerance, choice.point, fitted)
        judgement = judge(solution.point, policy.scale)
        if fitted is not None and judgement.accepted:
            fitted, tolerance = None, policy.tolerance
            solution = programme.solve(choice.penalty, tolerance, solution.point)
        self.last = Point(solution.coef, solution.intercept)
        if not solution.converged:
            rank_zero_warn(
                f"The convex solve stopped at a certified gap of {solution.gap:.2e}, where {tolerance:g} of the best "
                "constant predictor's objective was asked for; its solution is valid, not optimal. Raise beta."
            )
        return Solved(solution, judgement, judges.kind, choice.penalty, choice.edge, fitted)

    def _judge(self, network: Network, judges: Judges, prepared: Prepared, point: Point, scale: float) -> Judgement:
        """Compare a solution with the network as found."""
        found = judges.found() if prepared.found is None else judges.found().better(prepared.found)
        if network.readout.neuron is None:
            return judge_linear(judges, found, point, scale)
        scales = SCALES if self.settings.scale == "auto" else [float(self.settings.scale)]
        return judge_spiking(network, judges, found, point, scales)

    def _write(
        self, network: Network, programme: CapturedProgramme, solved: Solved, policy: Policy, *, keeps: bool
    ) -> Outcome:
        """Write a solution that is shown or drawn to, and certify what the network holds afterwards.

        Args:
            network: The network.
            programme: The programme over its rows.
            solved: The solution and the verdict.
            policy: What becomes of it.
            keeps: Whether the network keeps these hidden weights even if the solution is rejected.
        """
        solution, judgement, readout = solved.solution, solved.judgement, network.readout
        target = judgement.scale * solution.coef, judgement.scale * solution.intercept
        # The objective falls all the way to a linear readout's solution, whatever the rows that judge say.
        drawn = judgement.accepted or (keeps and policy.shows and readout.neuron is None)
        if policy.draws_to_steady and drawn:
            drawn = not programme.cancels(solution.coef)
        relaxation = policy.relaxation if drawn else 0.0
        stored, dictionary = readout.read(), programme.dictionary
        if judgement.accepted and self.settings.dry_run:
            stored = target
        elif judgement.accepted or relaxation:
            readout.write(*target)
            if judgement.accepted:
                coef, intercept = readout.read()
                step = 1.0 if policy.shows else relaxation
                stored = (
                    torch.lerp(stored[0], coef, step),
                    intercept if intercept is None or stored[1] is None else torch.lerp(stored[1], intercept, step),
                )
        return Outcome(
            judgement=judgement,
            judge=solved.judge,
            penalty=solved.penalty,
            edge=solved.edge,
            relaxation=relaxation,
            primal=solution.primal,
            dual=solution.dual,
            gap=solution.gap,
            gap_written=programme.gap_at(*stored, solution, solved.penalty, solved.fitted),
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
            if outcome.written and not self.settings.dry_run:
                readout.write(*stored)
        return outcome


def _tolerance(context: TrainerContext) -> float:
    """Relative deviation of a forward pass in the precision of training."""
    return _TOLERANCE if context.precision is None else _LOW_PRECISION_TOLERANCE
