"""A dead network, and the same one brought to life: `python examples/dead_layers.py`.

Prints what the doctor finds before and after `calibrate`, and draws the spikes that the readout receives for one image
(`dead_layers.png`).
"""

import sys

import torch

from lightning_cvxsnn import DigitsDataModule, LitSNN, calibrate, diagnose, plots
from lightning_cvxsnn.network import reset_neurons


def spikes(net: LitSNN, x: torch.Tensor) -> torch.Tensor:
    """Spikes `[T, N, units]` of the last hidden layer."""
    reset_neurons(net.layers)
    with torch.no_grad():
        return net.layers(x.transpose(0, 1))


def main(output: str = "dead_layers.png") -> None:
    torch.manual_seed(0)
    data = DigitsDataModule()
    data.setup("fit")
    loader = data.train_dataloader()
    net = LitSNN(hidden=[64, 64])
    image = data.train[0][0][None]
    print(diagnose(net, loader))
    before = spikes(net, image)
    calibrate(net, loader)
    print(diagnose(net, loader))
    plots.raster(before, spikes(net, image)).savefig(output, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
