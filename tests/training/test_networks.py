"""The callback on networks as people build them, and on those that ship with spikingjelly."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import FEATURES, Net, loader, trainer
from sklearn.datasets import load_digits
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from spikingjelly.activation_based.examples import conv_fashion_mnist, lif_fc_mnist, rsnn_sequential_fmnist
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction

T = 4

pytestmark = pytest.mark.filterwarnings("ignore:.*encoder is random", "ignore:.*dead spiking layers")


def digits(rows, size=8, channels=1):
    """Real digits ``[rows, channels, size, size]`` in [0, 1], and their classes."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x[:rows], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    if size != 8:
        x = F.interpolate(x, size=(size, size), mode="bilinear")
    return x.repeat(1, channels, 1, 1), torch.tensor(y[:rows])


class Lit(pl.LightningModule):
    """What a user writes: a network, shown each image for T steps."""

    def __init__(self, net, lr=0.01):
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x):
        functional.reset_net(self.net)
        return self.net(x.expand(T, *x.shape)).mean(0)

    def loss(self, outputs, y):
        return F.cross_entropy(outputs, y)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class AfterWarmStart(pl.Callback):
    """What the network itself answers right after the warm start: its loss on all 160 training rows, its weights."""

    def on_train_start(self, trainer, pl_module):
        modes = [(m, m.training) for m in pl_module.modules()]
        pl_module.eval()
        with torch.no_grad():
            losses = [float(pl_module.loss(pl_module(x), y)) * len(y) for x, y in trainer.train_dataloader]
        self.loss = sum(losses) / 160
        self.weights = {n: m.weight.detach().clone() for n, m in pl_module.named_modules() if isinstance(m, nn.Linear)}
        self.penalty = float(list(self.weights.values())[-1].abs().sum())
        for module, mode in modes:
            module.training = mode


def warm_started(module, data=None, **options):
    """Fit one batch after a warm start; its report, which is what the network itself then answers."""
    callback = ConvexReconstruction(
        scale=1.0, l1_ratio=1.0, apply="replace", every_n_epochs=0, final_solve=False, **options
    )
    after = AfterWarmStart()
    rows = DataLoader(TensorDataset(*(data or digits(160))), batch_size=32)
    trainer(callback, after, max_epochs=1, max_steps=1).fit(module, rows)
    (report,) = callback.reports
    assert report.accepted, report
    assert report.gap < 1e-5
    objective = after.loss + report.rho * after.penalty
    assert objective == pytest.approx(report.dual + report.gap_written, rel=1e-4, abs=1e-7)
    return report


def multi_step(*layers):
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, "m")
    return net


def dense(*spiking, width=32):
    return multi_step(layer.Flatten(), layer.Linear(64, width), *spiking, layer.Linear(width, 10))


NEURONS = {
    "IF": neuron.IFNode(),
    "IF, soft reset": neuron.IFNode(v_reset=None),
    "LIF": neuron.LIFNode(),
    "parametric LIF": neuron.ParametricLIFNode(),
    "KLIF": neuron.KLIFNode(),
    "QIF": neuron.QIFNode(),
    "Izhikevich": neuron.IzhikevichNode(),
    "complementary LIF": neuron.ComplementaryLIFNode(),
    "CUBA LIF": neuron.CUBALIFNode(),
    "resonate and fire": neuron.RAFNode(),
    "parallel": neuron.PSN(T=T),
    "sliding parallel": neuron.SlidingPSN(k=2),
    "integer LIF": neuron.ILIFNode(),
    "ternary LIF": neuron.TernaryLIFNode(),
}


@pytest.mark.parametrize("spiking", NEURONS)
def test_neurons(spiking):
    warm_started(Lit(dense(NEURONS[spiking])))


class Residual(nn.Module):
    """A spike-element-wise residual block: Fang et al., NeurIPS 2021."""

    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            layer.Conv2d(channels, channels, 3, padding=1, bias=False), layer.BatchNorm2d(channels), neuron.IFNode()
        )

    def forward(self, x):
        return x + self.block(x)


def convolutions(*after):
    return multi_step(
        layer.Conv2d(1, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), neuron.IFNode(), *after,
        layer.Flatten(), layer.Linear(6 * 16, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    "net",
    [
        convolutions(layer.MaxPool2d(2)),
        convolutions(layer.AvgPool2d(2)),
        convolutions(layer.MaxPool2d(2), layer.Dropout(0.5)),
        convolutions(Residual(6), layer.MaxPool2d(2)),
        convolutions(layer.Conv2d(6, 6, 3, 2, 1), layer.BatchNorm2d(6), neuron.GatedLIFNode(T, inplane=6)),
    ],
    ids=["maximum pooling", "average pooling", "dropout", "spike-element-wise residual", "two convolutions"],
)
def test_convolutional_networks(net):
    warm_started(Lit(net))


def recurrent(kind):
    if kind == "linear":
        return layer.LinearRecurrentContainer(neuron.LIFNode(), in_features=32, out_features=32)
    return layer.ElementWiseRecurrentContainer(neuron.LIFNode(), element_wise_function=lambda x, y: x + 0.5 * y)


@pytest.mark.parametrize("kind", ["linear", "element-wise"])
def test_recurrent_containers(kind):
    warm_started(Lit(dense(recurrent(kind))))


class SingleStep(Lit):
    def forward(self, x):
        functional.reset_net(self.net)
        return sum(self.net(x) for _ in range(T))


def test_a_single_step_convolutional_network():
    net = convolutions(Residual(6), layer.MaxPool2d(2))
    functional.set_step_mode(net, "s")
    warm_started(SingleStep(net))


class Integrated(Lit):
    """The output is decoded from membrane potentials that do not spike."""

    def __init__(self, net, integrator):
        super().__init__(net)
        self.integrator = integrator

    def forward(self, x):
        functional.reset_net(self.net)
        return self.integrator(self.net(x.expand(T, *x.shape)))


@pytest.mark.parametrize("decode", ["last_mem", "mean-mem"])
@pytest.mark.parametrize("integrator", [neuron.NonSpikingIFNode, neuron.NonSpikingLIFNode])
def test_non_spiking_output_neurons(integrator, decode):
    warm_started(Integrated(dense(neuron.LIFNode()), integrator(decode=decode)))


def test_priced_witnesses_behind_a_leaky_readout():
    module = Integrated(dense(neuron.LIFNode()), neuron.NonSpikingLIFNode(tau=3.0, decode="last_mem"))
    assert warm_started(module, witnesses="priced").silent == 0


@pytest.mark.parametrize("part", ["network", "layers"])
def test_compiled_networks(part, compiling):
    module = Lit(dense(neuron.LIFNode()))
    if part == "network":
        module = torch.compile(module, backend="eager")
    else:
        module.net = torch.compile(module.net, backend="eager")
    warm_started(module)


class Events(Lit):
    """Batches of event frames come time first: ``[T, N, C, H, W]``."""

    def forward(self, x):
        functional.reset_net(self.net)
        return self.net(x).mean(0)


def test_event_data_time_first():
    images, y = digits(160)
    on, off = torch.rand(2, T, *images.shape) < images / 2, torch.rand(2, T, *images.shape) < (1 - images) / 10
    frames = torch.cat([on[0], off[1]], 2).float()  # [T, n, 2, 8, 8]
    net = multi_step(
        layer.Conv2d(2, 6, 3, padding=1), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(96, 10)
    )
    callback = ConvexReconstruction(scale=1.0, l1_ratio=1.0, apply="replace", every_n_epochs=0, final_solve=False)
    after = AfterWarmStart()

    def time_first(items):
        return torch.stack([frames[:, i] for i in items], 1), y[items]

    rows = DataLoader(range(160), batch_size=32, collate_fn=time_first)
    trainer(callback, after, max_epochs=1, max_steps=1).fit(Events(net), rows)
    (report,) = callback.reports
    assert report.accepted
    assert report.rows == 160
    objective = after.loss + report.rho * after.penalty
    assert objective == pytest.approx(report.dual + report.gap_written, rel=1e-4, abs=1e-7)


class Spoken(nn.Module):
    """As in spikingjelly's speech-commands example: samples first, but for the neurons."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.spike, self.fc = nn.Conv2d(1, 4, 3, padding=1), neuron.LIFNode(step_mode="m"), nn.Linear(32, 10)
        self.read = read

    def forward(self, x):  # [N, 1, T, 8], and neurons over [T, 4, N, 8]
        spikes = self.spike(3 * self.conv(x).transpose(0, 2)).permute(2, 0, 1, 3)
        return self.read(self.fc(spikes.flatten(2)))


class RowByRow(Lit):
    def forward(self, x):
        functional.reset_net(self.net)
        return self.net(x)


@pytest.mark.parametrize("rows", [160, 40])
@pytest.mark.parametrize("read", [lambda y: y.mean(1), lambda y: y[:, -1]], ids=["mean", "last"])
def test_a_readout_that_sees_samples_first(read, rows):
    """As many samples as steps in a batch of eight."""
    callback = ConvexReconstruction(scale=1.0, l1_ratio=1.0, apply="replace", every_n_epochs=0, final_solve=False)
    loader = DataLoader(TensorDataset(*digits(rows)), batch_size=8)
    trainer(callback, max_epochs=1).fit(RowByRow(Spoken(read)), loader)
    (report,) = callback.reports
    assert report.columns == 32
    assert report.rows == (rows if report.accepted else rows * 4 // 5)


# -- dead layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [False, True])
def test_a_dead_layer_that_cannot_be_repaired_is_refused_before_anything_is_written(dropped):
    net = dense(neuron.LIFNode(v_threshold=1e5))
    net[1] = layer.DropConnectLinear(64, 32, step_mode="m") if dropped else net[1].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    callback = ConvexReconstruction()
    with pytest.raises(MisconfigurationException, match=r"'net.2' carries no information.*fed by 'net.1'"):
        trainer(callback, max_epochs=1).fit(Lit(net), DataLoader(TensorDataset(*digits(64)), batch_size=32))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Dying(Lit):
    """Its hidden layer dies after an epoch and can no longer be changed."""

    def on_train_epoch_end(self):
        hidden = self.net[1].requires_grad_(False)
        with torch.no_grad():
            hidden.weight.zero_()
            hidden.bias.zero_()


def test_a_layer_that_dies_in_training_leaves_solves_out_and_ends_nothing():
    callback = ConvexReconstruction(max_overhead=None)
    fit = trainer(callback, max_epochs=3)
    with pytest.warns(UserWarning, match=r"leaves out the periodic solve, and training goes on.*'net.1'.*frozen"):
        fit.fit(Dying(dense(neuron.LIFNode())), DataLoader(TensorDataset(*digits(64)), batch_size=32))
    assert fit.current_epoch == 3
    assert [report.epoch for report in callback.reports] == [0, 1]


# -- losses -------------------------------------------------------------------------------------------------------


class WeightedClasses(Lit):
    weights = torch.linspace(0.2, 2.0, 10)

    def loss(self, outputs, y):
        return F.cross_entropy(outputs, y, self.weights)

    def convex_batch(self, batch):
        x, y = batch
        return x, y, self.weights[y] / self.weights[y].mean()


class Smoothed(Lit):
    def loss(self, outputs, y):
        return F.cross_entropy(outputs, y, label_smoothing=0.2)

    def convex_batch(self, batch):
        x, y = batch
        return x, 0.8 * F.one_hot(y, 10) + 0.02


class Soft(Lit):
    """Targets that are probabilities: each digit may be the next one."""

    @staticmethod
    def soft(y):
        return 0.7 * F.one_hot(y, 10).float() + 0.3 * F.one_hot((y + 1) % 10, 10)

    def loss(self, outputs, y):
        return F.cross_entropy(outputs, self.soft(y))

    def convex_batch(self, batch):
        return batch[0], self.soft(batch[1])


class OneLogit(Lit):
    """Even or odd."""

    def forward(self, x):
        return super().forward(x).squeeze(1)

    def loss(self, outputs, y):
        return F.binary_cross_entropy_with_logits(outputs, (y % 2).float())

    def convex_batch(self, batch):
        return batch[0], (batch[1] % 2).float()


@pytest.mark.parametrize("kind", [WeightedClasses, Smoothed, Soft, OneLogit])
def test_losses_are_solved_as_trained(kind, recwarn):
    net = dense(neuron.LIFNode())
    if kind is OneLogit:
        net[-1] = layer.Linear(32, 1, step_mode="m")
    warm_started(kind(net))
    assert not [w for w in recwarn if "ConvexReconstruction solves" in str(w.message)]


@pytest.mark.parametrize("kind", [WeightedClasses, Smoothed, Soft])
def test_losses_without_their_convex_batch_are_warned_about(kind, monkeypatch):
    monkeypatch.delattr(kind, "convex_batch")
    # An untrained readout has nearly the same loss either way.
    callback = ConvexReconstruction(apply="replace", every_n_epochs=0, final_solve=False)
    with pytest.warns(
        UserWarning, match=r"(?s)solves loss='cross_entropy'.*class weights, label smoothing, soft targets"
    ):
        trainer(callback, max_epochs=1).fit(
            kind(dense(neuron.LIFNode())), DataLoader(TensorDataset(*digits(160)), batch_size=32)
        )


# -- several outputs ----------------------------------------------------------------------------------------------


class Heads(Lit):
    """Two digits are told from one network: the digit, and whether it is above 4 (a carry when doubled)."""

    def __init__(self):
        super().__init__(dense(neuron.LIFNode())[:-1])
        self.digit, self.carry = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, x):
        functional.reset_net(self.net)
        spikes = self.net(x.expand(T, *x.shape))
        return {"digit": self.digit(spikes).mean(0), "carry": self.carry(spikes).sum(0)}

    def loss(self, outputs, y):
        return F.cross_entropy(outputs["digit"], y) + F.cross_entropy(outputs["carry"], (y > 4).long())

    def convex_batch(self, batch):
        x, y = batch
        return x, {"digit": y, "carry": (y > 4).long()}


def test_two_readouts_with_a_callback_each(recwarn):
    callbacks = [
        ConvexReconstruction(
            readout=name, scale=1.0, l1_ratio=1.0, apply="replace", every_n_epochs=0, final_solve=False
        )
        for name in ("digit", "carry")
    ]
    module, after = Heads(), AfterWarmStart()
    rows = DataLoader(TensorDataset(*digits(160)), batch_size=32)
    trainer(*callbacks, after, max_epochs=1, max_steps=1).fit(module, rows)
    reports = [callback.reports[0] for callback in callbacks]
    assert all(report.accepted for report in reports)
    penalty = sum(r.rho * float(after.weights[n].abs().sum()) for r, n in zip(reports, ("digit", "carry"), strict=True))
    assert after.loss + penalty == pytest.approx(sum(r.dual + r.gap_written for r in reports), rel=1e-4)
    assert callbacks[0].state_key != callbacks[1].state_key
    assert not [w for w in recwarn if "ConvexReconstruction solves" in str(w.message)]


def test_targets_of_the_wrong_names_are_refused():
    class Misnamed(Heads):
        def convex_batch(self, batch):
            return batch[0], {"digits": batch[1]}

    callback = ConvexReconstruction(readout="digit")
    with pytest.raises(MisconfigurationException, match=r"gives the output 'digit'; targets .* have \['digits'\]"):
        trainer(callback).fit(Misnamed(), DataLoader(TensorDataset(*digits(64)), batch_size=32))


# -- spikingjelly's own -------------------------------------------------------------------------------------------


class Rates(Lit):
    """An example of spikingjelly: squared error of firing rates."""

    def __init__(self, net):
        super().__init__(net)
        if not isinstance(net, lif_fc_mnist.SNN):
            functional.set_step_mode(net, "m")
        self.encoder = encoding.PoissonEncoder()

    def forward(self, x):
        functional.reset_net(self.net)
        if isinstance(self.net, lif_fc_mnist.SNN):
            return sum(self.net(self.encoder(x)) for _ in range(8)) / 8
        if isinstance(self.net, conv_fashion_mnist.CSNN):
            return self.net(x)
        return self.net(x.squeeze(1).permute(2, 0, 1))  # columns of the image one after the other

    def loss(self, outputs, y):
        return F.mse_loss(outputs, F.one_hot(y, 10).float())


EXAMPLES = {
    "lif_fc_mnist": lambda: lif_fc_mnist.SNN(tau=2.0),
    "conv_fashion_mnist": lambda: conv_fashion_mnist.CSNN(T=T, channels=4),
    "rsnn_sequential_fmnist, plain": rsnn_sequential_fmnist.PlainNet,
    "rsnn_sequential_fmnist, stateful synapse": rsnn_sequential_fmnist.StatefulSynapseNet,
    "rsnn_sequential_fmnist, feedback": rsnn_sequential_fmnist.FeedBackNet,
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_spikingjelly(example):
    callback = ConvexReconstruction(loss="squared", max_overhead=None)
    trainer(callback, max_epochs=2).fit(
        Rates(EXAMPLES[example]()), DataLoader(TensorDataset(*digits(100, size=28)), batch_size=32)
    )
    assert [report.reason.split(":")[0] for report in callback.reports] == [
        "warm start",
        "periodic solve",
        "final solve",
    ]
    warm = callback.reports[0]
    assert warm.accepted
    assert warm.held_out_loss_after < 0.95 * warm.held_out_loss_before
    assert "the certificate is about the linear programme only" in warm.reason


def zoo(net):
    return Lit(net, lr=0.001), DataLoader(TensorDataset(*digits(10, size=32, channels=3)), batch_size=5)


OPTIONS = {"spiking_neuron": neuron.IFNode, "surrogate_function": surrogate.ATan(), "num_classes": 10}


@pytest.mark.parametrize("connection", ["ADD", "AND", "IAND"])
def test_sew_resnet(connection):
    net = sew_resnet.SEWResNet(sew_resnet.BasicBlock, [1, 1, 1, 1], cnf=connection, **OPTIONS)
    functional.set_step_mode(net, "m")
    callback = ConvexReconstruction(beta=0.1)
    trainer(callback, max_epochs=1).fit(*zoo(net))
    assert [report.columns for report in callback.reports] == [512, 512]
    first, last = callback.reports
    assert first.gap < 3e-3  # only shown
    assert last.gap < (1e-5 if last.accepted else 3e-3)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["vgg11", "vgg11_bn"])
def test_spiking_vgg(batch_norm):
    """The layers of spikingjelly's VGG 11, but for its widths: it has 130 million weights."""
    with torch.device("meta"):
        net = spiking_vgg.spiking_vgg11(**OPTIONS)
    widths = [16, "M", 32, "M", 64, 64, "M", 64, 64, "M", 64, 64, "M"]
    net.features = net.make_layers(widths, batch_norm, neuron=neuron.IFNode, surrogate_function=surrogate.ATan())
    net.classifier[0], net.classifier[3] = layer.Linear(64 * 7 * 7, 128), layer.Linear(128, 4096)
    net.classifier[6] = layer.Linear(4096, 10)
    net._initialize_weights()
    functional.set_step_mode(net, "m")
    callback = ConvexReconstruction(beta=0.1)
    trainer(callback, max_epochs=1).fit(*zoo(net))
    assert [report.columns for report in callback.reports] == [4096, 4096]
    first, last = callback.reports
    assert first.gap < 3e-3  # only shown
    assert last.gap < (1e-5 if last.accepted else 3e-3)


def test_a_row_that_max_samples_leaves_alone_has_no_part_in_a_batch_norm():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(FEATURES)

        def forward(self, x):
            return super().forward(self.norm(x))

    callback = ConvexReconstruction(beta=0.02, max_samples=21)
    trainer(callback, max_epochs=1).fit(Normed(), loader(60, batch_size=20))
    assert [report.rows in (21, 17) for report in callback.reports] == [True, True]
