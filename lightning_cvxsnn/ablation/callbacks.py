"""Callbacks that methods of a sweep are made of: no training, new weights, a reservoir, the best weights."""

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.kinds import calibrate
from lightning_cvxsnn.witnesses.reservoir import LEAKS, SCALES, THRESHOLDS, Reservoir, set_constants, tune_reservoir
from lightning_cvxsnn.witnesses.samplers import GaussianKind, affine_names, write_gaussian


class StopBeforeTraining(Callback):
    """Ends a fit before its first epoch, after all that callbacks do as it starts: `ConvexReconstruction` may solve.

    No epoch is counted, nothing is validated and no checkpoint written by Lightning, since nothing was trained.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN
        >>> solve = ConvexReconstruction(witnesses="gaussian_standard", apply="replace", final_solve=False)
        >>> trainer = Trainer(callbacks=[solve, StopBeforeTraining()], logger=False, enable_checkpointing=False,
        ...                   enable_model_summary=False, enable_progress_bar=False)
        >>> trainer.fit(LitSNN(), DigitsDataModule())
        >>> len(solve.reports), trainer.current_epoch, trainer.global_step
        (1, 0, 0)
    """

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Let the loop end."""
        trainer.should_stop = True


class FreshWeights(Callback):
    """Draws weights as a fit starts, by torch's global generator. Put it before callbacks that solve.

    Args:
        kind: ``"own"``: all layers, each by its own initialisation, as if there had been no fit before. The others,
            named as `ConvexReconstruction` names them, are the paper's random witnesses: hidden weights alone, and
            biases 0.
    """

    def __init__(self, kind: Literal["own"] | GaussianKind = "own") -> None:
        self.kind = kind

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Draw them."""
        if self.kind == "own":
            for module in pl_module.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            return
        network, seed = _network(trainer, pl_module), _draw_seed()
        with isolate_rng(), undisturbed(pl_module):
            names = affine_names(pl_module, network.first().x, network.readout.module)
        write_gaussian(pl_module, names, self.kind, seed)


class CalibratedWeights(Callback):
    """Rescales hidden weights as a fit starts, so that every unit fires; see `calibrate`. The fair start for SG."""

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Rescale them."""
        calibrate(pl_module, trainer.train_dataloader)


class TunedReservoir(Callback):
    """Makes the hidden layers a reservoir as a fit starts: random weights, at a branching ratio near 1.

    A leak, a threshold and a factor on the weights, the same for all layers, are chosen on training rows such that
    each spike of the last layers is followed by one spike on average. Weights are drawn by torch's global generator.
    Put it before a `ConvexReconstruction` with ``witnesses="keep"``, which solves for the readout.

    Source: see `lightning_cvxsnn.witnesses.reservoir`.

    Args:
        kind: Distribution of the weights, as `ConvexReconstruction` names it.
        leaks: Leaks to try, in (0, 1).
        thresholds: Thresholds to try, above 0.
        scales: Factors on the weights to try, above 0.

    Attributes:
        reservoir: What was chosen, after ``on_train_start``.

    Raises:
        MisconfigurationException: As the fit starts, if a number is out of range, or nothing fires.
    """

    def __init__(
        self,
        kind: GaussianKind = "gaussian_normalized",
        leaks: list[float] = list(LEAKS),  # noqa: B006  lists, so that YAML can fill them; never changed
        thresholds: list[float] = list(THRESHOLDS),  # noqa: B006
        scales: list[float] = list(SCALES),  # noqa: B006
    ) -> None:
        self.kind, self.leaks, self.thresholds, self.scales = kind, leaks, thresholds, scales
        self.reservoir: Reservoir | None = None

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Tune it."""
        network, seed = _network(trainer, pl_module), _draw_seed()
        with isolate_rng(), undisturbed(pl_module):
            pl_module.eval()
            found = tune_reservoir(network, self.kind, seed, self.leaks, self.thresholds, self.scales)
        set_constants(pl_module, found.leak, found.threshold)
        self.reservoir = found
        rank_zero_info(
            f"TunedReservoir leak {found.leak:g}, threshold {found.threshold:g}, weights times {found.scale:g}: "
            f"branching ratio {found.ratio:.3f}"
        )


class BestWeights(Callback):
    """Leaves the weights of the best validation in the network as a fit ends, without a file.

    Args:
        monitor: The metric that compares validations.
        mode: Whether the lowest or the highest is best.

    Raises:
        MisconfigurationException: At the first validation, if there is no such metric.
    """

    def __init__(self, monitor: str = "val_loss", mode: Literal["min", "max"] = "min") -> None:
        self.monitor, self.mode = monitor, mode
        self._best: tuple[float, dict[str, Any]] | None = None

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Those of another fit do not count."""
        self._best = None

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep them if they are the best so far, the first of equals."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"Found no metric {self.monitor!r}. Expected one of {sorted(trainer.callback_metrics)}."
            )
        value = float(trainer.callback_metrics[self.monitor]) * (1 if self.mode == "min" else -1)
        if math.isfinite(value) and (self._best is None or value < self._best[0]):
            self._best = value, {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Put them in."""
        if self._best is not None:
            pl_module.load_state_dict(self._best[1])


def _network(trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> Network:
    return Network(pl_module, rows_of(pl_module, trainer.train_dataloader))


def _draw_seed() -> int:
    return int(torch.randint(2**31, ()))
