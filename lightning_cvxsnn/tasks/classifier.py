"""Training, validation and test steps that the classifying networks share."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override


class Classifier(pl.LightningModule):
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
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy of one batch ``(x, y)``; of several loaders each has a metric named by its number of steps."""
        logits, y = self._rows(batch)
        if isinstance(loaders := self.trainer.test_dataloaders, list) and len(loaders) > 1:
            name, right = f"test_accuracy_{batch[0].shape[1]}_steps", (logits.argmax(1) == y).float().mean()
            self.log(name, right, on_epoch=True, add_dataloader_idx=False, batch_size=len(y))
            return
        self.test_accuracy(logits, y)
        self.log("test_accuracy", self.test_accuracy)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class of each sample, int64 ``[N]``, or of each step, ``[N, T]``; targets in the batch are not used."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).argmax(-1)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
