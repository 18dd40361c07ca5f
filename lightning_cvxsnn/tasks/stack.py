"""A stack of spikingjelly's layers that is ready to train: `LitSNN`, and `RegressionSNN` with a real target."""

from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import NormalizedRootMeanSquaredError
from typing_extensions import override

from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.tasks.classifier import Classifier


class LitSNN(Classifier):
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
        >>> import torch
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


class RegressionSNN(LitSNN):
    """`LitSNN` with real targets, trained by the mean squared error.

    Logs ``train_loss``, ``val_loss``, and ``val_nrmse`` and ``test_nrmse``: the root of the mean squared error over the
    standard deviation of the targets, 1 for a constant answer. Solve for it with ``loss="squared"``.

    Args:
        in_features: Values per time step.
        hidden: Width of each LIF layer, first to last.
        targets: Number of real targets.
        tau: Membrane time constant of the LIF neurons, in time steps, above 1.
        v_reset: Voltage after a spike; None: soft reset.
        reduction: What the readout sees of the last layer's spikes, see `LitSNN`.
        lr: Learning rate of Adam.

    Shapes:
        Input ``[N, T, in_features]``, output and targets ``[N, targets]``.

    Example:
        >>> import torch
        >>> RegressionSNN(in_features=1, hidden=[32])(torch.rand(4, 20, 1)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        in_features: int = 1,
        hidden: list[int] = [128, 128],  # noqa: B006  see `LitSNN`
        targets: int = 1,
        tau: float = 2.0,
        v_reset: float | None = 0.0,
        reduction: Literal["last", "mean", "sum"] = "mean",
        lr: float = 1e-2,
    ) -> None:
        super().__init__(in_features, hidden, tau=tau, v_reset=v_reset, reduction=reduction, lr=lr)
        del self.val_accuracy, self.test_accuracy  # of a classifier
        self.readout = nn.Linear(hidden[-1], targets)
        self.val_nrmse = NormalizedRootMeanSquaredError("std", num_outputs=targets)
        self.test_nrmse = NormalizedRootMeanSquaredError("std", num_outputs=targets)

    @override
    def _loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(logits, y)

    @override
    def _rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return self(x), y

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and error of one batch ``(x, y)``."""
        answers, y = self._rows(batch)
        self.val_nrmse(answers, y)
        self.log("val_loss", self._loss_of(answers, y))
        self.log("val_nrmse", self.val_nrmse, prog_bar=True)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Error of one batch ``(x, y)``."""
        self.test_nrmse(*self._rows(batch))
        self.log("test_nrmse", self.test_nrmse)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The answers, ``[N, targets]``."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch)
