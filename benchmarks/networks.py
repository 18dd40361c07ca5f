"""The callback on 40 networks of spikingjelly's models and examples: `python benchmarks/networks.py` (10 minutes).

One epoch of a few small batches of scikit-learn's digits each, at small widths; batch sizes are 8, 16, 32 and 64, and
some equal a channel count. Each network works or is refused with one sentence. A network that
results/networks.json has already is not run again; `--only NAME` runs those whose names contain NAME, anew.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, Row, show, trainer, write
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, rnn, surrogate
from spikingjelly.activation_based.examples import (
    conv_fashion_mnist,
    lif_fc_mnist,
    rsnn_sequential_fmnist,
    speech_commands,
)
from spikingjelly.activation_based.examples.memopt.models import VGGBlock
from spikingjelly.activation_based.model import (
    masnn,
    maxformer,
    ms_resnet,
    parametric_lif_net,
    qkformer,
    sew_resnet,
    spike_driven_transformer,
    spikformer,
    spiking_resnet,
    spiking_vgg,
    spiking_vggws_ottt,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.demo import quiet

T = 2
CLASSES = 10


class Lit(pl.LightningModule):
    """A network, shown each image as ``show`` makes it; outputs over time are averaged."""

    def __init__(self, net: nn.Module, show: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.show = net, show

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        output = self.net(self.show(x))
        output = output[0] if isinstance(output, tuple) else output
        return output.mean(0) if output.dim() == 3 else output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def repeated(x: Tensor) -> Tensor:
    return x.expand(T, *x.shape)


def by_rows(x: Tensor) -> Tensor:
    """``[rows, N, columns]``: the rows of an image one after the other."""
    return x[:, 0].transpose(0, 1)


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def as_it_is(x: Tensor) -> Tensor:
    return x


def samples_first(x: Tensor) -> Tensor:
    return x.unsqueeze(1).expand(-1, T, -1, -1, -1)


def spiking(**arguments: Any) -> dict[str, Any]:
    return {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan(), **arguments}


def multi_step(net: nn.Module) -> nn.Module:
    functional.set_step_mode(net, "m")
    return net


# -- networks ---------------------------------------------------------------------------------------------------------


def resnet(module: Any, block: str, **arguments: Any) -> nn.Module:
    kind = module.SEWResNet if module is sew_resnet else module.SpikingResNet
    made = kind(getattr(module, block), (1, 1, 1, 1), num_classes=CLASSES, **spiking(**arguments))
    return multi_step(made)


def vgg(batch_norm: bool, node: Any = neuron.LIFNode) -> nn.Module:
    """As in spikingjelly, with 16 and 32 channels and a classifier of 64 units."""
    made = spiking_vgg.SpikingVGG([16, "M", 32, "M"], batch_norm, num_classes=CLASSES, spiking_neuron=node)
    classifier = [layer.Linear(32 * 49, 64), node(), layer.Dropout(), layer.Linear(64, CLASSES)]
    made.classifier = nn.Sequential(*classifier)
    return multi_step(made)


def ottt(weight_standardization: bool) -> nn.Module:
    """Spikingjelly's for training through time, with 16 and 32 channels; trained on one step here."""
    made = spiking_vggws_ottt.OTTTSpikingVGG([16, "A", 32], weight_standardization, spiking_neuron=neuron.OTTTLIFNode)
    made.classifier[-1] = layer.Linear(32, CLASSES)
    return made


def parametric(kind: Any, channels: int) -> nn.Module:
    return multi_step(kind(channels, neuron.ParametricLIFNode))


def residual(kind: Any, **arguments: Any) -> nn.Module:
    """Pre-activation residual networks of the models' own time steps."""
    return kind(
        T=T, in_channels=1, num_classes=CLASSES, layers=(1, 1, 1, 1), base_channels=16, stem_kernel_size=3,
        stem_stride=1, **arguments,
    )  # fmt: skip


class Recurrent(nn.Module):
    """As in the example ``spiking_lstm_sequential_mnist``, with 64 units."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.recurrent, self.fc = kind(8, 64, 1), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.recurrent(x)[0][-1])


class DVSVGG(nn.Module):
    """As in the example ``memopt``, with two of its blocks, for images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        constants = {"tau": 1.333, "decay_input": False, "step_mode": "m"}
        self.features = nn.Sequential(
            VGGBlock(1, 16, 3, 1, 1, False, **constants), VGGBlock(16, 32, 3, 1, 1, True, **constants),
            layer.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.25), nn.Linear(32 * 16, CLASSES))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:  # [N, T, 1, 16, 16]
        return self.classifier(self.features(x.transpose(0, 1)).flatten(2))


class Speech(nn.Module):
    """As in the example ``speech_commands``, with one block of eight channels: samples first, but for the neurons."""

    def __init__(self) -> None:
        super().__init__()
        spikes = speech_commands.LIFWrapper(neuron.LIFNode(10 / 7, step_mode="m"), flatten=True)
        self.conv, self.fc = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), spikes), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x)).mean(1)


class Voltage(neuron.SimpleLIFNode):
    """Passes on its voltage."""

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        return self.v


class DQSN(nn.Module):
    """As in the example ``spiking_dqn_state``: step by step, and the voltage of the last step is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(layer.Linear(64, 32), neuron.IFNode(), layer.Linear(32, CLASSES), Voltage(2.0, True))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(T):
            self.fc(x)
        return self.fc[-1].v


def normalised(norm: Any, channels: int = 16, node: Any = neuron.LIFNode) -> nn.Sequential:
    """Two convolutions, each with a norm and neurons, and a readout."""
    parts: list[nn.Module] = []
    for given in (1, channels):
        parts += [layer.Conv2d(given, channels, 3, padding=1, bias=False), norm(channels), node(), layer.MaxPool2d(2)]
    net = nn.Sequential(*parts, layer.Flatten(), layer.Linear(channels * 4, CLASSES))
    functional.set_step_mode(net, "m")
    return net


def recurrent_containers() -> nn.Module:
    """Both of spikingjelly, each behind a linear layer, the first one behind a batch norm too."""
    linear = layer.LinearRecurrentContainer(neuron.LIFNode(), 32, 32)
    feedback = layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda x, y: x + 0.5 * y)
    parts = [layer.Flatten(), layer.Linear(64, 32), layer.BatchNorm1d(32), linear, layer.Linear(32, 32), feedback]
    return multi_step(nn.Sequential(*parts, layer.Linear(32, CLASSES)))


def cases() -> dict[str, tuple[Callable[[], nn.Module], int, int, int, Callable[[Tensor], Tensor]]]:
    """Name: the network, the batch size, channels and size of the images, and how they are shown."""
    former = {"T": T, "in_channels": 1, "num_classes": CLASSES}
    spikf = partial(spikformer.Spikformer, **former, img_size_h=32, img_size_w=32, patch_size=16, depths=1, num_heads=4)
    driven = partial(spike_driven_transformer.SpikeDrivenTransformer, **former, depths=1, num_heads=4)
    qk = partial(qkformer.QKFormer, **former, embed_dims=32, num_heads=(1, 2, 4), depths=(1, 1, 1))
    maxf = partial(maxformer.MaxFormer, **former, embed_dims=32, depths=(1, 1, 1))
    own = partial(residual, ms_resnet.MSResNet)
    attention = partial(
        masnn.MASNN, T=T, in_channels=1, num_classes=CLASSES, input_size=(16, 16), channels=(16, 16), pools=(1, 2),
        fc_hidden=32, reduction_t=1, reduction_c=4,
    )  # fmt: skip
    sew, plain = partial(resnet, sew_resnet), partial(resnet, spiking_resnet)
    return {
        "Spikformer, 32 channels, batch 8": (partial(spikf, embed_dims=32), 8, 1, 32, as_it_is),
        "Spikformer, 64 channels, batch 64": (partial(spikf, embed_dims=64), 64, 1, 32, as_it_is),
        "Spike-driven transformer, batch 16": (partial(driven, embed_dims=32), 16, 1, 32, as_it_is),
        "Spike-driven transformer, batch 32": (partial(driven, embed_dims=32), 32, 1, 32, as_it_is),
        "QKFormer, tokens, batch 8": (partial(qk, qka_type="token"), 8, 1, 32, as_it_is),
        "QKFormer, channels, batch 16": (partial(qk, qka_type="channel"), 16, 1, 32, as_it_is),
        "MaxFormer, batch 8": (maxf, 8, 1, 32, as_it_is),
        "MaxFormer, CIFAR, batch 16": (partial(maxf, cifar=True), 16, 1, 32, as_it_is),
        "MS-ResNet, batch 32": (own, 32, 1, 16, as_it_is),
        "MS-ResNet, batch 16": (own, 16, 1, 16, as_it_is),
        "MaxResNet, batch 32": (partial(residual, ms_resnet.MaxResNet), 32, 1, 16, as_it_is),
        "Attention MS-ResNet, batch 8": (partial(residual, masnn.AttMSResNet), 8, 1, 16, as_it_is),
        "MA-SNN, batch 16": (attention, 16, 1, 16, as_it_is),
        "SEW ResNet, add, batch 64": (partial(sew, "BasicBlock", cnf="ADD"), 64, 3, 16, repeated),
        "SEW ResNet, and, batch 32": (partial(sew, "BasicBlock", cnf="AND"), 32, 3, 16, repeated),
        "SEW ResNet, iand, batch 16": (partial(sew, "BasicBlock", cnf="IAND"), 16, 3, 16, repeated),
        "SEW ResNet, bottleneck, batch 16": (partial(sew, "Bottleneck", cnf="ADD"), 16, 3, 16, repeated),
        "Spiking ResNet, batch 64": (partial(plain, "BasicBlock"), 64, 3, 16, repeated),
        "Spiking ResNet, bottleneck, batch 16": (partial(plain, "Bottleneck"), 16, 3, 16, repeated),
        "Spiking VGG, batch 32": (partial(vgg, False), 32, 3, 16, repeated),
        "Spiking VGG, batch norm, batch 32": (partial(vgg, True), 32, 3, 16, repeated),
        "Spiking VGG, IF, batch 64": (partial(vgg, True, neuron.IFNode), 64, 3, 16, repeated),
        "OTTT VGG, standardised, batch 16": (partial(ottt, True), 16, 3, 16, as_it_is),
        "OTTT VGG, batch 16": (partial(ottt, False), 16, 3, 16, as_it_is),
        "Parametric LIF net, MNIST, batch 8": (
            partial(parametric, parametric_lif_net.MNISTNet, 8), 8, 1, 28, repeated,
        ),
        "Example conv_fashion_mnist, batch 8": (partial(conv_fashion_mnist.CSNN, T, 8), 8, 1, 28, as_it_is),
        "Example conv_fashion_mnist, batch 32": (partial(conv_fashion_mnist.CSNN, T, 8), 32, 1, 28, as_it_is),
        "Example lif_fc_mnist, batch 64": (partial(lif_fc_mnist.SNN, 2.0), 64, 1, 28, as_it_is),
        "Example rsnn, plain, batch 32": (lambda: multi_step(rsnn_sequential_fmnist.PlainNet()), 32, 1, 28, by_rows),
        "Example rsnn, synapses, batch 16": (
            lambda: multi_step(rsnn_sequential_fmnist.StatefulSynapseNet()), 16, 1, 28, by_rows,
        ),
        "Example rsnn, feedback, batch 32": (
            lambda: multi_step(rsnn_sequential_fmnist.FeedBackNet()), 32, 1, 28, by_rows,
        ),
        "Example spiking_lstm, LSTM, batch 64": (partial(Recurrent, rnn.SpikingLSTM), 64, 1, 8, by_rows),
        "Example spiking_lstm, GRU, batch 8": (partial(Recurrent, rnn.SpikingGRU), 8, 1, 8, by_rows),
        "Example speech_commands, batch 8": (Speech, 8, 1, 8, as_it_is),
        "Example memopt, batch 16": (DVSVGG, 16, 1, 16, samples_first),
        "Example spiking_lstm, plain RNN, batch 32": (partial(Recurrent, rnn.SpikingVanillaRNN), 32, 1, 8, by_rows),
        "Example spiking_dqn_state, batch 32": (DQSN, 32, 1, 8, flat),
        "Conv-BN, batch 16": (partial(normalised, layer.BatchNorm2d), 16, 1, 8, repeated),
        "Conv, threshold-dependent BN, batch 16": (
            partial(normalised, partial(layer.ThresholdDependentBatchNorm2d, 1.0, 1.0)), 16, 1, 8, repeated,
        ),
        "Recurrent containers, BN1d, batch 32": (recurrent_containers, 32, 1, 8, repeated),
    }  # fmt: skip


# -- the run ----------------------------------------------------------------------------------------------------------


def images(rows: int, channels: int, size: int) -> TensorDataset:
    """Digits ``[rows, channels, size, size]`` in [0, 1], and their classes."""
    x, y = load_digits(return_X_y=True)
    scaled = torch.tensor(x[:rows], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    scaled = F.interpolate(scaled, size=(size, size), mode="bilinear") if size != 8 else scaled
    return TensorDataset(scaled.repeat(1, channels, 1, 1), torch.tensor(y[:rows]))


def run(name: str) -> Row:
    """One epoch of one network with the callback: what came of it."""
    make, batch, channels, size, shown = cases()[name]
    pl.seed_everything(0, verbose=False)
    net = Lit(make(), shown)
    callback = ConvexReconstruction()
    rows = max(32, 2 * batch)
    started, refusal = time.perf_counter(), ""
    with quiet():
        try:
            trainer(1, [callback]).fit(net, DataLoader(images(rows, channels, size), batch, shuffle=True))
        except MisconfigurationException as error:
            refusal = str(error)
    finite = all(bool(p.isfinite().all()) for p in net.parameters())
    first = next(iter(callback.reports), None)
    return {
        "network": name,
        "verdict": "refused" if refusal else "works" if finite and first is not None else "broken",
        "solves": f"{sum(report.accepted for report in callback.reports)} of {len(callback.reports)}",
        "columns": None if first is None else first.columns,
        "loss_before": None if first is None else first.held_out_loss_before,
        "loss_after": None if first is None else first.held_out_loss_after,
        "repaired": "" if first is None else first.repaired,
        "seconds": round(time.perf_counter() - started, 1),
        "refusal": refusal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="networks whose names contain this, anew")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.output / "networks.json"
    known = {row["network"]: row for row in json.loads(file.read_text())["results"]} if file.exists() else {}
    for name in cases():
        if any(part in name for part in options.only) if options.only else name not in known:
            known[name] = run(name)
            print(f"{name}: {known[name]['verdict']}, {known[name]['seconds']} s {known[name]['refusal']}", flush=True)
            write("networks", [known[other] for other in cases() if other in known], folder=options.output)
    rows = [known[name] for name in cases() if name in known]
    shown = ("network", "verdict", "solves", "columns", "loss_before", "loss_after", "seconds")
    show(f"{sum(r['verdict'] == 'works' for r in rows)} of {len(rows)} work", [{k: r[k] for k in shown} for r in rows])


if __name__ == "__main__":
    main()
