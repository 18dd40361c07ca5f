"""Convex reconstruction as a Lightning callback: when to solve, and telling what came of it. No numerics."""

from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_cvxsnn.convex import Loss
from lightning_cvxsnn.network import release_graphs
from lightning_cvxsnn.network.relays import Relays
from lightning_cvxsnn.patterns import Backend
from lightning_cvxsnn.reconstruction.policy import Occasion
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Apply, Judge, Settings, Witnesses, check_settings
from lightning_cvxsnn.reports import plots
from lightning_cvxsnn.reports.advice import advise
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.training.agreement import Agreement
from lightning_cvxsnn.training.progress_bars import above_progress_bar
from lightning_cvxsnn.training.trainer import (
    alike,
    averages,
    check_strategy,
    fit_allows,
    follow_averages,
    forget_start,
    lent,
    log_report,
    save_beside_checkpoints,
    shows_after_epoch,
    start_module,
    tell_of_relays,
    tell_of_watcher,
    validation_metrics,
    weights_digest,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ConvexReconstruction(Callback):
    """Solve for the readout of a spiking network, to a certified duality gap, before, during and after training.

    The callback captures the spikes that the readout receives on the training rows and solves the convex programme over
    them: before training, after epochs before their validation, and once at the end. Where the solution scores better
    than the trained readout it is shown: the network holds it until the next training step, so it is what is validated,
    saved, and left at the end. Training goes on from its own readout, drawn a part of the way to the solution. Layers
    that carry no information are brought to life before training. In deep networks some then send on the spikes of the
    layer below: behind the first three they are held as relays, and gradients pass them as spikes do.

    Works with any LightningModule whose output is the last, mean or (weighted) sum over time of a last ``nn.Linear``,
    fed by spikingjelly neurons, or followed by a layer of them. Two optional methods of the LightningModule help where
    that does not fit: ``convex_batch(self, batch)`` returns ``(x, y)`` or ``(x, y, weight)``; ``convex_forward(self,
    x)`` what the loss is applied to. For several outputs both may return dicts, an entry for each readout's callback.

    Source: Udupi, Yang, Zhai, arXiv 2605.08022 (2026), sections on reconstruction; Ergen et al., ICLR 2023.

    Args:
        loss: ``"cross_entropy"`` (one output: logistic), ``"hinge"`` or ``"squared_hinge"`` (one against the rest), or
            ``"squared"`` (``0.5 ||z - y||^2``).
        l1_ratio: Share of the L1 term in the penalty, as in scikit-learn: 1 is the paper's L1, which uses few units, 0
            ridge, which answers better on trained spikes. ``"auto"``: L1 where it costs nothing on the rows that
            choose, else ridge; ridge for a start that is not trained on.
        beta: Penalty in the paper's units: with ``rho = beta / sqrt(readout.in_features)`` a weight costs
            ``rho (l1_ratio |W_jc| + (1 - l1_ratio) / 2 W_jc^2)``. ``"auto"``: chosen on 100 judging validation rows,
            else on a fifth of the training rows, along a path at the first two solves, then followed a step at a time.
        readout: Dotted name of the readout, such as ``"net.4"``. None: the last linear layer that a batch reaches.
        witnesses: What to do with hidden weights. ``"auto"`` keeps them and repairs layers that are silent or
            saturated: one that holds its constructor's weights as a whole, of any other the dead units. At the warm
            start, layers that hold their constructor's weights get those over which a ridge readout errs least on rows
            that it has not seen: repaired, or a first layer of rescaled or of paired weights whose spikes the layers
            behind send on, or that and ``"pairs"``. ``"keep"`` refuses a network that is dead. The others act at the
            warm start only. ``"calibrated"`` rescales every unit to a firing rate of 0.1, and all layers train.
            ``"gaussian_standard"``, ``"gaussian_normalized"``, ``"gaussian_orthogonal"`` draw every hidden layer: from
            N(0, 1), or rows of unit norm, or orthonormal ones. ``"pairs"``, ``"pool"``, ``"priced"`` replace the last
            linear layer or convolution: by weights that tell pairs of points apart, by the best of many candidates, by
            column generation (of whole branches in a `ParallelSNN`). What the rows that judge reject is rolled back.
        warm_start: Solve before the first epoch; once per run, not on resume, not under ``fast_dev_run``.
        every_n_epochs: Solve after the last batch of every n-th epoch at the earliest, before its validation. 0: never.
        final_solve: Solve at the end of training, before the last validation where the last epoch is known, else in
            ``on_train_end``; then the network is also saved as ``convex-last.ckpt`` beside the user's checkpoints.
        apply: What to do with a solution. ``"auto"``: show it, and draw the trained readout towards it by
            ``relaxation``. Where early stopping or a schedule on a plateau compares validations, nothing is shown after
            epochs, and the readout is drawn where that scores better. ``"shadow"``: show it, and train on from the
            trained weights and optimiser state, bit for bit. ``"replace"``: write it and train on from it as a whole.
            Hidden weights that were repaired or replaced stay in any case.
        relaxation: How far the trained readout is drawn towards a solution with ``apply="auto"``: ``W`` becomes
            ``W + relaxation (W* - W)``. The programme's objective falls all the way, by convexity; the optimiser keeps
            its state. ``"auto"``: 0.3 after epochs, 0 where the units of a solution cancel, so that its answers would
            change with any spike, and 0 before training: hidden weights train best under the readout that was there.
        scale: Factor on the solution as written. ``"auto"``: 0.3 where ``apply="replace"`` trains on from it (decisions
            stay, hidden layers keep a gradient), 1 elsewhere and for ``squared``; before a spiking output layer the
            factor at which its firing rates decide best on the rows that judge.
        max_overhead: Share of training work that periodic solves may take, in multiply-adds, so that runs repeat. Those
            after epochs 1, 2 and 5 may be paid by the planned epochs, the others wait until it has accrued, after each
            rejected in a row for twice as much; a first one is always tried. None: no limit. Warm start and final solve
            are made whatever they cost.
        judge: The rows on which a solution and the trained readout are compared; it is better if loss or accuracy is
            better and neither is worse. ``"validation"``: the Trainer's validation rows, the first loader of several:
            model selection, as by ``ModelCheckpoint``. ``"train"``: a fifth of the training rows, to which that
            solution is not fitted. ``"auto"``: validation rows where there are 100, both where there are fewer.
        gap_tolerance: Certified gap to reach, relative to the best constant predictor's objective; 1e-3 for an epoch.
        max_samples: Rows to use, a random subset fixed by ``seed``, stratified where the dataset tells class labels
            without loading its rows; of batches that come whole, as many as hold them. None: all.
        backend: Engine of candidates' patterns (``pool``, ``priced``): ``"cupy"``, the kernels on a CUDA device;
            ``"torch"``; ``"auto"``: CuPy where it is installed and the network is on such a device, else torch.
        dry_run: Diagnose and certify, write nothing.
        seed: Seed of the held-out rows, of the subset and of augmentations in the pattern pass.

    Attributes:
        reports: A `SolveReport` for each solve, newest last.
        validations: The Trainer's step and the metrics with ``val`` in their names, after each validation of a fit.

    Raises:
        MisconfigurationException: For a wrong argument here; for a network, Trainer or data that cannot be solved, in
            the hook that finds it, before anything is written.
        ValueError: There too, for NaN in data or weights, and for a hidden layer that ``witnesses`` cannot change.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cvxsnn import ConvexReconstruction
        >>> (callback := ConvexReconstruction(beta=0.01, apply="shadow"))
        ConvexReconstruction(beta=0.01, apply='shadow')
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        loss: Loss = "cross_entropy",
        l1_ratio: float | Literal["auto"] = "auto",
        beta: float | Literal["auto"] = "auto",
        readout: str | None = None,
        witnesses: Witnesses = "auto",
        warm_start: bool = True,
        every_n_epochs: int = 1,
        final_solve: bool = True,
        apply: Apply = "auto",
        relaxation: float | Literal["auto"] = "auto",
        scale: float | Literal["auto"] = "auto",
        max_overhead: float | None = 0.1,
        judge: Judge = "auto",
        gap_tolerance: float = 1e-6,
        max_samples: int | None = None,
        backend: Backend = "auto",
        dry_run: bool = False,
        seed: int = 0,
    ) -> None:
        self.settings = Settings(
            loss=loss, l1_ratio=l1_ratio, beta=beta, readout=readout, witnesses=witnesses, warm_start=warm_start,
            every_n_epochs=every_n_epochs, final_solve=final_solve, apply=apply, relaxation=relaxation, scale=scale,
            max_overhead=max_overhead, judge=judge, gap_tolerance=gap_tolerance, max_samples=max_samples,
            backend=backend, dry_run=dry_run, seed=seed,
        )  # fmt: skip
        self._left = ""  # digest of the weights that the last fit left behind
        self._in_trainer, self._resumes = False, True
        self._relays = Relays()
        self._begin_run()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings.changed()})"

    def _begin_run(self) -> None:
        self.reports: list[SolveReport] = []
        self.validations: list[tuple[int, dict[str, float]]] = []
        self._reconstructor = Reconstructor(self.settings)
        self._warm_started = self._restored = False
        self._begin_schedule()

    def _begin_schedule(self) -> None:
        self._solved_epoch = 0  # epochs that were finished at the last solve on schedule
        self._finished_step = -1  # global step of the last final solve, made or left out
        self._agreement = Agreement(self.settings.loss)
        self._reconstructor.begin_schedule()

    @property
    @override
    def state_key(self) -> str:
        """Distinct for distinct readouts and losses; before `setup`, which refuses two without a readout, always."""
        own = {} if self._in_trainer or self.settings.readout is not None else {"instance": id(self)}
        return self._generate_state_key(readout=self.settings.readout, loss=self.settings.loss, **own)

    def should_solve(self, occasion: Occasion, epoch: int) -> bool:
        """Whether to solve now. Override it for a schedule of your own.

        It is asked before the first epoch (``"warm start"``), after the last batch of each epoch, before its validation
        (``"periodic solve"``), and at the end (``"final solve"``); never under ``fast_dev_run``, of a warm start only
        once in a run. Of periodic solves it is not asked where ``every_n_epochs=0``, or where ``apply="shadow"`` and
        neither a validation nor a checkpoint would see the solution.

        Args:
            occasion: What kind of solve it would be.
            epoch: Epochs finished.

        Example:
            >>> class FirstEpochs(ConvexReconstruction):
            ...     def should_solve(self, occasion, epoch):
            ...         return occasion != "periodic solve" or epoch in (1, 2, 5)
        """
        if occasion == "warm start":
            return self.settings.warm_start
        if occasion == "final solve":
            return self.settings.final_solve
        due = epoch - self._solved_epoch >= self.settings.every_n_epochs
        return due and self._reconstructor.budget.allows(epoch)

    def _may_solve(self, trainer: pl.Trainer, occasion: Occasion, epoch: int) -> bool:
        """Whether this fit allows a solve that `should_solve` wants."""
        return fit_allows(trainer, occasion, self.settings.apply) and self.should_solve(occasion, epoch)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        self._in_trainer, self._resumes = True, stage == "fit"
        check_settings([c.settings for c in alike(trainer, ConvexReconstruction)])
        if stage == "fit":
            check_strategy(trainer)
            follow_averages(trainer, self)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The warm start: loaders, counters and optimisers are in place, nothing has trained yet.

        A fit that begins at step 0 with other weights than those left behind is a new run. The module's own
        ``on_train_start``, which Lightning calls after those of callbacks, is called before the warm start.
        """
        if trainer.global_step == 0 and not self._restored:
            if weights_digest(pl_module) != self._left:
                self._begin_run()
            self._begin_schedule()
        self._reconstructor.budget.planned = max(trainer.max_epochs or 0, 0)
        self._withdraw(trainer, pl_module)
        # The LR and batch-size finders set ``ckpt_path`` too, and go back to step 0.
        resumed = trainer.ckpt_path is not None and trainer.global_step > 0
        if not self._warm_started and not resumed and self._may_solve(trainer, "warm start", trainer.current_epoch):
            start_module(trainer, pl_module)
            self._solve(trainer, pl_module, "warm start", trainer.current_epoch)
        self._warm_started = True
        self._relays.hold(pl_module, self._reconstructor.relays, trainer.optimizers)
        tell_of_relays(trainer, self._relays.held)
        if self.settings.every_n_epochs and self.settings.apply != "replace" and not self.settings.dry_run:
            tell_of_watcher(trainer, self.settings.apply)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on from the weights that it left."""
        self._withdraw(trainer, pl_module, training=True)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Our loss on the first batch after a solve, to be compared with what the module trains."""
        self._withdraw(trainer, pl_module, training=True)
        self._reconstructor.showing.train()
        if readout := self._reconstructor.readout:
            self._agreement.note(trainer, pl_module, readout, batch, batch_idx)
        self._relays.attach()

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The module's loss on the same batch, at the same weights."""
        if readout := self._reconstructor.readout:
            self._agreement.compare(trainer, readout, loss)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last batch of an epoch and before its validation: what is validated is what is saved."""
        self._relays.detach()
        finished, out_of_steps = trainer.current_epoch + 1, 0 <= trainer.max_steps <= trainer.global_step
        if self.settings.every_n_epochs == 0 or not (trainer.is_last_batch or out_of_steps):
            return
        last = out_of_steps or (trainer.max_epochs not in (None, -1) and finished >= trainer.max_epochs)
        report = None
        if last and self._may_solve(trainer, "final solve", finished):
            if averages(trainer):  # in `on_train_end`, over the average
                return
            report = self._solve(trainer, pl_module, "final solve", finished)
        elif self._may_solve(trainer, "periodic solve", finished):
            report = self._solve(trainer, pl_module, "periodic solve", finished)
        if report is None and self._reconstructor.showing.best and shows_after_epoch(trainer, self.settings):
            with lent(trainer, pl_module, self.settings, epoch=finished, alone=True) as (rows, context, judging):
                self._reconstructor.look(pl_module, rows, context, judging)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After an epoch all others are done with its last batch by now: an earlier network may be shown."""
        self._reconstructor.showing.lay(pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, for checkpoints, where no validation has come before."""
        self._reconstructor.showing.lay(pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of a fit's validations, for `plot`."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.validations.append((trainer.global_step, validation_metrics(trainer)))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last solve where the last epoch was not known, saved beside the user's checkpoints."""
        epoch, done = trainer.current_epoch, self._finished_step == trainer.global_step
        if done or not self._may_solve(trainer, "final solve", epoch):
            return
        report = self._solve(trainer, pl_module, "final solve", epoch)
        self._reconstructor.showing.lay(pl_module)
        if report and not self.settings.dry_run and (report.accepted or report.shown_epoch is not None):
            save_beside_checkpoints(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The figure of all solves to the loggers that take figures."""
        if trainer.is_global_zero:
            plots.log_solves(trainer.loggers, self.reports, self.validations, trainer.global_step)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave neurons whose deep copy works: weight averaging makes one as the next fit begins."""
        self._relays.release()
        release_graphs(pl_module)
        if stage == "fit":
            self._left, self._restored = weights_digest(pl_module), False
        self._resumes = True

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Whatever interrupts training, KeyboardInterrupt included, the network is left as it was trained."""
        forget_start(pl_module)
        if fitting := trainer.state.fn == TrainerFn.FITTING:
            self._withdraw(trainer, pl_module)
        self.teardown(trainer, pl_module, "fit" if fitting else "")  # Lightning calls none after an exception

    def plot(self) -> "Figure":
        """Draw the solves: objective and bound, units, held-out loss and accuracy; see `plots.solves`.

        Raises:
            MisconfigurationException: Before the first solve.
        """
        return plots.solves(self.reports, self.validations)

    def _solve(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, occasion: Occasion, epoch: int
    ) -> SolveReport | None:
        """Solve and report; None, with a warning, where a later solve fails, which nothing but itself depends on."""
        if occasion == "final solve":
            self._finished_step = trainer.global_step
        report, alone = None, len(alike(trainer, ConvexReconstruction)) == 1
        with lent(trainer, pl_module, self.settings, occasion, epoch=epoch, alone=alone) as (rows, context, judging):
            report = self._reconstructor.run(pl_module, rows, occasion, context, judging)
        if report is None:
            return None
        self._relays.hold(pl_module, self._reconstructor.relays, trainer.optimizers)
        self.reports.append(report)
        self._solved_epoch = epoch
        log_report(trainer, report, self.settings.readout if len(alike(trainer, ConvexReconstruction)) > 1 else None)
        with above_progress_bar(trainer):
            rank_zero_info(f"ConvexReconstruction {report.line()}")
            advise(self.reports)
        return report

    def _withdraw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, training: bool = False) -> None:
        """Take shadows out, the last to enter first: it was laid over the others."""
        for callback in reversed(alike(trainer, ConvexReconstruction)):
            callback._reconstructor.showing.leave(pl_module, training=training)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if nothing had happened; plain values and tensors only."""
        return {
            "warm_started": self._warm_started,
            "solved_epoch": self._solved_epoch,
            "finished_step": self._finished_step,
            "compared": self._agreement.compared,
            "reconstructor": self._reconstructor.state_dict(),
            "reports": [report.state() for report in self.reports],
            "validations": list(self.validations),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run that ``state_dict`` describes; a test of a checkpoint leaves the callback as it is."""
        if not self._resumes:
            return
        self._warm_started = state_dict["warm_started"]
        self._solved_epoch = state_dict["solved_epoch"]
        self._finished_step = state_dict["finished_step"]
        self._agreement.compared = state_dict["compared"]
        self._reconstructor.load_state_dict(state_dict["reconstructor"])
        self._restored = True
        self.reports = [SolveReport(**report) for report in state_dict["reports"]]
        self.validations = [(step, dict(metrics)) for step, metrics in state_dict.get("validations", [])]
