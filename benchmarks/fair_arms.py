"""The arms of benchmarks/fair.py: what surrogate gradients (SG) start from, and what acts beside them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from fair_tasks import Task
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.linear_model import LogisticRegression, Ridge
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, calibrate
from lightning_cvxsnn.network import is_spiking, neuron_of

SG, CALIBRATED, RAW = "SG, default weights", "SG, calibrated weights", "raw inputs, linear"
OURS, OURS_IN_TIME = "ConvexReconstruction()", "ConvexReconstruction(), in SG's CPU time"
PENALTIES = (0.01, 1.0, 100.0)  # scikit-learn's C of the linear model on raw inputs, chosen on validation rows
_ROWS = 1024  # that a start is measured on

Weights = Literal["default", "calibrated", "fluctuations", "better"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        weights: What training starts from; ``"better"``: the better of default and calibrated weights under SG.
        callback: Makes what acts beside SG, for the rows to train on and the batches of an epoch.
        norm: Whether each layer gets a threshold-dependent batch norm.
        shortened: The arm that this one is, for fewer epochs: it ends when SG does.
    """

    weights: Weights = "default"
    callback: Callable[[TensorDataset, int], pl.Callback] | None = None
    norm: bool = False
    shortened: str = ""

    def suits(self, task: Task) -> bool:
        if self.weights == "fluctuations":  # derived for feed-forward networks whose weights set their currents
            kinds = (_BatchNorm, layer.LinearRecurrentContainer)
            return not any(isinstance(part, kinds) for part in task.network().modules())
        return task.may_have_norm or not self.norm


# -- what training starts from ----------------------------------------------------------------------------------------


def prepare(net: pl.LightningModule, weights: Weights, rows: TensorDataset, loader: DataLoader) -> None:
    """Change the constructor's weights."""
    if weights == "calibrated":
        calibrate(net, loader)
    elif weights == "fluctuations":
        drive_by_fluctuations(net, rows.tensors[0][:_ROWS])


@torch.no_grad()
def drive_by_fluctuations(net: pl.LightningModule, x: Tensor) -> None:
    """Draw centred normal weights by which membranes, without spikes, fluctuate by as much as their threshold.

    Fluctuation-driven initialisation (Rossbroich, Gygax, Zenke, arXiv 2206.10226) at a mean of 0 and xi = 1: a weight's
    variance is ``(threshold / xi)^2`` over the sum of the variances of what arrives at the synapses, filtered by the
    membrane. These are measured layer by layer, which for Poisson spikes is the paper's ``n nu epsilon``. No biases.
    """
    parts = [part for part in net.modules() if is_spiking(part) or (has_weights(part) and part is not net.readout)]
    for affine, units in zip(parts[::2], parts[1::2], strict=True):
        with received(affine) as arrived:
            net(x)
        neuron = neuron_of(units)
        keeps, gain = 1 - 1 / neuron.tau, 1 / neuron.tau if neuron.decay_input else 1.0
        trace, traces = torch.zeros_like(arrived[0][0]), []
        for step in arrived[0]:
            trace = keeps * trace + gain * step
            traces.append(trace)
        variances = torch.stack(traces).flatten(0, 1).var(0)
        ones = {"weight": torch.ones_like(affine.weight)}
        ones |= {"bias": torch.zeros_like(affine.bias)} if affine.bias is not None else {}
        total = torch.func.functional_call(affine, ones, variances[None, None]).mean()  # over a unit's synapses
        affine.weight.normal_(0.0, float(neuron.v_threshold / total.sqrt().clamp_min(1e-3)))
        if affine.bias is not None:
            affine.bias.zero_()


def has_weights(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, nn.Conv2d))


@contextmanager
def received(part: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of a module, call by call."""
    inputs: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _part, arguments: inputs.append(arguments[0].detach()))
    try:
        yield inputs
    finally:
        handle.remove()


def with_norm(net: Any) -> None:
    """Put a threshold-dependent batch norm (Zheng et al., arXiv 2011.05280) behind each layer, for any norm there."""
    parts: list[nn.Module] = []
    for part in net.layers:
        if not isinstance(part, _BatchNorm):
            parts.append(part)
        if isinstance(part, nn.Linear):
            parts.append(layer.ThresholdDependentBatchNorm1d(1.0, 1.0, part.out_features))
        elif isinstance(part, nn.Conv2d):
            parts.append(layer.ThresholdDependentBatchNorm2d(1.0, 1.0, part.out_channels))
    net.layers = nn.Sequential(*parts)


# -- what acts beside SG ----------------------------------------------------------------------------------------------


def average(rows: TensorDataset, batches: int) -> pl.Callback:
    """Lightning's exponential average of the weights, over about one epoch, and ten steps at least."""
    return EMAWeightAveraging(decay=1 - 1 / max(batches, 10))


class HeadFirst(pl.Callback):
    """Trains the readout alone in the first epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.requires_grad_(trainer.current_epoch > 0)
        pl_module.readout.requires_grad_(True)


class RidgeAtTheEnd(pl.Callback):
    """Fits the readout again by scikit-learn, on the spikes that it receives when training ends."""

    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        x, y = self.rows.tensors
        pl_module.eval()
        with received(pl_module.readout) as spikes:
            for part in x.split(500):
                pl_module(part)
        features = torch.cat(spikes, -2)  # time first where there is a target at each step
        targets = y if y.is_floating_point() or y.dim() == 1 else y.T
        model = linear(features.flatten(0, -2), targets.flatten(), 1.0)
        coef, intercept = torch.tensor(model.coef_), torch.tensor(model.intercept_)
        if len(pl_module.readout.bias) == 2:  # one logit, of the second class
            coef, intercept = (torch.cat([torch.zeros_like(each), each]) for each in (coef, intercept))
        present = getattr(model, "classes_", torch.arange(1))
        pl_module.readout.bias.fill_(-1e3)  # classes that no row has
        pl_module.readout.weight[present] = coef.reshape(len(present), -1).float()
        pl_module.readout.bias[present] = intercept.reshape(-1).float()


def linear(x: Tensor, y: Tensor, strength: float) -> Any:
    """Logistic regression, or ridge regression for a real target, at scikit-learn's C or 1 / alpha."""
    model = Ridge(1 / strength) if y.is_floating_point() else LogisticRegression(C=strength, max_iter=200)
    return model.fit(x.numpy(), y.numpy())


def raw(parts: list[TensorDataset]) -> Any:
    """The linear model of the inputs themselves: a start that does not pass it is no achievement."""
    (x, y), (x_val, y_val), *_ = (flat(part) for part in parts)
    models = [linear(x, y, strength) for strength in PENALTIES]
    return max(models, key=lambda model: model.score(x_val.numpy(), y_val.numpy()))


def flat(part: TensorDataset) -> tuple[Tensor, Tensor]:
    """Inputs ``[rows, values]`` and targets: rows are samples, or steps where each has a target."""
    x, y = part.tensors
    steps = y.dim() == 2 and not y.is_floating_point()
    return (x.flatten(0, 1) if steps else x.flatten(1)), y.flatten()


def reconstruction(**arguments: Any) -> Callable[[TensorDataset, int], pl.Callback]:
    """The callback; ``loss`` follows from the targets."""

    def make(rows: TensorDataset, batches: int) -> pl.Callback:
        loss: Any = "squared" if rows.tensors[1].is_floating_point() else "cross_entropy"
        return ConvexReconstruction(loss=loss, **arguments)

    return make


#: The callback as it is, and taken apart, with the weights that it is given: edit it here.
CALLBACKS: dict[str, tuple[Weights, dict[str, Any]]] = {
    OURS: ("default", {}),
    # the hidden weights of the warm start, trained on under the readout that the network had
    "hidden start alone": ("default", {"apply": "shadow", "every_n_epochs": 0, "final_solve": False}),
    # solutions that are trained on, and solutions that are shown where they are better; hidden layers must fire
    "solve alone": ("calibrated", {"witnesses": "keep", "apply": "replace"}),
    "choice alone": ("calibrated", {"witnesses": "keep", "apply": "shadow", "warm_start": False}),
}
ARMS: dict[str, Arm] = {
    SG: Arm(),
    CALIBRATED: Arm("calibrated"),
    RAW: Arm(),
    "SG, weights averaged": Arm("better", average),
    "SG, ridge at the end": Arm("better", lambda rows, batches: RidgeAtTheEnd(rows)),
    "SG, head first": Arm("better", lambda rows, batches: HeadFirst()),
    "SG, fluctuation-driven weights": Arm("fluctuations"),
    "SG, threshold-dependent norm": Arm(norm=True),
    **{name: Arm(weights, reconstruction(**arguments)) for name, (weights, arguments) in CALLBACKS.items()},
    OURS_IN_TIME: Arm(callback=reconstruction(), shortened=OURS),
}
