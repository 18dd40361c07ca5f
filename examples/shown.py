"""What is trained and what is shown, side by side: `python examples/shown.py`.

Two callbacks score the network after each epoch: one before `ConvexReconstruction` acts, one as Lightning validates.
Draws both curves (`shown.png`).
"""

import sys

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.data import default_collate

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN


class Scores(Callback):
    """Accuracy on some rows, in percent, over epochs."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.epochs: list[int] = []
        self.values: list[float] = []

    @torch.no_grad()
    def score(self, net: LightningModule, epoch: int) -> None:
        training = net.training
        net.eval()
        self.epochs.append(epoch)
        self.values.append(100 * float((net(self.x).argmax(1) == self.y).float().mean()))
        net.train(training)


class Trained(Scores):
    """Put it before the callback, which acts after the last batch, too."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.is_last_batch:
            self.score(pl_module, trainer.current_epoch + 1)


class Shown(Scores):
    """Put it behind the callback."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score(pl_module, 0)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.score(pl_module, trainer.current_epoch + 1)


def main(output: str = "shown.png", epochs: int = 20) -> tuple[Scores, Scores]:
    torch.manual_seed(1)
    data = DigitsDataModule()
    data.setup("fit")
    x, y = default_collate(list(data.val))
    trained, shown = Trained(x, y), Shown(x, y)
    trainer = Trainer(
        max_epochs=epochs, callbacks=[trained, ConvexReconstruction(), shown], num_sanity_val_steps=0,
        accelerator="cpu", logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(LitSNN(hidden=[128]), data)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(trained.epochs, trained.values, "o-", color="#e69f00", label="the network in training")
    axes.plot(shown.epochs, shown.values, "s-", color="#0072b2", label="what is shown", zorder=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    figure.savefig(output, dpi=80)
    return trained, shown


if __name__ == "__main__":
    main(*sys.argv[1:])
