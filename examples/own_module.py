"""Your own LightningModule, one more line in the Trainer: `python examples/own_module.py`.

A convolutional spiking network with batch norm, single-step, on scikit-learn's digits. Draws its solves
(`own_module.png`).
"""

import sys

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction


class ConvSNN(pl.LightningModule):
    """The kind of network spikingjelly's tutorials write: a loop over time, firing rates read out by a linear layer."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.features = torch.nn.Sequential(
            layer.Conv2d(1, 16, 3, padding=1),
            layer.BatchNorm2d(16),
            neuron.IFNode(),
            layer.MaxPool2d(2),
            layer.Conv2d(16, 32, 3, padding=1),
            layer.BatchNorm2d(32),
            neuron.IFNode(),
            layer.Flatten(),
        )
        self.classifier = layer.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self.features)
        return sum(self.classifier(self.features(x)) for _ in range(self.steps)) / self.steps

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(output: str = "own_module.png", epochs: int = 3) -> pl.Trainer:
    pl.seed_everything(0)
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(digits.target)
    train = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
    val = DataLoader(TensorDataset(x[1400:], y[1400:]), batch_size=64)
    callback = ConvexReconstruction()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],  # the line
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(ConvSNN(), train, val)
    callback.plot().savefig(output, dpi=80)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
