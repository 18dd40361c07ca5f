"""One convex reconstruction of a network: patterns, solve, guard, write. The callback only decides when."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_cvxsnn.convex import Solution
from lightning_cvxsnn.network import LIF, adapting_batch_norms, undisturbed
from lightning_cvxsnn.network.checks import check_finite, describe_dead, verify
from lightning_cvxsnn.network.programme import Problem, capture_problem
from lightning_cvxsnn.network.readout import Readout, check_parameters, find_readout, forward_of
from lightning_cvxsnn.network.rows import TrainingRows, rows_of
from lightning_cvxsnn.network.transaction import Transaction, all_or_nothing
from lightning_cvxsnn.patterns import resolve_backend
from lightning_cvxsnn.reconstruction.budget import FLOAT64, Budget, Meter, measure
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.guard import Judgement, is_clear, judge_linear
from lightning_cvxsnn.reconstruction.policy import Occasion, Policy
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.reconstruction.shadow import Shadow
from lightning_cvxsnn.reconstruction.spiking_output import SCALES, judge_spiking
from lightning_cvxsnn.reports.advice import advise
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.runtime.ranks import Ranks, checksum
from lightning_cvxsnn.runtime.work import Work, counting
from lightning_cvxsnn.witnesses import CalibratedLayer
from lightning_cvxsnn.witnesses.column_generation import Priced
from lightning_cvxsnn.witnesses.kinds import (
    describe_repairs,
    estimate_norms,
    recycle_units,
    repair_dead_layers,
    replace_witnesses,
    wants_pairs,
)

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
        self.last: Solution | None = None
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
            self.last = _starting_point(state["coef"], state["intercept"])
        self.budget = Budget(self.settings.max_overhead, **state["budget"])
        self.shadow = Shadow(**state["shadow"]) if "shadow" in state else None

    def obstacle(self, module: nn.Module) -> str:
        """Why the readout that was found can no longer be written (pruning may have come since); "" if it can."""
        if self.readout is not None:
            try:
                check_parameters(module, self.readout.module, self.readout.name)
            except MisconfigurationException as error:
                return str(error)
        return ""

    def run(
        self, module: nn.Module, rows: TrainingRows, occasion: Occasion, context: TrainerContext | None = None
    ) -> SolveReport:
        """Capture, repair, solve, judge and, where the held-out rows agree, write.

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
        self._once = Work()
        tolerance = _TOLERANCE if context.precision is None else _LOW_PRECISION_TOLERANCE
        norms = adapting_batch_norms(module)
        if self.shadow is not None:
            self.shadow.leave(module)
        with isolate_rng(), all_or_nothing(module, context.optimizers) as transaction:
            with (context.precision or nullcontext)(), undisturbed(module):
                module.eval()
                readout, meter = self._find(module, rows, context, tolerance)
                with meter.counting(readout.module) as work:
                    report, layers = self._act(module, rows, readout, policy, context, norms, tolerance)
                statistics = [(b, b.clone()) for norm in norms for b in norm.buffers()]
                constants = [(b, b.clone()) for neuron in _constants(module) for b in neuron.buffers()]
            if self.settings.dry_run:
                transaction.roll_back()
            elif report.accepted or layers:
                with torch.no_grad():
                    for buffer, value in statistics + constants:
                        buffer.copy_(value)
            told = rows.ranks.exchange((checksum(*module.parameters()), work(), FLOAT64 * self._once.multiply_adds))
            if len({bits for bits, *_ in told}) > 1:
                raise RuntimeError(
                    "The processes hold different parameters after a reconstruction, so nothing was written. Expected "
                    "the same bits in all; do they write to the network on their own?"
                )
            stand_ins: list[Tensor] = []
            if report.accepted and not self.settings.dry_run and policy.shadows:
                stand_ins = _stand_ins(readout, transaction, [b for b, _ in statistics])
            self.shadow = Shadow.of(module, stand_ins, transaction.found) if stand_ins else None
            transaction.forget_history(p for p in transaction.changed() if not any(p is t for t in stand_ins))
        _, spent, once = told[0]
        self.budget.charge(spent, periodic=occasion == "periodic solve", accepted=report.accepted, once=once)
        return replace(report, work=spent, overhead=self.budget.overhead(context.epoch))

    def _find(
        self, module: nn.Module, rows: TrainingRows, context: TrainerContext, tolerance: float
    ) -> tuple[Readout, Meter]:
        """The readout, proved, and what a forward pass costs: the first time, then as remembered."""
        check_finite(module)
        if self.readout is None or self._meter is None:
            first = next(iter(rows), None)
            if first is None:
                raise MisconfigurationException("The training dataloader is empty. Expected at least one batch.")
            self.readout = find_readout(module, first.x, self.settings.readout, tolerance)
            self._meter = measure(module, self.readout.module, forward_of(module), first.x)
            self.budget.epoch = self._meter.epoch(context.batches)
        try:
            resolve_backend(self.settings.backend, self.readout.module.weight.device)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        return self.readout, self._meter

    def _act(
        self,
        module: nn.Module,
        rows: TrainingRows,
        readout: Readout,
        policy: Policy,
        context: TrainerContext,
        norms: list[Any],
        tolerance: float,
    ) -> tuple[SolveReport, list[CalibratedLayer]]:
        started = time.perf_counter()
        captured = partial(
            capture_problem,
            module,
            rows,
            readout,
            loss=self.settings.loss,
            seed=self.settings.seed,
            progress=context.progress,
        )
        _synchronise(module, norms, rows.ranks)
        fresh = policy.begins
        replacing = fresh and self.settings.witnesses not in ("auto", "keep", "calibrated")
        if fresh and policy.trains_on:
            replacing |= wants_pairs(module, readout, self.settings, rows)
        as_found = captured(stage="patterns as found") if norms or replacing else None
        estimate = partial(estimate_norms, module, norms, rows)
        estimate()
        layers: list[CalibratedLayer] = []
        constants = [b for neuron in _constants(module) for b in neuron.buffers()]
        before = [(t, t.detach().clone()) for t in (*module.parameters(), *constants)] if replacing else []
        tried = None
        if as_found is not None and replacing:  # on rank 0, whose parameters the others then take over
            with context.progress("witnesses", None), counting(self._once):
                tried, layers = replace_witnesses(module, rows, readout, as_found, self.settings, self.beta, estimate)
            if isinstance(tried, Priced):
                self.beta = tried.rho * readout.module.in_features**0.5
        elif not replacing and self.settings.witnesses != "keep":
            everything = fresh and self.settings.witnesses == "calibrated"
            layers = repair_dead_layers(module, rows, estimate, only_dead=not everything, untrained=fresh)
        _synchronise(module, norms, rows.ranks)
        problem = captured(stage="patterns")
        if problem is not None and bool(problem.dictionary.constant.all()):
            raise MisconfigurationException(describe_dead(module, readout, rows))
        patterns_done = time.perf_counter()
        with context.progress("convex solve", None):
            solved = None
            if problem is not None:
                judge = self._judge(module, rows, readout, problem, as_found, policy)
                rough = tried.solution if isinstance(tried, Priced) else None
                solved = self._solve(problem, readout, policy, context, rough, judge)
            if solved is not None and tried is not None:
                solved = replace(solved, violation=tried.violation, candidates=tried.candidates)
            report = self._share(solved, readout, rows.ranks)
        if report.accepted and not self.settings.dry_run:
            verify(module, readout, next(iter(rows)).x, tolerance)
        if policy.recycles:
            report = self._recycle(module, rows, readout, problem, context, report, tolerance, estimate)
            _synchronise(module, norms, rows.ranks)
        if replacing and not report.accepted:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
            estimate()
            layers = repair_dead_layers(module, rows, estimate, only_dead=True, untrained=True)
            _synchronise(module, norms, rows.ranks)
            self.last, self.beta = None, None if self.settings.beta == "auto" else self.beta
        seconds_patterns, seconds_solve = patterns_done - started, time.perf_counter() - patterns_done
        report = replace(
            report, seconds_patterns=seconds_patterns, seconds_solve=seconds_solve, repaired=describe_repairs(layers)
        )
        return report, layers

    def _recycle(
        self,
        module: nn.Module,
        rows: TrainingRows,
        readout: Readout,
        problem: Problem | None,
        context: TrainerContext,
        report: SolveReport,
        tolerance: float,
        estimate: Callable[[], None],
    ) -> SolveReport:
        """Give units that contribute nothing other weights, on rank 0, and report on the search in all processes."""
        tried = None
        settings = replace(self.settings, seed=self.settings.seed + context.step)  # other candidates each time
        with context.progress("witnesses", None):
            if problem is not None:
                tried = recycle_units(
                    module, rows, readout, problem, settings, report.rho, self.last, tolerance, estimate
                )
        tried = rows.ranks.exchange(tried)[0]
        return report if tried is None else replace(report, violation=tried.violation, candidates=tried.candidates)

    def _solve(
        self,
        problem: Problem,
        readout: Readout,
        policy: Policy,
        context: TrainerContext,
        rough: Solution | None,
        judge: Callable[[Solution], Judgement],
    ) -> SolveReport:
        """Solve on four fifths, judge on the rest; only a pass is solved on all rows and written.

        A rough solution, such as a path of penalties or a search for witnesses leaves, need not be refined to be judged
        if it wins clearly.
        """
        settings, dictionary = self.settings, problem.dictionary
        tolerance, columns = settings.gap_tolerance, dictionary.shape[1]
        beta, beta_edge = self.beta, None
        if beta is None:
            start = policy.starts(self.beta)
            with counting(self._once):
                walk = problem.choose_rho(start=start)
            rough, beta_edge = walk.solution, walk.edge
            beta = walk.rho * columns**0.5
            if not start:  # training does better than a start's; later solutions are to be as good as they can
                self.beta = beta
        rho = beta / columns**0.5
        fitted: Tensor | None = ~problem.held_out
        if rough is not None and is_clear(judgement := judge(rough), problem):
            solution = rough
        else:
            solution = problem.solve(rho, tolerance, rough or self.last, fitted)
            judgement = judge(solution)
        if judgement.accepted:
            fitted = None
            solution = problem.solve(rho, tolerance, solution)
        self.last = _starting_point(solution.coef, solution.intercept)
        if not solution.converged:
            rank_zero_warn(
                f"The convex solve stopped at a certified gap of {solution.gap:.2e}, above "
                f"gap_tolerance={tolerance:g}; its solution is valid, not optimal. Raise beta or gap_tolerance."
            )
        accepted, scale = judgement.accepted, judgement.scale
        verdict = "rejected, not better"
        if accepted:
            verdict = "would be accepted" if settings.dry_run else "accepted"
        if readout.neuron is not None:
            verdict += (
                f" by the firing rates of '{readout.neuron_name}'; the certificate is about the linear programme only"
            )
        coef, intercept = scale * solution.coef, scale * solution.intercept
        if accepted and settings.dry_run:
            gap_written = problem.gap_at(coef, intercept, solution, rho, fitted)
        else:
            if accepted:
                readout.write(coef, intercept)
            gap_written = problem.gap_at(*readout.read(), solution, rho, fitted)
        return SolveReport(
            epoch=context.epoch,
            step=context.step,
            loss=problem.loss,
            beta=beta,
            rho=rho,
            primal=solution.primal,
            dual=solution.dual,
            gap=solution.gap,
            gap_written=gap_written,
            scope="dictionary",
            rows=dictionary.shape[0] if fitted is None else int(fitted.sum()),
            columns=columns,
            distinct=dictionary.distinct,
            silent=dictionary.silent,
            saturated=dictionary.saturated,
            active=int((solution.coef != 0).any(1).sum()),
            scale=scale,
            accepted=accepted,
            reason=f"{policy.occasion}: {verdict}",
            held_out_loss_before=judgement.before,
            held_out_loss_after=judgement.after,
            seconds_patterns=0.0,
            seconds_solve=0.0,
            accuracy_before=judgement.accuracy_before,
            accuracy_after=judgement.accuracy_after,
            beta_edge=beta_edge,
        )

    def _judge(
        self,
        module: nn.Module,
        rows: TrainingRows,
        readout: Readout,
        problem: Problem,
        as_found: Problem | None,
        policy: Policy,
    ) -> Callable[[Solution], Judgement]:
        """What compares a solution with the network as found."""

        def judge(solution: Solution) -> Judgement:
            if readout.neuron is None:
                judgement = judge_linear(problem, as_found, solution, policy.scale(self.beta))
            else:
                scales = SCALES if self.settings.scale == "auto" else [float(self.settings.scale)]
                judgement = judge_spiking(module, rows, readout, problem, solution, scales)
            if as_found is not None:  # another network than that of `problem`: its batch norms, its dead layers
                before = min(judgement.before, as_found.found_loss())
                better = judgement.accepted and judgement.after < before
                judgement = replace(judgement, before=before, accepted=better)
            return judgement

        return judge

    def _share(self, report: SolveReport | None, readout: Readout, ranks: Ranks) -> SolveReport:
        """Take over what rank 0 has solved, decided and written; the others wait for it here."""
        told = ranks.exchange(report and (report, self.state_dict(), readout.read()))[0]
        if report is None:
            report, state, stored = told
            self.load_state_dict(state)
            if report.accepted and not self.settings.dry_run:
                readout.write(*stored)
        return report


def _stand_ins(readout: Readout, transaction: Transaction, statistics: list[Tensor]) -> list[Tensor]:
    """What training is not to go on from: the readout and, of hidden weights as found, the statistics."""
    written: list[Tensor] = list(readout.parameters)
    only_readout = all(any(p is own for own in readout.parameters) for p in transaction.changed())
    return written + statistics if only_readout else written


def reconstruct(model: nn.Module, dataloader: Any, **arguments: Any) -> SolveReport:
    """Solve for the readout of ``model`` once and write the solution, without a Trainer.

    Args:
        model: A spiking network: a LightningModule, or any module whose ``forward`` returns what the loss is applied
            to. Batch norms in training mode are estimated anew; put the model in eval mode to keep their statistics.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        **arguments: Those of `ConvexReconstruction`; the ones about a schedule have no effect. The readout is written
            at full scale unless ``scale`` says otherwise.

    Returns:
        The report. ``report.accepted`` tells whether the readout was written.

    Raises:
        MisconfigurationException: For a wrong argument, network or data; nothing is written.
        ValueError: If the data holds NaN or infinity; nothing is written.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> _ = torch.manual_seed(0)
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = nn.Sequential(nn.Linear(2, 16), neuron.LIFNode(step_mode="m"))
        ...         self.readout = nn.Linear(16, 2)
        ...     def forward(self, x):  # x [N, 2], presented for four steps
        ...         return self.readout(self.hidden(x.expand(4, *x.shape)).mean(0))
        >>> x = torch.rand(40, 2) * 4
        >>> rows = DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), batch_size=8)
        >>> report = reconstruct(Net(), rows, beta=0.01)
        >>> report.accepted, report.gap < 1e-6, report.rows
        (True, True, 40)
    """
    known = sorted(Settings.__dataclass_fields__)
    if unknown := sorted(set(arguments) - set(known)):
        raise MisconfigurationException(f"reconstruct() got unexpected arguments {unknown}. Expected some of {known}.")
    settings = Settings(**arguments)
    rows = rows_of(model, dataloader, max_samples=settings.max_samples, seed=settings.seed)
    report = Reconstructor(settings).run(model, rows, "single solve")
    advise([report])
    rank_zero_info(f"ConvexReconstruction {report}")
    return report


def _starting_point(coef: Tensor, intercept: Tensor) -> Solution:
    """A point to start the next solve from; nothing is claimed of it."""
    return Solution(
        coef=coef,
        intercept=intercept,
        dual_point=coef.new_zeros(0, coef.shape[1]),
        primal=float("inf"),
        dual=float("-inf"),
        gap=float("inf"),
        converged=False,
        iterations=0,
        seconds=0.0,
        algorithm="restored",
        device=str(coef.device),
    )


def _constants(module: nn.Module) -> list[Any]:
    """The neurons whose constants are part of the witnesses."""
    return [m for m in module.modules() if isinstance(m, LIF)]


def _synchronise(module: nn.Module, norms: list[Any], ranks: Ranks) -> None:
    """Give all processes rank 0's parameters, neuron constants and batch-norm statistics, as DDP does afterwards."""
    if ranks.size > 1:
        with torch.no_grad():
            buffers = [b for m in (*norms, *_constants(module)) for b in m.buffers()]
            for tensor in (*module.parameters(), *buffers):
                tensor.copy_(ranks.broadcast(tensor))
