"""One convex reconstruction of a network: patterns, solve, guard, write. The callback only decides when."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cvxsnn.batches import TrainingRows, unpack
from lightning_cvxsnn.convex import Loss, Solution, certificate, mean_loss, path, solve
from lightning_cvxsnn.patterns import (
    CalibratedLayer,
    Capture,
    SpikeDictionary,
    adapting_batch_norms,
    calibrate_layers,
    capture,
    estimate_batch_norm,
    fresh_state,
    measure_activity,
    undisturbed,
)
from lightning_cvxsnn.readout import Readout, find_readout, forward_of
from lightning_cvxsnn.report import SolveReport
from lightning_cvxsnn.settings import Settings
from lightning_cvxsnn.targets import row_targets, row_weights
from lightning_cvxsnn.transaction import all_or_nothing

Occasion = Literal["warm start", "periodic solve", "final solve"]

#: Firing rate, spikes per unit and step, that repaired and calibrated layers are brought to. Near 0.1 trained better
#: than 0.25 on sequential MNIST (docs/method.md).
TARGET_RATE = 0.1
#: Factor on a readout that training goes on from: decisions stay, and the hidden layers keep a gradient.
CONTINUE_SCALE = 0.3

_CALIBRATION_ROWS = 1024
_HELD_OUT = 5  # one row in five judges
_VERIFY_TOLERANCE = 1e-3
_LOSS_TOLERANCE = 1e-2


class Progress(Protocol):
    """Shows a stage of work: a context that yields a function to call after each of ``total`` steps."""

    def __call__(self, stage: str, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """Begin ``stage``."""
        ...


@contextmanager
def no_progress(stage: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Show nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Surroundings:
    """What a Trainer gives to one reconstruction; the defaults are those of a bare module.

    Attributes:
        optimizers: Optimisers that hold state for the network's parameters.
        precision: The context of a training forward, such as autocast; None: none.
        progress: Shows the pattern pass and the solve.
        epoch: Epochs finished.
        step: Global step.
    """

    optimizers: Sequence[Optimizer] = ()
    precision: Callable[[], AbstractContextManager] | None = None
    progress: Progress = no_progress
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class _Problem:
    """The programme over the captured rows, and what the network answered on them."""

    dictionary: SpikeDictionary
    targets: Tensor
    weights: Tensor
    outputs: Tensor
    held_out: Tensor
    loss: Loss
    num_outputs: int
    fit_intercept: bool

    @property
    def options(self) -> dict[str, Any]:
        return {"loss": self.loss, "fit_intercept": self.fit_intercept}

    def solve(self, rho: float, tolerance: float, init: Solution | None, rows: Tensor | None = None) -> Solution:
        dictionary, targets, weights = self._restricted(rows)
        return solve(
            dictionary,
            targets,
            **self.options,
            rho=rho,
            num_outputs=self.num_outputs,
            sample_weight=weights,
            init=init,
            gap_tolerance=tolerance,
        )

    def gap_at(
        self, coef: Tensor, intercept: Tensor | None, solution: Solution, rho: float, rows: Tensor | None
    ) -> float:
        """Objective at a stored readout minus the best dual known."""
        dictionary, targets, weights = self._restricted(rows)
        proof = certificate(
            dictionary,
            targets,
            coef,
            intercept,
            **self.options,
            rho=rho,
            sample_weight=weights,
            dual_point=solution.dual_point,
        )
        return proof.primal - max(proof.dual, solution.dual)

    def held_out_loss(self, outputs: Tensor) -> float:
        """Unpenalised loss of ``outputs`` ``[held-out rows, C]``."""
        return mean_loss(
            outputs, self.targets[self.held_out], loss=self.loss, sample_weight=self.weights[self.held_out]
        )

    def _restricted(self, rows: Tensor | None) -> tuple[SpikeDictionary, Tensor, Tensor]:
        if rows is None:
            return self.dictionary, self.targets, self.weights
        return self.dictionary.rows(rows), self.targets[rows], self.weights[rows]


class Reconstructor:
    """Reconstructs one network, possibly many times: keeps beta and the last solution from one solve to the next.

    Attributes:
        settings: The arguments.
        beta: Regularisation in use; None until ``beta="auto"`` has chosen.
        last: The last solution, the starting point of the next solve.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.beta: float | None = None if settings.beta == "auto" else float(settings.beta)
        self.last: Solution | None = None
        self._readout: Readout | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that make the next solve the same after a resume."""
        last = {} if self.last is None else {"coef": self.last.coef, "intercept": self.last.intercept}
        return {"beta": self.beta, **last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self.beta = state["beta"]
        if "coef" in state:
            self.last = _starting_point(state["coef"], state["intercept"])

    def training_loss(
        self, module: nn.Module, batch: Any, index: int, precision: Callable[[], AbstractContextManager]
    ) -> float | None:
        """The programme's loss of the network on one training batch, in training mode; None before the first solve.

        Nothing is disturbed: not the state of neurons, not batch-norm statistics, not random number generators.
        """
        if self._readout is None:
            return None
        reduction, num_outputs = self._readout.reduction, self._readout.module.out_features
        x, y, weight = unpack(module, batch, index)
        with isolate_rng(), precision(), undisturbed(module), torch.no_grad():
            fresh_state(module)
            output = forward_of(module)(x)
        targets = row_targets(y, reduction, loss=self.settings.loss, num_outputs=num_outputs)
        rows = reduction.flatten_rows(output) if reduction.kind == "all" else output
        weights = row_weights(weight, len(targets), reduction)
        outputs = rows.reshape(len(targets), -1).double().cpu()
        return mean_loss(outputs, targets, loss=self.settings.loss, sample_weight=weights)

    def warn_unless_same_loss(self, ours: float, theirs: float) -> None:
        """Warn if what the module trains is not what is solved. torch's ``mse_loss`` is 2/C times ours: no warning."""
        factors = [1.0]
        if self.settings.loss == "squared" and self._readout is not None:
            factors.append(2.0 / self._readout.module.out_features)
        if not any(abs(f * ours - theirs) <= _LOSS_TOLERANCE * max(abs(theirs), abs(ours), 1e-12) for f in factors):
            rank_zero_warn(
                f"ConvexReconstruction solves loss={self.settings.loss!r}, which is {ours:.4f} on the first training "
                f"batch, but `training_step` returned {theirs:.4f}. Choose the `loss` that you train with; if training "
                "reduces the outputs itself or weighs samples, define `convex_forward(self, x)` or "
                "`convex_batch(self, batch)`. Terms such as label smoothing or penalties are not part of the programme."
            )

    def run(
        self, module: nn.Module, rows: TrainingRows, occasion: Occasion, surroundings: Surroundings | None = None
    ) -> SolveReport:
        """Capture, repair, solve, judge and, where the held-out rows agree, write.

        Args:
            module: The LightningModule.
            rows: Its training rows.
            occasion: Why now; after a final solve nothing trains on, so the readout is written at full scale.
            surroundings: The Trainer's part.

        Returns:
            The report. Whatever is raised, parameters, buffers and optimiser states are as before.

        Raises:
            MisconfigurationException: If the network, the data or a setting does not allow it.
            ValueError: If the data holds NaN or infinity.
        """
        surroundings = surroundings or Surroundings()
        norms = adapting_batch_norms(module)
        with isolate_rng(), all_or_nothing(module, surroundings.optimizers) as transaction:
            with _precision(surroundings), undisturbed(module):
                module.eval()
                report, layers = self._act(module, rows, occasion, surroundings, norms)
                statistics = [(b, b.clone()) for norm in norms for b in norm.buffers()]
            if self.settings.dry_run:
                transaction.roll_back()
                return report
            if report.accepted or layers:
                with torch.no_grad():
                    for buffer, value in statistics:
                        buffer.copy_(value)
            transaction.forget_history(transaction.changed())
        return report

    def _act(
        self, module: nn.Module, rows: TrainingRows, occasion: Occasion, surroundings: Surroundings, norms: list[Any]
    ) -> tuple[SolveReport, list[CalibratedLayer]]:
        started = time.perf_counter()
        forward = forward_of(module)
        if self._readout is None:
            first = next(iter(rows), None)
            if first is None:
                raise MisconfigurationException(
                    "The training dataloader is empty. Expected at least one batch of rows."
                )
            self._readout = find_readout(module, first.x, self.settings.readout, surroundings.precision)
        readout = self._readout
        as_found = self._problem(module, rows, readout, surroundings, "patterns as found") if norms else None
        estimate = partial(_estimate, module, norms, forward, rows)
        estimate()
        layers = self._hidden(module, forward, rows, occasion, estimate)
        problem = self._problem(module, rows, readout, surroundings, "patterns")
        _check_alive(problem.dictionary, readout, module, forward, rows)
        patterns_done = time.perf_counter()
        with surroundings.progress("convex solve", None):
            report = self._solve(problem, readout, occasion, surroundings, as_found)
        if report.accepted and not self.settings.dry_run:
            first = next(iter(rows))
            _verify(module, forward, readout, first.x, surroundings)
        seconds = {"seconds_patterns": patterns_done - started, "seconds_solve": time.perf_counter() - patterns_done}
        return SolveReport(**{**report.state(), **seconds}), layers

    def _hidden(
        self,
        module: nn.Module,
        forward: Callable[[Any], Tensor],
        rows: TrainingRows,
        occasion: Occasion,
        estimate: Callable[[], None],
    ) -> list[CalibratedLayer]:
        """Bring dead layers to life (``auto``), or calibrate all of them before training (``calibrated``)."""
        if self.settings.witnesses == "keep":
            return []
        inputs = [batch.x for batch in rows.sample(_CALIBRATION_ROWS)]
        everything = self.settings.witnesses == "calibrated" and occasion == "warm start"
        layers = calibrate_layers(
            module, forward, inputs, rate=TARGET_RATE, only_dead=not everything, after_change=estimate
        )
        repaired = [layer for layer in layers if not layer.before.alive]
        if repaired:
            rank_zero_warn(
                "ConvexReconstruction brought dead spiking layers to life by scaling the weights that feed them: "
                + "; ".join(
                    f"'{r.name}' ({r.before.silent} of {r.before.units} units silent, {r.before.saturated} saturated; "
                    f"'{r.affine_name}' times {r.scale:.2g}, {r.negated} units negated, firing rate "
                    f"{r.before.rate:.3f} -> {r.after.rate:.3f})"
                    for r in repaired
                )
                + ". Use witnesses='keep' to refuse such a network instead."
            )
        return layers

    def _problem(
        self, module: nn.Module, rows: TrainingRows, readout: Readout, surroundings: Surroundings, stage: str
    ) -> _Problem:
        """One pattern pass."""
        reduction, num_outputs = readout.reduction, readout.module.out_features
        loss = self.settings.loss
        targets: list[Tensor] = []
        weights: list[Tensor] = []

        with surroundings.progress(stage, len(rows)) as advance:

            def inputs() -> Iterator[Any]:
                for batch in rows:
                    targets.append(row_targets(batch.y, reduction, loss=loss, num_outputs=num_outputs))
                    weights.append(row_weights(batch.weight, len(targets[-1]), reduction))
                    yield batch.x
                    advance()

            captured: Capture = capture(module, readout.module, reduction, forward_of(module), inputs())
        y, n = torch.cat(targets), captured.dictionary.shape[0]
        if len(y) != n:
            raise MisconfigurationException(
                f"The network gives {n} outputs for the training rows and there are {len(y)} targets. Expected one "
                "target per output."
            )
        if captured.draws > 1:
            rank_zero_warn(
                f"The network's encoder is random: two passes over one batch differ. Each row of the dictionary is the "
                f"average of {captured.draws} draws, and the certificate is about these averages."
            )
        samples = n // reduction.rows_per_sample
        if samples < _HELD_OUT:
            raise MisconfigurationException(
                f"The training data has {samples} samples. Expected at least {_HELD_OUT}: one in five judges the solution."
            )
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(self.settings.seed))
        held_out = torch.zeros(samples, dtype=torch.bool)
        held_out[order[: samples // _HELD_OUT]] = True
        return _Problem(
            dictionary=captured.dictionary,
            targets=y,
            weights=torch.cat(weights),
            outputs=captured.outputs,
            held_out=held_out.repeat_interleave(reduction.rows_per_sample),
            loss=loss,
            num_outputs=num_outputs,
            fit_intercept=readout.module.bias is not None,
        )

    def _solve(
        self,
        problem: _Problem,
        readout: Readout,
        occasion: Occasion,
        surroundings: Surroundings,
        as_found: _Problem | None,
    ) -> SolveReport:
        """Solve on four fifths, judge on the rest; only a pass is solved on all rows and written."""
        tolerance = self.settings.gap_tolerance
        columns = problem.dictionary.shape[1]
        init = self.last if self.last is not None and self.last.coef.shape == (columns, problem.num_outputs) else None
        if self.beta is None:
            walk = path(
                problem.dictionary,
                problem.targets,
                **problem.options,
                held_out=problem.held_out,
                num_outputs=problem.num_outputs,
                sample_weight=problem.weights,
            )
            self.beta, init = walk.rho * columns**0.5, walk.solutions[walk.best]
        rho = self.beta / columns**0.5
        fitted: Tensor | None = ~problem.held_out
        solution = problem.solve(rho, tolerance, init, fitted)

        scale = self._scale(occasion)
        held = problem.dictionary.rows(problem.held_out).to_dense()
        before = [problem.held_out_loss(p.outputs[p.held_out]) for p in (problem, as_found) if p is not None]
        objective_before = min(before)
        objective_after = problem.held_out_loss(scale * (held @ solution.coef + solution.intercept))
        accepted = not objective_after >= objective_before  # a network that answers NaN is worse than anything
        if accepted:
            fitted = None
            solution = problem.solve(rho, tolerance, solution)
            if not self.settings.dry_run:
                readout.write(scale * solution.coef, scale * solution.intercept)
        self.last = solution
        if not solution.converged:
            rank_zero_warn(
                f"The convex solve stopped at a certified gap of {solution.gap:.2e}, above gap_tolerance={tolerance:g}; "
                "its solution is valid and less than optimal. Raise beta or gap_tolerance."
            )
        if accepted and self.settings.dry_run:
            gap_written = problem.gap_at(scale * solution.coef, scale * solution.intercept, solution, rho, fitted)
        else:
            gap_written = problem.gap_at(*readout.read(), solution, rho, fitted)
        verdict = ("would be accepted" if self.settings.dry_run else "accepted") if accepted else "rejected, not better"
        dictionary = problem.dictionary
        return SolveReport(
            epoch=surroundings.epoch,
            step=surroundings.step,
            loss=problem.loss,
            beta=self.beta,
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
            reason=f"{occasion}: {verdict}",
            objective_before=objective_before,
            objective_after=objective_after,
            seconds_patterns=0.0,
            seconds_solve=0.0,
        )

    def _scale(self, occasion: Occasion) -> float:
        if self.settings.scale != "auto":
            return float(self.settings.scale)
        # A squared loss fits values, which a factor would spoil; the others fit decisions.
        return 1.0 if occasion == "final solve" or self.settings.loss == "squared" else CONTINUE_SCALE


def _starting_point(coef: Tensor, intercept: Tensor) -> Solution:
    """A point to start the next solve from; nothing is claimed of it."""
    nothing = float("nan")
    return Solution(
        coef, intercept, coef.new_zeros(0, coef.shape[1]), nothing, nothing, nothing, False, 0, 0.0, "", "cpu"
    )


def _estimate(module: nn.Module, norms: list[Any], forward: Callable[[Any], Tensor], rows: TrainingRows) -> None:
    if norms:
        estimate_batch_norm(module, norms, forward, (batch.x for batch in rows))


@contextmanager
def _precision(surroundings: Surroundings) -> Iterator[None]:
    with (surroundings.precision or nullcontext)():
        yield


def _check_alive(
    dictionary: SpikeDictionary,
    readout: Readout,
    module: nn.Module,
    forward: Callable[[Any], Tensor],
    rows: TrainingRows,
) -> None:
    if not bool(dictionary.constant.all()):
        return
    activities = measure_activity(module, forward, [batch.x for batch in rows.sample(_CALIBRATION_ROWS)])
    dead = [
        f"'{a.name}' ({a.silent} of {a.units} units silent, {a.saturated} saturated)" for a in activities if not a.alive
    ]
    raise MisconfigurationException(
        f"The readout '{readout.name}' receives the same pattern on every training row, so there is nothing to learn "
        f"from. Layers that carry no information: {', '.join(dead) or 'none by themselves'}. Use witnesses='auto' or "
        "'calibrated' to bring them to life, or give the network weights or thresholds with which its neurons fire."
    )


@torch.no_grad()
def _verify(
    module: nn.Module,
    forward: Callable[[Any], Tensor],
    readout: Readout,
    x: Any,
    surroundings: Surroundings,
) -> None:
    """The network's own forward must now answer what its dictionary and its stored readout say."""
    captured = capture(module, readout.module, readout.reduction, forward, [x])
    coef, intercept = readout.read()
    expected = captured.dictionary.to_dense() @ coef + (0.0 if intercept is None else intercept)
    error = float((captured.outputs.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    tolerance = _VERIFY_TOLERANCE if surroundings.precision is None else 5e-2
    if not error <= tolerance:
        raise RuntimeError(
            f"After writing the readout '{readout.name}' the network's output differs from the dictionary's prediction "
            f"by {error:.1%} (tolerance {tolerance:.1%}). Nothing was written. Is the layer's weight recomputed in its "
            "forward (weight norm, LoRA)? Name a plain `nn.Linear` with `readout=`."
        )


def reconstruct(model: nn.Module, dataloader: Any, **arguments: Any) -> SolveReport:
    """Solve for the readout of ``model`` once and write the solution, without a Trainer.

    Args:
        model: A spiking network: a LightningModule, or any module whose ``forward`` returns what the loss is applied to.
            Batch norms in training mode are estimated anew; put the model in eval mode to keep their statistics.
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
    unknown = sorted(set(arguments) - set(Settings.__dataclass_fields__))
    if unknown:
        raise MisconfigurationException(
            f"reconstruct() got unexpected arguments {unknown}. Expected some of {sorted(Settings.__dataclass_fields__)}."
        )
    settings = Settings(**arguments)
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    rows = TrainingRows(
        model,
        dataloader,
        transfer=lambda batch: move_data_to_device(batch, device),
        max_samples=settings.max_samples,
        seed=settings.seed,
    )
    report = Reconstructor(settings).run(model, rows, "final solve")
    rank_zero_info(f"ConvexReconstruction {report}")
    return report


def calibrate(model: nn.Module, dataloader: Any, *, rate: float = TARGET_RATE, seed: int = 0) -> list[CalibratedLayer]:
    """Rescale the hidden weights of ``model``, layer by layer and in place, so that its units fire at ``rate``.

    What ``witnesses="calibrated"`` does before its solve, alone: the fair starting point for surrogate gradients.

    Args:
        model: A spiking network.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        rate: Target firing rate, spikes per unit and step, in (0, 1).
        seed: Seed of the 1024 rows that are used.

    Returns:
        What was done to each layer, in the order reached.

    Raises:
        MisconfigurationException: If ``rate`` is out of range or the data is not as expected.
        ValueError: If a dead layer has no affine layer before it, or a frozen one; nothing is changed.
    """
    if not 0 < rate < 1:
        raise MisconfigurationException(f"Invalid value rate={rate!r}. Expected spikes per unit and step, in (0, 1).")
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    rows = TrainingRows(
        model, dataloader, transfer=lambda b: move_data_to_device(b, device), max_samples=None, seed=seed
    )
    norms, forward = adapting_batch_norms(model), forward_of(model)
    with isolate_rng(), all_or_nothing(model), undisturbed(model):
        model.eval()
        estimate = partial(_estimate, model, norms, forward, rows)
        estimate()
        inputs = [batch.x for batch in rows.sample(_CALIBRATION_ROWS)]
        return calibrate_layers(model, forward, inputs, rate=rate, only_dead=False, after_change=estimate)
