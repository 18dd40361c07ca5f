"""Layers that send on the spikes of the layer below, and what passes them in training."""

import copy

import pytest
import torch
from networks import CLASSES, DeepNet, loader, moved, rows, state
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.relays import Relay, Relays, find_relays, prove_relays
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
        return prove_relays(net, relays, network.first().x)


def holding(net, *optimizers):
    relays = Relays()
    relays.hold(net, proved(net), optimizers)
    return relays


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
    relays, (_, ordinary) = holding(net), gradients(net)
    relays.attach()
    loss, ours = gradients(net)
    expected_loss, expected = gradients(shallow)
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(ours[name], gradient), name
    assert ours["hidden.0.weight"].any()
    if node == "lif":  # whose surrogates weaken it
        assert ours["hidden.0.weight"].norm() > 2 * ordinary["hidden.0.weight"].norm() > 0
    held = {name: ours[name] for name in ours if name not in expected}
    assert held
    assert not any(gradient.any() for gradient in held.values())  # zeros: DDP waits for each
    relays.detach()
    for name, gradient in gradients(net)[1].items():
        assert torch.equal(gradient, ordinary[name]), name


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "step"])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5),
        lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
    ],
    ids=["AdamW", "SGD", "LBFGS"],
)
def test_no_step_of_an_optimiser_moves_a_relay(make, closure):
    net = deep()
    optimizer, before = make(net.parameters()), state(net)
    relays = holding(net, optimizer)

    def descend():
        loss, _ = gradients(net)
        return loss

    for _ in range(3):
        relays.attach()
        if closure or isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(descend)
        else:
            descend()
            optimizer.step()
    trained = {f"hidden.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} | {"readout.weight", "readout.bias"}
    assert moved(net, before) == trained
    assert net.hidden[6].weight.grad is not None  # users' hooks may ask for its norm
    relays.release()
    gradients(net)
    make(net.parameters()).step(descend)
    assert moved(net, before) == set(before)


def test_what_a_training_step_does_to_spikes_it_may_go_on_doing():
    net = deep()
    relays = holding(net)
    relays.attach()
    x, y = rows(60)
    spikes = net.hidden(net.steps(x))
    spikes *= 0.5  # in place
    F.cross_entropy(net.readout(spikes).mean(0), y).backward()
    assert net.hidden[0].weight.grad.any()
    functional.reset_net(net)
    fast = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(net, fast, x), y)  # as meta-learning does
    slopes = dict(zip(fast, torch.autograd.grad(loss, list(fast.values())), strict=True))
    assert slopes["hidden.0.weight"].any()
    assert not slopes["hidden.6.weight"].any()


def test_what_the_neurons_of_a_relay_hold_keeps_no_graph():
    net = deep()
    relays = holding(net)
    relays.attach()
    gradients(net)
    assert net.hidden[3].v.grad_fn is not None
    assert net.hidden[5].v.grad_fn is None


def test_steps_and_samples_may_be_one_axis_of_a_layer():
    net = deep()
    net.hidden[6] = layer.SeqToANNContainer(nn.Linear(24, 24))
    with torch.no_grad():
        send_on(net.hidden[6][0])
    assert proved(net, [Relay("hidden.6.0", "hidden.7")]) == (Relay("hidden.6.0", "hidden.7"),)


def test_all_relays_behind_the_first_layers_that_train_are_found():
    net = deep()
    network = Network(net, rows_of(net, loader()))
    with isolate_rng(), undisturbed(net):
        net.eval()
        assert find_relays(network, 2) == tuple(NAMES)
        assert find_relays(network, 3) == (NAMES[1],)
        net.hidden[0].requires_grad_(False)
        assert find_relays(network, 2) == (NAMES[1],)
        net.hidden[6].requires_grad_(False)
        assert find_relays(network, 2) == ()


def test_below_a_frozen_layer_there_is_nothing_to_pass_a_gradient_to():
    net = deep()
    net.hidden[:4].requires_grad_(False)
    relays = holding(net)
    relays.attach()
    assert gradients(net)[1]["readout.weight"].any()
    with torch.no_grad():
        assert net(rows(4)[0]).shape == (4, CLASSES)


@pytest.mark.parametrize("case", ["leaks", "lively", "wider", "tied", "compiled", "compiled part", "no linear layer"])
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
