"""What the readout receives, before and after training: `python examples/dictionary.py` (draws `dictionary.png`)."""

import sys

import torch
from lightning.pytorch import Trainer

from lightning_cvxsnn import DigitsDataModule, LitSNN, calibrate, plots, spike_dictionary


def main(output: str = "dictionary.png", epochs: int = 10) -> None:
    torch.manual_seed(0)
    data, net = DigitsDataModule(), LitSNN(hidden=[48])
    data.setup("fit")
    calibrate(net, data.train_dataloader())
    before = spike_dictionary(net, data.train_dataloader())
    Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False).fit(net, data)
    after = spike_dictionary(net, data.train_dataloader())
    print(f"distinct columns: {before.distinct} before, {after.distinct} after, of {after.shape[1]}")
    plots.dictionary(before, after).savefig(output, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
