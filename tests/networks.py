"""Networks that users write: spikingjelly layers in a LightningModule, single-step and multi-step."""

from itertools import chain, pairwise

import lightning.pytorch as pl
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STEPS, FEATURES, CLASSES = 4, 6, 3


def reduce_over_time(values, reduction):
    """``[T, N, C]`` to ``[N, C]``, or as it is for ``all``."""
    return {
        "last": lambda v: v[-1],
        "mean": lambda v: v.mean(0),
        "sum": lambda v: v.sum(0),
        "all": lambda v: v,
        "all batch first": lambda v: v.transpose(0, 1),
    }[reduction](values)


class Net(pl.LightningModule):
    """``Linear-LIF`` and a readout; ``x`` is ``[N, F]``, shown for T steps with a gain that changes over time."""

    def __init__(
        self, reduction="mean", step_mode="m", bias=True, width=24, classes=CLASSES, tail=None, gain=3.0, lr=0.05
    ):
        super().__init__()
        self.hidden = nn.Sequential(layer.Linear(FEATURES, width), neuron.LIFNode())
        self.readout = layer.Linear(width, classes, bias=bias)
        functional.set_step_mode(self, step_mode)
        self.reduction, self.step_mode, self.gain, self.lr = reduction, step_mode, gain, lr
        self.tail = tail or nn.Identity()

    def steps(self, x):
        return torch.stack([x * self.gain * (1 + 0.5 * t) for t in range(STEPS)])

    def forward(self, x):
        functional.reset_net(self.hidden)
        if self.step_mode == "m":
            logits = self.readout(self.hidden(self.steps(x)))
        else:
            logits = torch.stack([self.readout(self.hidden(step)) for step in self.steps(x)])
        return self.tail(reduce_over_time(logits, self.reduction))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DeepNet(Net):
    """Several layers of ``Linear-LIF``, and a readout."""

    def __init__(self, depth=6, width=24, step_mode="m", node=neuron.LIFNode, last_width=None, lr=0.05):
        super().__init__(step_mode=step_mode, lr=lr, width=last_width or width)
        widths = [FEATURES, *[width] * (depth - 1), last_width or width]
        pairs = [(layer.Linear(a, b), node()) for a, b in pairwise(widths)]
        self.hidden = nn.Sequential(*chain.from_iterable(pairs))
        functional.set_step_mode(self.hidden, step_mode)


class ConvNet(Net):
    """``Conv-LIF``, whatever pools its maps, and a readout; ``x`` is ``[N, 2, 6, 6]``."""

    def __init__(self, reduction="mean", step_mode="m", channels=5, pool=None, lr=0.05, norm=False):
        super().__init__(reduction, step_mode, lr=lr)
        norms = [layer.BatchNorm2d(channels)] if norm else []
        convolution = layer.Conv2d(2, channels, 3, padding=1)
        self.hidden = nn.Sequential(convolution, *norms, neuron.LIFNode(), pool or nn.Identity(), layer.Flatten())
        functional.set_step_mode(self.hidden, step_mode)
        with torch.no_grad():
            per_unit = self.hidden(torch.zeros(*[1] * (step_mode == "m"), 1, 2, 6, 6)).shape[-1]
        functional.reset_net(self.hidden)
        self.readout = layer.Linear(per_unit, CLASSES, step_mode=step_mode)


def images(n=40, seed=0):
    """Images ``[n, 2, 6, 6]`` in [0, 1] and labels ``[n]``: which third of the first channel is brightest."""
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, 0].unflatten(1, (CLASSES, 2)).mean((2, 3)).argmax(1)


def rows(n=240, classes=CLASSES, seed=0):
    """Separable-ish inputs ``[n, F]`` in [0, 1] and labels ``[n]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, FEATURES, generator=generator)
    return x, x[:, :classes].argmax(1)


def loader(n=240, batch_size=64, shuffle=False, seed=0, classes=CLASSES, **kwargs):
    return DataLoader(TensorDataset(*rows(n, classes, seed)), batch_size=batch_size, shuffle=shuffle, **kwargs)


def trainer(*callbacks, max_epochs=2, logger=False, checkpoint=False, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=checkpoint,
        enable_progress_bar=kwargs.pop("enable_progress_bar", False),
        enable_model_summary=False,
        **kwargs,
    )


def state(module):
    """A copy of the parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, saved):
    """Names of the parameters and buffers that are other ones than in a copy."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, saved[name])}


def assert_same_state(module, saved):
    for name, value in module.state_dict().items():
        assert torch.equal(value, saved[name]), f"{name} changed"


class Parts(nn.Module):
    """Layers by name, in multi-step mode, put together by a function."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        functional.set_step_mode(self, "m")
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def fitted(callback, net=None, dataloader=None, validation=False, **kwargs):
    """The network and the Trainer of a fit."""
    torch.manual_seed(1)
    net = net or Net()
    run = trainer(*(callback if isinstance(callback, (list, tuple)) else [callback]), **kwargs)
    run.fit(net, dataloader or loader(shuffle=True), loader(seed=1) if validation else None)
    return net, run


def occasions(callback):
    """When it solved: occasions and epochs."""
    return [(report.reason.split(":")[0], report.epoch) for report in callback.reports]
