import inspect
from functools import partial

import pytest
import torch
from networks import Parts
from spikingjelly.activation_based import base, functional, layer, neuron, rnn, surrogate
from torch import nn

from lightning_cvxsnn.network import LIF
from lightning_cvxsnn.network.dataflow import data_flow, is_spiking
from lightning_cvxsnn.network.isolation import reset_neurons

CLASSES = [c for c in vars(neuron).values() if inspect.isclass(c) and issubclass(c, nn.Module)]
RECURRENT = [rnn.SpikingLSTM, rnn.SpikingGRU, rnn.SpikingVanillaRNN]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_neuron_of_spikingjelly_spikes_but_those_that_say_so(kind):
    assert is_spiking(kind.__new__(kind)) == ("NonSpiking" not in kind.__name__)


@pytest.mark.parametrize("kind", RECURRENT, ids=lambda c: c.__name__)
def test_spiking_recurrent_layers_spike(kind):
    made = kind(4, 3, 1)
    assert is_spiking(made)
    assert all(is_spiking(cell) for cell in made.cells)


class Own(base.MemoryModule):
    def __init__(self):
        super().__init__()
        self.surrogate_function = surrogate.ATan()


def test_neurons_of_a_users_own_and_what_is_none():
    assert is_spiking(Own())
    assert is_spiking(LIF())
    assert is_spiking(type("Mine", (neuron.LIFNode,), {})())
    others = [nn.Linear(2, 2), layer.BatchNorm1d(2), layer.Dropout(), layer.SynapseFilter(), nn.LSTM(2, 2)]
    assert not any(is_spiking(m) for m in [*others, surrogate.ATan()])


def feed(net, x, name="spike"):
    net.eval()
    reset_neurons(net)
    with torch.no_grad(), data_flow(net) as feeds:
        net(x)
    return feeds[name][0]


def fc():
    return layer.Linear(6, 6)


X = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))  # as many samples as features
lif = neuron.LIFNode


@pytest.mark.parametrize(
    ("forward", "origins", "alone"),
    [
        (lambda n, x: n.spike(n.a(x)), ("a",), True),
        (lambda n, x: n.spike(n.norm(n.a(x).mT).mT), ("norm",), True),
        (lambda n, x: n.spike(n.a(x) + n.b(x)), ("a", "b"), False),
        (lambda n, x: n.spike(n.b(h := n.a(x)) + h), ("a", "b"), False),
        (lambda n, x: (n.b(h := n.a(x)), n.spike(h))[1], ("a",), True),
        (lambda n, x: n.spike(n.a(x) + x), ("a",), False),
        (lambda n, x: n.spike(2 * n.a(x)), ("a",), False),
        (lambda n, x: n.spike(n.a(x) + n.shift), ("a",), False),
        (lambda n, x: n.spike(n.a(x).add_(n.b(x))), ("a", "b"), False),
        (lambda n, x: n.spike(n.first(n.a(x)) @ n.first(n.b(x))), ("first",), True),
        (lambda n, x: n.spike(n.a(x) + n.first(n.b(x))), ("a", "first"), False),
        (lambda n, x: n.spike(n.drop(n.a(x))), ("drop",), True),
        (lambda n, x: n.spike(n.dropout(n.a(x).flatten(1).reshape(4, 6, 6))), ("a",), True),
        (lambda n, x: n.spike(torch.zeros_like(n.a(x)) + n.b(x)), ("b",), False),
        (lambda n, x: n.spike(x), (), False),
    ],
    ids=[
        "layer", "norm", "sum", "residual", "not the last that ran", "raw input", "factor", "parameter", "in place",
        "spikes only", "spikes too", "dropped connections", "reshape", "shape only", "no layer",
    ],
)  # fmt: skip
def test_what_reaches_a_neuron(forward, origins, alone):
    drop = layer.DropConnectLinear(6, 6)
    net = Parts(
        forward, a=fc(), b=fc(), norm=layer.BatchNorm1d(6), drop=drop, dropout=layer.Dropout(), first=lif(), spike=lif()
    )
    net.shift = nn.Parameter(torch.ones(6))
    found = feed(net, X)
    assert (set(found.origins), found.alone) == (set(origins), alone)


@pytest.mark.parametrize(
    ("forward", "axis"),
    [
        (lambda n, x: n.spike(n.a(x)), -1),
        (lambda n, x: n.spike(n.a(x).mT), -2),
        (lambda n, x: n.spike(n.a(x).movedim(-1, 0)), -3),
        (lambda n, x: n.spike(n.a(x).flip(1)), -1),
        (lambda n, x: n.spike(n.a(x).flip(2)), None),
        (lambda n, x: n.spike(n.a(x).flatten(1)), None),
        (lambda n, x: n.spike(n.a(x) @ n.a.weight), None),
    ],
    ids=["as it is", "transposed", "first", "samples flipped", "units flipped", "flattened", "mixed"],
)
def test_the_axis_of_the_units_is_told_by_gradients(forward, axis):
    x = X if axis != -3 else torch.rand(6, 6, 6)
    assert feed(Parts(forward, a=fc(), spike=lif()), x).axes.get("a") == axis


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(
    ("norm", "shape", "axis"),
    [
        (layer.BatchNorm1d, (6, 6), -1),
        (layer.BatchNorm1d, (6, 6, 6), -2),
        (layer.BatchNorm2d, (6, 6, 6, 6), -3),
        (layer.BatchNorm3d, (6, 6, 6, 6, 6), -4),
        (partial(layer.GroupNorm, 2), (6, 6, 6, 6), -3),
    ],
)
def test_the_axis_of_a_norm_comes_from_its_step_mode(norm, shape, axis, step_mode):
    net = nn.Sequential(norm(6), lif())
    functional.set_step_mode(net, step_mode)
    x = torch.rand(*[6] * (step_mode == "m"), *shape)
    assert feed(net, x, "1").axes == {"0": axis}


def test_a_pass_gives_what_it_gave_without_being_followed():
    net = Parts(lambda n, x: n.spike(n.norm(n.a(x))).add_(1), a=fc(), norm=layer.BatchNorm1d(6), spike=lif()).eval()
    with torch.no_grad():
        expected = net(X)
        reset_neurons(net)
        with data_flow(net):
            assert torch.equal(net(X), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net.spike.v.grad_fn is None


def test_neurons_beside_a_parameter_are_followed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.spike = nn.Parameter(torch.ones(6)), lif(step_mode="m")

        def forward(self, x):
            return self.spike(x * self.gain)

    found = feed(nn.Sequential(nn.Linear(6, 6), Block()), X, "1.spike")
    assert (found.origins, found.alone) == (("0",), False)
