"""Five minutes with the callback: `python examples/quick_start.py`.

Trains a spiking network on scikit-learn's digits, prints the last report, and draws all solves (`quick_start.png`).
"""

import sys

import torch
from lightning.pytorch import Trainer

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN


def main(output: str = "quick_start.png", epochs: int = 10) -> ConvexReconstruction:
    torch.manual_seed(0)
    callback = ConvexReconstruction()
    trainer = Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(LitSNN(), DigitsDataModule())
    print(callback.reports[-1])
    callback.plot().savefig(output, dpi=80)
    return callback


if __name__ == "__main__":
    main(*sys.argv[1:])
