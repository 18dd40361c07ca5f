"""Spiking networks that are ready to train: `LitSNN`."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_cvxsnn.patterns import fresh_state


class LitSNN(pl.LightningModule):
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
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for fan_in, width in zip([in_features, *hidden], hidden, strict=False):
            layers.append(layer.Linear(fan_in, width, step_mode="m"))
            layers.append(neuron.LIFNode(tau=tau, v_reset=v_reset, surrogate_function=surrogate.ATan(), step_mode="m"))
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(hidden[-1], num_classes)
        self.reduction = reduction
        self.lr = lr
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of sequences ``[N, T, in_features]``."""
        fresh_state(self.layers)
        spikes = self.layers(x.transpose(0, 1))
        if self.reduction == "last":
            return self.readout(spikes[-1])
        return self.readout(spikes.mean(0) if self.reduction == "mean" else spikes.sum(0))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch ``(x, y)``."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and accuracy of one batch ``(x, y)``."""
        x, y = batch
        logits = self(x)
        self.val_accuracy(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy of one batch ``(x, y)``."""
        x, y = batch
        self.test_accuracy(self(x), y)
        self.log("test_accuracy", self.test_accuracy)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
