from dataclasses import replace

import pytest
import torch
from networks import FEATURES, STEPS, ConvNet, Net, images, reduce_over_time, rows
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import TimeReduction, capture, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer
from lightning_cvxsnn.witnesses.layer import WitnessLayer

X = rows(40)[0]
BATCHES = [X[:30], X[30:]]


def network(net):
    """``net`` in eval mode, in which no batch norm adapts, with rows that nothing is asked of."""
    return Network(net.eval(), rows_of(net, [(X, torch.zeros(len(X)))]))


class Shaped(nn.Module):
    """``Linear - LIF - Linear`` whose parts are called in the ways that users call them."""

    def __init__(self, how, reduction="mean"):
        super().__init__()
        self.how, self.reduction = how, reduction
        self.fc, self.lif = nn.Linear(FEATURES, 24), neuron.LIFNode(step_mode="m" if how != "encoded once" else "s")
        self.readout = nn.Linear(24, 3)

    def forward(self, x):
        functional.reset_net(self.lif)
        if self.how == "encoded once":
            current = self.fc(3 * x)
            return reduce_over_time(torch.stack([self.readout(self.lif(current)) for _ in range(STEPS)]), "mean")
        steps = torch.stack([3 * x * (1 + 0.5 * t) for t in range(STEPS)])
        if self.how == "samples first":
            spikes = self.lif(self.fc(steps.transpose(0, 1)).transpose(0, 1))
        else:
            spikes = self.lif(self.fc(steps.flatten(0, 1)).unflatten(0, (STEPS, len(x))))
        return self.readout(reduce_over_time(spikes, self.reduction))


def found(net, batches=BATCHES, **options):
    with undisturbed(net):
        net.eval()
        readout = find_readout(net, batches[0])
        layer_found = find_witness_layer(net, readout, batches, **options)
        return layer_found, capture(net, readout, batches).dictionary


NETS = {
    **{f"{r} {s}": lambda r=r, s=s: Net(r, s) for r in ("last", "mean", "sum", "all") for s in "sm"},
    "no bias": lambda: without_bias(Net()),
    "IF": lambda: with_neuron(neuron.IFNode(step_mode="m")),
    "parametric": lambda: with_neuron(neuron.ParametricLIFNode(step_mode="m")),
    "KLIF": lambda: with_neuron(neuron.KLIFNode(step_mode="m")),
    "encoded once": lambda: Shaped("encoded once"),
    "samples first": lambda: Shaped("samples first"),
    "flat": lambda: Shaped("flat", "sum"),
    "flat last": lambda: Shaped("flat", "last"),
}


def without_bias(net):
    net.hidden[0] = layer.Linear(FEATURES, 24, bias=False, step_mode="m")
    return net


def with_neuron(node):
    net = Net()
    net.hidden[1] = node
    return net


@pytest.mark.parametrize("name", NETS)
def test_the_columns_of_the_networks_own_weights_are_its_dictionary(name):
    net = NETS[name]()
    layer_found, dictionary = found(net)
    affine = layer_found.affine
    bias = torch.zeros(24) if affine.bias is None else affine.bias
    columns = layer_found.columns(layer_found.inputs, affine.weight, bias)
    assert layer_found.inputs.shape == (STEPS, 40, FEATURES)
    assert dictionary.to_dense().std() > 0.05
    assert torch.allclose(columns.to_dense(), dictionary.to_dense())
    assert columns.counts.dtype == torch.uint8
    assert layer_found.constants is not None
    through_the_module = replace(layer_found, constants=None)
    again = through_the_module.columns(layer_found.inputs, affine.weight, bias)
    assert torch.equal(again.counts, columns.counts)


def flat(size=1):
    """A convolution, neurons and pooling whose parts are called on all steps at once, by torch's own modules."""

    class Flat(ConvNet):
        def forward(self, x):
            functional.reset_net(self.lif)
            spikes = self.lif(self.conv(self.steps(x).flatten(0, 1)).unflatten(0, (STEPS, len(x))))
            return self.readout(self.pool(spikes.flatten(0, 1)).flatten(1).unflatten(0, (STEPS, len(x)))).mean(0)

    net = Flat(pool=layer.MaxPool2d(size))
    net.conv, net.lif, net.pool = nn.Conv2d(2, 5, 3, padding=1), neuron.LIFNode(step_mode="m"), nn.MaxPool2d(size)
    del net.hidden
    return net


def dilated():
    net = ConvNet()
    net.hidden[0] = layer.Conv2d(2, 5, 3, padding="same", dilation=2, bias=False, step_mode="m")
    return net.to(memory_format=torch.channels_last)


def normed(step_mode, bias=True):
    """``Conv - BatchNorm - LIF``, with statistics as of a trained network."""
    net = ConvNet(step_mode=step_mode, pool=layer.MaxPool2d(2), norm=True)
    convolution, norm = net.hidden[:2]
    if not bias:
        convolution.bias = None
    for parameter, low, high in (
        (norm.running_mean, -0.2, 0.2), (norm.running_var, 0.05, 0.2), (norm.weight, -1.5, 1.5), (norm.bias, 0.0, 1.5),
    ):  # fmt: skip
        nn.init.uniform_(parameter, low, high)
    return net


CONVOLUTIONS = {
    "batch norm": lambda: normed("m"),
    "batch norm, step by step": lambda: normed("s"),
    "batch norm, no bias": lambda: normed("m", bias=False),
    "dilated, no bias, channels last": dilated,
    **{f"{r} {s}": lambda r=r, s=s: ConvNet(r, s) for r in ("last", "mean", "sum", "all") for s in "sm"},
    "largest": lambda: ConvNet(pool=layer.MaxPool2d(2)),
    "largest, step by step": lambda: ConvNet("last", "s", pool=layer.MaxPool2d(2)),
    "mean of places": lambda: ConvNet(pool=layer.AvgPool2d(3)),
    "mean of the map": lambda: ConvNet(pool=layer.AdaptiveAvgPool2d(1)),
    "pooled twice": lambda: ConvNet(pool=nn.Sequential(layer.MaxPool2d(2), layer.AvgPool2d(3))),
    "torch's own": flat,
    "torch's own, pooled": lambda: flat(3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_maps_of_other_channels_are_what_the_network_makes_of_them(name):
    """Against the network itself with the channels' weights in it."""
    net, x = CONVOLUTIONS[name](), images()[0]
    convolution = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    layer_found, dictionary = found(net, [x[:30], x[30:]])
    columns = layer_found.columns(layer_found.inputs, layer_found.weight, layer_found.bias)
    assert layer_found.inputs.shape == (STEPS, 40, 2, 6, 6)
    assert (layer_found.places, layer_found.columns_per_unit) == (36, dictionary.shape[1] // 5)
    assert dictionary.to_dense().std() > 0.05
    torch.testing.assert_close(columns.to_dense(), dictionary.to_dense())

    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 18, generator=generator), torch.randn(5, generator=generator) / 2
    if not layer_found.has_bias:
        bias.zero_()
    columns = layer_found.columns(layer_found.inputs, weight, bias)
    parameter = convolution.weight
    layer_found.write(network(net), torch.arange(5), weight, bias)
    assert convolution.weight is parameter
    torch.testing.assert_close(columns.to_dense(), found(net, [x[:30], x[30:]])[1].to_dense())


def test_channels_are_brought_to_the_rate():
    layer_found, _ = found(ConvNet(), [images()[0]])
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 18, generator=generator), torch.randn(50, generator=generator)
    scaled, shift = layer_found.calibrated(layer_found.inputs, weight, bias, 0.2)
    rates = layer_found.spikes(layer_found.inputs, scaled, shift).mean((0, 1, 3, 4))
    assert (rates - 0.2).abs().quantile(0.8) < 0.03
    assert torch.allclose(torch.cosine_similarity(weight, scaled).abs(), torch.ones(50), atol=1e-5)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_patches_are_those_of_one_place_and_prefer_where_images_differ(dimensions, padding):
    make = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    convolution = make(2, 4, 3, stride=2, padding=padding)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 6, 2, *[7] * dimensions, generator=generator)
    second[:3] = first[:3]
    second[:3].flatten(1)[:, -1] += 5.0  # the last corner alone
    outputs = convolution(torch.cat([first, second])).unflatten(0, (2, 6)).flatten(3)  # [2, 6, 4, places]
    seen = WitnessLayer(
        "", "", convolution, nn.Identity(), TimeReduction("mean", "steps", 1), first[None], outputs.shape[3]
    ).patches(first, second, generator)
    assert seen[0].shape == seen[1].shape == (6, 2 * 3**dimensions)
    weight = convolution.weight.flatten(1)
    again = torch.stack([patch @ weight.T + convolution.bias for patch in seen])
    same = ((outputs - again[..., None]).abs() < 1e-5).all(2)  # [2, 6, places]
    assert bool((same[0] & same[1]).any(1).all())
    assert bool((same[0] & same[1])[:3, -1].all())


def test_neurons_of_unknown_dynamics_are_run_themselves():
    class Own(neuron.LIFNode):
        pass

    assert found(with_neuron(Own(step_mode="m")))[0].constants is None
    with pytest.raises(
        ValueError, match="backend='cupy' cannot run the network's neurons: Found a neuron of class Own"
    ):
        found(with_neuron(Own(step_mode="m")), backend="cupy")


def test_candidates_are_brought_to_the_rate_and_keep_their_direction():
    layer_found, _ = found(Net())
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, FEATURES, generator=generator), torch.randn(50, generator=generator)
    scaled, shift = layer_found.calibrated(layer_found.inputs, weight, bias, 0.2)
    rates = layer_found.spikes(layer_found.inputs, scaled, shift).mean((0, 1))
    assert (rates - 0.2).abs().quantile(0.8) < 0.03
    assert torch.allclose(torch.cosine_similarity(weight, scaled).abs(), torch.ones(50), atol=1e-5)
    assert torch.allclose(shift / scaled[:, 0], bias / weight[:, 0], rtol=1e-3)


def test_write_is_in_place():
    layer_found, _ = found(net := Net())
    parameter = net.hidden[0].weight
    before = parameter.detach().clone()
    units = torch.tensor([3, 0])
    layer_found.write(network(net), units, torch.ones(2, FEATURES), torch.tensor([0.1, 0.2]))
    assert net.hidden[0].weight is parameter
    assert bool((parameter[units] == 1).all())
    assert torch.equal(parameter[4:], before[4:])
    assert net.hidden[0].bias[units].tolist() == pytest.approx([0.1, 0.2])
