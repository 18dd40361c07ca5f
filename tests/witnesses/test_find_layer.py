import pytest
import torch
from networks import STEPS, Net, rows
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import TimeReduction, undisturbed
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.tasks.stack import LitSNN
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer

X = rows(40)[0]


def found(net, batches=(X[:30], X[30:]), samples=None):
    with undisturbed(net):
        net.eval()
        readout = find_readout(net, batches[0])
        return find_witness_layer(net, readout, batches, samples)


def test_a_stack_is_entered_at_its_last_layer():
    net = LitSNN(in_features=6, hidden=[12, 8], num_classes=3)
    with torch.no_grad():
        for affine in (net.layers[0], net.layers[2]):
            affine.weight.mul_(6)
    x = torch.rand(20, 5, 6, generator=torch.Generator().manual_seed(0))
    samples = torch.arange(20) % 3 == 0
    layer_found = found(net, [x[:7], x[7:]], samples)
    assert (layer_found.affine_name, layer_found.neuron_name) == ("layers.2", "layers.3")
    assert layer_found.reduction == TimeReduction("mean", "steps", 5)
    functional.reset_net(net.layers)
    assert torch.equal(layer_found.inputs, net.layers[:2](x.transpose(0, 1))[:, samples])


class Odd(nn.Module):
    """Networks whose last hidden weights cannot be replaced one unit at a time."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.fc, self.norm = layer.Linear(6, 24, step_mode="m"), layer.BatchNorm1d(24, step_mode="m")
        self.second = layer.Linear(6, 24, step_mode="m")
        self.lif, self.other = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m")
        self.conv = layer.Conv1d(2, 4, 1, groups=2, step_mode="m")
        self.recurrent = layer.LinearRecurrentContainer(neuron.LIFNode(), 6, 6, step_mode="m")
        self.readout = nn.Linear({"branches": 48, "recurrence": 6}.get(what, 24), 3)
        if what == "frozen":
            self.fc.requires_grad_(False)
        if what == "frozen norm":
            self.norm.requires_grad_(False)
        if what == "batch statistics":
            self.norm = layer.BatchNorm1d(24, track_running_stats=False, step_mode="m")
        if what == "weight norm":
            nn.utils.parametrizations.weight_norm(self.fc)
        if what == "shared":
            self.twin = layer.Linear(6, 24, step_mode="m")
            self.twin.weight = self.fc.weight
        if what == "constants":
            self.lif.gain = nn.Parameter(torch.ones(24))

    def forward(self, x):
        functional.reset_net(self)
        x = (3 * x).expand(STEPS, *x.shape)
        if self.what == "groups":
            spikes = self.lif(self.conv(torch.stack([x, x], 2))).flatten(2)
        elif self.what == "recurrence":
            spikes = self.recurrent(x)
        elif self.what == "branches":
            spikes = torch.cat([self.other(self.second(x)), self.lif(self.fc(x))], 2)
        elif self.what == "pooling":
            spikes = self.lif(self.fc(x)).unflatten(2, (12, 2)).max(3).values.repeat(1, 1, 2)
        elif self.what == "batch norm alone":
            spikes = self.lif(self.norm(x.repeat(1, 1, 4)))
        elif self.what == "batch norm of spikes":
            spikes = self.lif(self.norm(self.other(self.fc(x))) + 1)
        elif self.what in ("batch statistics", "frozen norm"):
            spikes = self.lif(self.norm(self.fc(x)))
        elif self.what == "gain":
            spikes = self.lif(2 * self.fc(x))
        elif self.what == "no affine":
            spikes = self.lif(x.repeat(1, 1, 4))
        else:
            spikes = self.lif(self.fc(x))
        return self.readout(spikes.mean(0))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("groups", "'conv' is a convolution with groups=2"),
        ("batch norm alone", r"'lif' is fed by 'norm' \(BatchNorm1d\)"),
        ("batch norm of spikes", r"'lif' is fed by 'norm' \(BatchNorm1d\)"),
        ("batch statistics", "'norm' keeps no running statistics"),
        ("frozen norm", "`norm.weight` is frozen"),
        ("no affine", "'lif' is fed by no affine layer"),
        ("recurrence", "depends on the spikes of 'recurrent.sub_module'|receives something else"),
        ("branches", "not the spikes of 'lif' reduced over time"),
        ("pooling", "not the spikes of 'lif' reduced over time"),
        ("gain", "'lif' receives something else than the output of 'fc'"),
        ("frozen", r"`fc.weight` is frozen"),
        ("shared", r"`fc.weight` is shared: it is also \['twin.weight'\]"),
        ("weight norm", "'fc' is computed from other parameters"),
        ("constants", r"'lif' have constants of their own \(gain\)"),
    ],
)
def test_layers_whose_weights_cannot_be_replaced_are_refused_by_name(what, message):
    with pytest.raises(ValueError, match=message) as error:
        found(Odd(what))
    assert "witnesses='calibrated'" in str(error.value)


def test_no_rows():
    net = Net()
    readout = find_readout(net, X)
    with pytest.raises(ValueError, match="no rows"):
        find_witness_layer(net, readout, [])
