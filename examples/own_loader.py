"""Batches of your own: events as dicts, padded sequences, weights of rows: `python examples/own_loader.py`.

Each sample is a sequence of a length of its own. The loader pads them, gives dicts, and counts rare classes more;
`convex_batch` tells the callback which part is what. Draws what the readout receives (`own_loader.png`).
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lightning_cvxsnn import ConvexReconstruction, plots, spike_dictionary

CLASS_WEIGHTS = torch.tensor([0.5, 1.5])


class Sequences(Dataset):
    """Noise with a burst in it; the class is whether the burst comes in channel 1."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = (torch.rand(rows, generator=generator) < 0.25).long()
        self.events = [
            torch.rand(int(n), 4, generator=generator) for n in torch.randint(6, 12, (rows,), generator=generator)
        ]
        for label, events in zip(self.labels, self.events, strict=True):
            events[2:5, int(label)] += 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"events": self.events[item], "label": self.labels[item]}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Time first, padded with silence to twelve steps."""
    events = pad_sequence([sample["events"] for sample in samples])
    events = nn.functional.pad(events, (0, 0, 0, 0, 0, 12 - len(events)))
    return {"events": events, "label": torch.stack([sample["label"] for sample in samples])}


class EventSNN(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(layer.Linear(4, 32), neuron.LIFNode())
        self.readout = layer.Linear(32, 2)
        functional.set_step_mode(self, "m")

    def forward(self, events: Tensor) -> Tensor:  # [T, N, 4]
        functional.reset_net(self.hidden)
        return self.readout(self.hidden(events)).mean(0)

    def convex_batch(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:  # x, y, weight of each row
        return batch["events"], batch["label"], CLASS_WEIGHTS[batch["label"]]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x, y, weight = self.convex_batch(batch)
        return (weight * nn.functional.cross_entropy(self(x), y, reduction="none")).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x, y, _ = self.convex_batch(batch)
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(output: str = "own_loader.png", epochs: int = 3) -> pl.Trainer:
    pl.seed_everything(0)
    options: dict[str, Any] = {"batch_size": 32, "collate_fn": collate}
    train = DataLoader(Sequences(400, seed=0), shuffle=True, **options)
    val = DataLoader(Sequences(200, seed=1), **options)
    net, callback = EventSNN(), ConvexReconstruction()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False
    )
    trainer.fit(net, train, val)
    print(callback.reports[-1])
    plots.dictionary(spike_dictionary(net, train)).savefig(output, dpi=80)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
