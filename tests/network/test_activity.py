import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, rnn
from torch import nn

from lightning_cvxsnn.network import measure_activity, reset_neurons, undisturbed

CHANNELS = 6


def activity(net, x):
    with undisturbed(net):
        net.eval()
        return measure_activity(net, [x])


class Steps(nn.Module):
    """A network in single-step mode, over ``[T, N, ...]``."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.stack([self.net(step) for step in x])


@pytest.mark.parametrize("samples", [5, CHANNELS, 4])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_silent_channels_are_counted_whatever_the_batch_size(step_mode, samples):
    """As many samples, or steps, as channels."""
    net = nn.Sequential(layer.Conv2d(1, CHANNELS, 3), layer.BatchNorm2d(CHANNELS), neuron.IFNode())
    functional.set_step_mode(net, step_mode)
    net[1].bias.data[1:] = -20
    net[1].bias.data[0] = 1
    x = torch.rand(CHANNELS, samples, 1, CHANNELS + 2, CHANNELS + 2)
    (found,) = activity(Steps(net) if step_mode == "s" else net, x)
    assert (found.units, found.silent, found.saturated) == (CHANNELS, CHANNELS - 1, 0)


class Sequences(nn.Module):
    """A batch norm of ``[N, L, C]``, with channels last around it, and neurons in multi-step mode."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.spike = nn.Linear(3, CHANNELS), nn.BatchNorm1d(CHANNELS), neuron.IFNode(step_mode="m")
        self.norm.bias.data[:] = torch.tensor([5.0] * 2 + [-20.0] * 4)

    def forward(self, x):  # [T, N, L, 3]
        currents = self.norm(self.fc(x).flatten(0, 1).mT).mT
        return self.spike(currents.unflatten(0, x.shape[:2]))


@pytest.mark.parametrize("length", [CHANNELS, 4])
def test_units_are_followed_through_a_transposition(length):
    (found,) = activity(Sequences(), torch.rand(2, CHANNELS, length, 3))
    assert (found.affine_name, found.units, found.silent) == ("norm", CHANNELS, CHANNELS - 2)


class Shared(nn.Module):
    """``stem`` feeds both neurons, ``fc`` the second one only."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = layer.Linear(4, 5), layer.Linear(5, 5)
        self.first, self.second = neuron.LIFNode(), neuron.LIFNode()
        functional.set_step_mode(self, "m")

    def forward(self, x):
        h = self.stem(x)
        return self.second(self.fc(self.first(h)) + h)


def test_a_layer_belongs_to_the_first_neurons_that_it_feeds():
    first, second = activity(Shared(), torch.rand(4, 3, 4))
    assert (first.affine_name, first.alone, first.feeders) == ("stem", True, ("stem",))
    assert (second.affine_name, second.alone, second.feeders) == ("fc", False, ("stem", "fc"))
    assert second.source == "first"


class Alternating(nn.Module):
    """Another layer feeds the neurons at each step."""

    def __init__(self):
        super().__init__()
        self.layers, self.spike = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), neuron.LIFNode()

    def forward(self, x):
        return torch.stack([self.spike(fc(step)) for fc, step in zip(self.layers, x, strict=True)])


def test_a_layer_that_feeds_neurons_at_one_step_only_is_not_theirs():
    (found,) = activity(Alternating(), torch.rand(3, 2, 4))
    assert (found.affine_name, found.feeders) == ("", ("layers.0", "layers.1", "layers.2"))


def test_a_recurrent_layer_is_one_spiking_layer():
    net = nn.Sequential(rnn.SpikingLSTM(4, 7, 2))
    (found,) = activity(net, torch.rand(3, 2, 4))
    assert (found.name, found.units, found.affine_name) == ("0", 7, "")


def test_gradients_are_followed_where_the_caller_has_none_and_weights_are_frozen():
    net = Shared()
    net.requires_grad_(False)
    with torch.inference_mode():
        first, second = activity(net, torch.rand(4, 3, 4))
    assert (first.affine_name, second.affine_name) == ("stem", "fc")
    reset_neurons(net)
    assert not any(p.requires_grad for p in net.parameters())
