"""Spiking networks that are ready to train: `LitSNN`, and the paper's `ParallelSNN` and `AdditionSNN`."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_cvxsnn.network import LIF, reset_neurons

#: A constant of all branches, or the range that each branch draws its own from.
Constant = float | tuple[float, float]


class _Classifier(pl.LightningModule):
    """Training, validation and test steps of a network whose output is logits ``[N, C]``, or ``[N, T, C]``."""

    def __init__(self, num_classes: int, lr: float, loss: Literal["cross_entropy", "hinge"] = "cross_entropy") -> None:
        super().__init__()
        if not 0 <= lr < float("inf"):
            raise MisconfigurationException(f"Invalid value lr={lr!r}. Expected a finite number >= 0.")
        self.lr = lr
        self.loss = loss
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def _rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, C]`` and targets ``[rows]`` of one batch."""
        x, y = batch
        logits = self(x)
        return logits.flatten(0, -2), y.flatten()

    def _loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.loss == "hinge":
            signs = 2.0 * F.one_hot(y, logits.shape[1]) - 1.0
            return (1 - signs * logits).clamp_min(0).sum(1).mean()
        return F.cross_entropy(logits, y)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch ``(x, y)``."""
        loss = self._loss_of(*self._rows(batch))
        self.log("train_loss", loss)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and accuracy of one batch ``(x, y)``."""
        logits, y = self._rows(batch)
        self.val_accuracy(logits, y)
        self.log("val_loss", self._loss_of(logits, y))
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy of one batch ``(x, y)``."""
        self.test_accuracy(*self._rows(batch))
        self.log("test_accuracy", self.test_accuracy)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class of each sample, int64 ``[N]``, or of each step, ``[N, T]``; targets in the batch are not used."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).argmax(-1)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class LitSNN(_Classifier):
    """A stack of linear and LIF layers with a linear readout, trained with surrogate gradients and cross-entropy.

    Logs ``train_loss``, ``val_loss``, ``val_accuracy`` and ``test_accuracy``.

    Args:
        in_features: Values per time step.
        hidden: Width of each LIF layer, first to last.
        num_classes: Number of classes.
        tau: Membrane time constant of the LIF neurons, in time steps, above 1.
        v_reset: Voltage after a spike; None: soft reset.
        reduction: What the readout sees of the last layer's spikes: their ``mean`` or ``sum`` over time, or the
            ``last`` step.
        lr: Learning rate of Adam.

    Shapes:
        Input ``[N, T, in_features]``, output (logits) ``[N, num_classes]``.

    Raises:
        MisconfigurationException: If a width or ``tau`` is out of range.

    Example:
        >>> net = LitSNN(in_features=8, hidden=[32, 16])
        >>> net(torch.rand(4, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        in_features: int = 8,
        hidden: list[int] = [128, 128],  # noqa: B006  a list, so that YAML can fill it; never changed
        num_classes: int = 10,
        tau: float = 2.0,
        v_reset: float | None = 0.0,
        reduction: Literal["last", "mean", "sum"] = "mean",
        lr: float = 1e-2,
    ) -> None:
        super().__init__(num_classes, lr)
        self.save_hyperparameters()
        if not hidden or min(hidden) < 1:
            raise MisconfigurationException(f"Invalid value hidden={hidden!r}. Expected a list of positive integers.")
        if not tau > 1:
            raise MisconfigurationException(f"Invalid value tau={tau!r}. Expected a number above 1.")
        layers: list[nn.Module] = []
        for fan_in, width in zip([in_features, *hidden], hidden, strict=False):
            layers.append(layer.Linear(fan_in, width, step_mode="m"))
            layers.append(neuron.LIFNode(tau=tau, v_reset=v_reset, surrogate_function=surrogate.ATan(), step_mode="m"))
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(hidden[-1], num_classes)
        self.reduction = reduction

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of sequences ``[N, T, in_features]``."""
        reset_neurons(self.layers)
        spikes = self.layers(x.transpose(0, 1))
        if self.reduction == "last":
            return self.readout(spikes[-1])
        return self.readout(spikes.mean(0) if self.reduction == "mean" else spikes.sum(0))


class ParallelSNN(_Classifier):
    """K branches side by side, each a stack of linear and LIF layers, and a linear readout of all their last layers.

    The network of Udupi, Yang, Zhai, arXiv 2605.08022 (2026). Its neurons are those of the paper by default: retained
    fraction 0.99, ``decay_input=False``, soft reset, threshold 1. Given a range, each branch draws its constants from
    it; they are buffers, which ``state_dict`` keeps. Witnesses ``pool`` and ``priced`` replace whole branches, and with
    them their constants.

    Args:
        in_features: Values per time step.
        width: Units of each hidden LIF layer but the last, all branches together.
        last_width: Units of the last LIF layer, all branches together.
        depth: Layers, the readout included, at least 2.
        branches: K; it divides the widths.
        num_classes: Number of classes.
        tau: Membrane time constant in steps, above 1. A range ``(low, high)``: branches draw 1/tau uniformly.
        v_threshold: The voltage at which neurons fire, above 0. A range ``(low, high)``: branches draw it uniformly.
        reset: ``"soft"``: the threshold is subtracted; ``"hard"``: to 0; ``"mixed"``: branches draw one of them.
        decay_input: Whether the input is divided by ``tau`` too.
        reduction: What the readout sees of the last layers: spikes of the ``last`` step, their ``mean`` over time, or
            ``membrane``, ``1[h[T] >= 0]`` of the voltage h after the last charge (the paper's); ``all``: the spikes of
            each step, for a target per step.
        loss: Trained by surrogate gradients: ``"cross_entropy"``, or ``"hinge"``, one class against the rest.
        lr: Learning rate of Adam.

    Shapes:
        Input ``[N, T, in_features]``, output (logits) ``[N, num_classes]``, or ``[N, T, num_classes]`` for ``all``.

    Raises:
        MisconfigurationException: If a size or constant is out of range.

    Example:
        >>> net = ParallelSNN(in_features=2, width=8, last_width=16, depth=3, branches=2, tau=(1.05, 100.0))
        >>> net(torch.rand(4, 6, 2)).shape, "branches.1.3.tau" in net.state_dict()
        (torch.Size([4, 2]), True)
    """

    def __init__(
        self,
        in_features: int = 2,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 5,
        branches: int = 2,
        num_classes: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        reduction: Literal["last", "mean", "membrane", "all"] = "last",
        loss: Literal["cross_entropy", "hinge"] = "cross_entropy",
        lr: float = 1e-3,
    ) -> None:
        super().__init__(num_classes, lr, loss)
        self.save_hyperparameters()
        _check_sizes(depth, branches, width, last_width)
        self.widths = [in_features, *[width // branches] * (depth - 2), last_width // branches]
        self.tau = _range("tau", tau, 1.0)
        self.v_threshold = _range("v_threshold", v_threshold, 0.0)
        for name, value, allowed in (
            ("reset", reset, ("soft", "hard", "mixed")),
            ("reduction", reduction, ("last", "mean", "membrane", "all")),
            ("loss", loss, ("cross_entropy", "hinge")),
        ):
            if value not in allowed:
                raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected one of {list(allowed)}.")
        self.reset = reset
        self.decay_input = decay_input
        self.reduction = reduction
        self.branches = nn.ModuleList([self.draw_branch() for _ in range(branches)])
        self.readout = nn.Linear(last_width, num_classes)

    def draw_branch(self) -> nn.Sequential:
        """A new branch: weights from torch's default initialisation, constants from the network's ranges."""
        inverse, threshold, coin = torch.rand(3, dtype=torch.float64).tolist()
        (low, high), (least, most) = self.tau, self.v_threshold
        tau = low if low == high else 1 / ((1 - inverse) / low + inverse / high)
        v_threshold = least + threshold * (most - least)
        soft = coin < 0.5 if self.reset == "mixed" else self.reset == "soft"
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            layers.append(nn.Linear(fan_in, fan_out))
            layers.append(LIF(tau, v_threshold, None if soft else 0.0, self.decay_input))
        return nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits of sequences ``[N, T, in_features]``, see the class."""
        reset_neurons(self.branches)
        logits = self._read(x.transpose(0, 1))
        reset_neurons(self.branches)
        return logits.transpose(0, 1) if self.reduction == "all" else logits

    def features(self, branch: nn.Module, steps: Tensor) -> Tensor:
        """What the readout sees of one branch after ``steps`` ``[T, N, in_features]`` more, from its present state.

        Returns:
            ``[N, last_width / branches]``, for ``all`` with T in front.
        """
        spikes = branch(steps)
        if self.reduction == "membrane":
            last: Any = branch[-1]  # type: ignore[index]
            return last.surrogate_function(last.charged)
        if self.reduction == "all":
            return spikes
        return spikes[-1] if self.reduction == "last" else spikes.mean(0)

    def _read(self, steps: Tensor) -> Tensor:
        return self.readout(torch.cat([self.features(branch, steps) for branch in self.branches], -1))


class AdditionSNN(ParallelSNN):
    """`ParallelSNN` for the sums of `AdditionDataModule`; in testing it feeds back the carry that it has computed.

    Of each column it tells the sum ``s = a + b + carry``, one of ``2 * base`` classes: the digit is ``s % base``, the
    carry ``s // base``. Logs ``test_accuracy_5_digits`` and so on: the share of digits that are right where the network
    only sees ``a`` and ``b``, and ``test_sums_5_digits``, the share of sums of which every digit is.

    Args:
        base: Base of the numbers, at least 2.
        width: See `ParallelSNN`, as the rest.
        last_width: Units of the last LIF layer.
        depth: Layers, the readout included.
        branches: K.
        tau: Membrane time constant, or its range.
        v_threshold: Threshold, or its range.
        reset: Kind of reset.
        decay_input: Whether the input is divided by ``tau`` too.
        lr: Learning rate of Adam.

    Shapes:
        Input ``[N, T, 3]``, output (logits) ``[N, T, 2 * base]``.

    Example:
        >>> net = AdditionSNN(base=3, last_width=16, depth=2, branches=1)
        >>> net.add(torch.tensor([[[2, 2], [1, 0], [0, 0]]])).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        base: int = 3,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 2,
        branches: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(
            3, width, last_width, depth, branches, 2 * base, tau, v_threshold, reset, decay_input, "all", lr=lr
        )
        self.base = base

    @torch.no_grad()
    def add(self, digits: Tensor) -> Tensor:
        """Add numbers column by column, least significant first, each with the carry of the one before.

        Args:
            digits: int64 ``[N, T, 2]``, the digits of both numbers.

        Returns:
            int64 ``[N, T]``, the network's answer for the sum of each column, carry included.
        """
        reset_neurons(self.branches)
        carry = digits.new_zeros(len(digits))
        sums = []
        for column in digits.unbind(1):
            x = torch.cat([column, carry[:, None]], 1).to(self.readout.weight) / (self.base - 1)
            sums.append(self._read(x[None])[0].argmax(1))
            carry = sums[-1] // self.base
        reset_neurons(self.branches)
        return torch.stack(sums, 1)

    def _add(self, x: Tensor) -> Tensor:
        """Sums of inputs ``[N, T, 3]``, of which the digits are used, not the carries."""
        return self.add((x[..., :2] * (self.base - 1)).round().long())

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """What `add` answers for the digits of a batch, int64 ``[N, T]``."""
        return self._add(batch[0] if isinstance(batch, (tuple, list)) else batch)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy of one batch ``(x, y)``; of its inputs the digits are used, not the carries."""
        x, y = batch
        right = self._add(x) % self.base == y % self.base
        options: Any = {"on_epoch": True, "add_dataloader_idx": False, "batch_size": len(x)}
        self.log(f"test_accuracy_{x.shape[1] - 1}_digits", right.float().mean(), **options)
        self.log(f"test_sums_{x.shape[1] - 1}_digits", right.all(1).float().mean(), **options)


def _check_sizes(depth: int, branches: int, width: int, last_width: int) -> None:
    for name, value, least in (("depth", depth, 2), ("branches", branches, 1)):
        if value < least:
            raise MisconfigurationException(f"Invalid value {name}={value!r}. Expected an integer >= {least}.")
    for name, value in (("width", width), ("last_width", last_width)):
        if value < branches or value % branches:
            raise MisconfigurationException(
                f"Invalid value {name}={value!r}. Expected a multiple of branches={branches}: each has its share."
            )


def _range(name: str, value: Constant, above: float) -> tuple[float, float]:
    """A constant as a range ``(low, high)``, checked."""
    low, high = value if isinstance(value, (tuple, list)) else (value, value)
    if not above < low <= high < float("inf"):
        raise MisconfigurationException(
            f"Invalid value {name}={value!r}. Expected a finite number above {above:g}, or a range (low, high) of them."
        )
    return float(low), float(high)
