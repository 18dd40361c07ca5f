"""What a pass over some rows keeps of every spiking layer, against the spikes and voltages themselves."""

import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import ConvNet, Net, images, loader, rows
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn.network.firing import measure_firing
from lightning_cvxsnn.network.isolation import undisturbed
from lightning_cvxsnn.network.neurons import surrogate_width
from lightning_cvxsnn.network.rows import rows_of


def measured(net, data, widened=1):
    with undisturbed(net):
        return measure_firing(net, rows_of(net, data).widened(widened))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikes_are_each_units_rate_on_each_row(step_mode):
    net = Net(step_mode=step_mode)
    x, _ = rows()
    (layer,) = measured(net, loader(batch_size=50))
    functional.set_step_mode(net.hidden, "m")
    functional.reset_net(net.hidden)
    spikes = net.hidden(net.steps(x))
    assert layer.name == "hidden.1"
    assert torch.equal(layer.spikes.to_dense(torch.float32), spikes.mean(0))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_every_place_of_a_channel_is_a_unit(step_mode):
    net = ConvNet(step_mode=step_mode)
    x, y = images()
    (layer,) = measured(net, DataLoader(TensorDataset(x, y), 16))
    functional.set_step_mode(net.hidden, "m")
    functional.reset_net(net.hidden)
    spikes = net.hidden(net.steps(x))
    assert layer.spikes.shape == (40, 5 * 36)
    assert torch.equal(layer.spikes.to_dense(torch.float32), spikes.mean(0))


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_the_deviation_is_that_of_the_first_128_rows_voltages(step_mode, v_reset):
    net = Net(step_mode=step_mode)
    net.hidden[1] = neuron.LIFNode(tau=3.0, v_reset=v_reset, step_mode=step_mode)
    x, _ = rows()
    currents = (net.steps(x[:128]).matmul(net.hidden[0].weight.T) + net.hidden[0].bias).detach()
    v, voltages = torch.zeros(128, 24), []
    for current in currents:
        h = v + (current - v) / 3.0
        voltages.append(h)
        fires = (h >= 1.0).float()
        v = h - fires if v_reset is None else h * (1 - fires)
    (layer,) = measured(net, loader(batch_size=50))
    assert layer.deviation == pytest.approx(float(torch.stack(voltages).std(unbiased=False)), rel=1e-5)


def test_neurons_of_unknown_dynamics_have_no_deviation():
    class Own(neuron.LIFNode):
        pass

    net = Net()
    net.hidden[1] = Own(step_mode="m")
    (layer,) = measured(net, loader())
    assert layer.deviation is None
    assert layer.spikes.shape == (240, 24)


def test_sequences_of_several_lengths_are_averaged_over_their_own_steps():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.neurons = neuron.IFNode(step_mode="m")

        def forward(self, x):
            return self.neurons(x.transpose(0, 1))

    batches = [(torch.full((2, steps, 3), 1.0), torch.zeros(2)) for steps in (4, 2, 8)]
    (layer,) = measured(Sequences(), batches)
    assert torch.equal(layer.spikes.to_dense(), torch.ones(6, 3).double())


def test_neurons_of_several_layers_of_different_sizes_are_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.neurons = nn.Linear(6, 8), nn.Linear(8, 5), neuron.IFNode()

        def forward(self, x):
            spikes = self.neurons(self.first(x))
            self.neurons.reset()
            return self.neurons(self.second(spikes))

    with pytest.raises(MisconfigurationException, match="'neurons' send spikes of shape"):
        measured(Shared(), loader())


@pytest.mark.parametrize(
    ("function", "width"),
    [
        (surrogate.Sigmoid(2.0), 2 * math.log(1 + math.sqrt(2)) / 2),
        (surrogate.ATan(4.0), 2 / (math.pi * 4)),
        (surrogate.Rect(1.0), 0.5),
        (surrogate.DeterministicPass(), None),
    ],
)
def test_the_width_is_where_the_gradient_is_half_its_peak(function, width):
    node = neuron.LIFNode(surrogate_function=function)
    assert surrogate_width(node) == (None if width is None else pytest.approx(width, rel=5e-3))


def test_without_a_surrogate_there_is_no_width():
    assert surrogate_width(nn.Linear(2, 2)) is None
