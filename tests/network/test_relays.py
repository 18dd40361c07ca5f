"""Layers that send on the spikes of the layer below, and what passes them in training."""

import copy

import pytest
import torch
from networks import CLASSES, DeepNet, loader, rows, state
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.relays import Relay, Relays, prove_relays
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.runtime.rng import isolate_rng

NODES = {
    "lif": neuron.LIFNode,
    "integrates": neuron.IFNode,
    "soft reset": lambda: neuron.LIFNode(tau=100.0, decay_input=False, v_reset=None),
    "learned leak": lambda: neuron.ParametricLIFNode(init_tau=3.0),
}
NAMES = [Relay("hidden.4", "hidden.5"), Relay("hidden.6", "hidden.7")]


def deep(step_mode="m", node=neuron.LIFNode):
    """Four layers, of which the upper two send on what they receive."""
    torch.manual_seed(3)
    net = DeepNet(4, step_mode=step_mode, node=node)
    with torch.no_grad():
        for part in net.hidden[:4:2]:
            part.weight.mul_(4.0)
        for part in net.hidden[4::2]:
            send_on(part, 1.05 if node is NODES["soft reset"] else 4.0)
    return net


def send_on(part, current=4.0):
    """Let each unit receive ``current`` with each spike of one below."""
    part.weight.copy_(current * torch.eye(24).repeat(part.out_features // 24, 1))
    part.bias.zero_()


def proved(net, relays=NAMES):
    network = Network(net, rows_of(net, loader()))
    with isolate_rng(), undisturbed(net):
        net.eval()
        return prove_relays(network, relays)


def gradients(net):
    """The loss of a batch, and its gradients by name."""
    net.zero_grad()
    x, y = rows(60)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("node", NODES)
def test_gradients_are_those_of_the_network_without_relays(step_mode, node):
    net = deep(step_mode, NODES[node])
    shallow = copy.deepcopy(net)
    shallow.hidden = shallow.hidden[:4]
    found = proved(net)
    assert found == tuple(NAMES)
    relays, (_, ordinary) = Relays(net, found), gradients(net)
    relays.attach()
    loss, ours = gradients(net)
    expected_loss, expected = gradients(shallow)
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(ours[name], gradient), name
    assert ours["hidden.0.weight"].any()
    held = {name: ours[name] for name in ours if name not in expected}
    assert held
    assert not any(gradient.any() for gradient in held.values())  # zeros: DDP waits for each
    relays.detach()
    for name, gradient in gradients(net)[1].items():
        assert torch.equal(gradient, ordinary[name]), name


def test_nothing_that_an_optimiser_does_moves_a_relay():
    net = deep()
    before, relays = state(net), Relays(net, proved(net))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        relays.attach()
        gradients(net)
        relays.drop_gradients()
        optimizer.step()
    relays.detach()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"hidden.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} | {
        "readout.weight", "readout.bias"
    }  # fmt: skip


def test_below_a_frozen_layer_there_is_nothing_to_pass_a_gradient_to():
    net = deep()
    net.hidden[:4].requires_grad_(False)
    relays = Relays(net, proved(net))
    relays.attach()
    assert gradients(net)[1]["readout.weight"].any()
    with torch.no_grad():
        assert net(rows(4)[0]).shape == (4, CLASSES)


@pytest.mark.parametrize("case", ["leaks", "lively", "wider", "tied", "compiled", "compiled part", "convolution"])
def test_what_does_not_send_on_spikes_or_cannot_be_held_is_no_relay(case):
    net, expected = deep(), ()
    if case == "leaks":  # some spikes are lost
        expected = (NAMES[1],)
        with torch.no_grad():
            net.hidden[4].weight[:4] = 0.0
    elif case == "lively":  # and some are new
        expected = (NAMES[1],)
        with torch.no_grad():
            net.hidden[4].bias[:4] = 9.0
    elif case == "wider":
        net.hidden[6], net.readout = layer.Linear(24, 48, step_mode="m"), layer.Linear(48, CLASSES, step_mode="m")
        expected = (NAMES[0],)
        with torch.no_grad():
            send_on(net.hidden[6])
    elif case == "tied":
        net.hidden[6].weight = net.hidden[4].weight
    elif case == "compiled":
        net.compile()
    elif case == "compiled part":
        net.hidden = torch.compile(net.hidden)
        names = [Relay(f"hidden._orig_mod.{a[7:]}", f"hidden._orig_mod.{b[7:]}") for a, b in NAMES]
        assert proved(net, names) == ()
        return
    else:
        net.hidden[6] = nn.Identity()  # a neuron that another kind of layer feeds
        assert proved(net, [Relay("hidden.6", "hidden.7")]) == ()
        return
    assert proved(net) == expected
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
