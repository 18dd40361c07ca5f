import pytest
import torch
from networks import Net, Parts, rows
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from lightning_cvxsnn.network import measure_activity, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.witnesses import calibrate_layers


def deep(depth, step_mode="m", width=32, node=neuron.LIFNode):
    net = nn.Sequential()
    for i in range(depth):
        net.append(layer.Linear(6 if i == 0 else width, width))
        net.append(node())
    functional.set_step_mode(net, step_mode)
    return net


def run(net, x):
    if net[0].step_mode == "m":
        return net(x)
    return torch.stack([net(step) for step in x])


def with_inputs(net, inputs):
    """``net`` as a network whose training rows are batches of inputs ``[T, N, F]``."""
    net.convex_forward = lambda x: run(net, x)
    return Network(net, rows_of(net, [(x, torch.zeros(x.shape[1])) for x in inputs]))


def calibrated(net, inputs, **options):
    with undisturbed(net):
        net.eval()
        return calibrate_layers(with_inputs(net, inputs), **{"rate": 0.1, "only_dead": False, **options})


def activity(net, inputs):
    with undisturbed(net):
        net.eval()
        return measure_activity(with_inputs(net, inputs).module, inputs)


def by_hand(net, x, depth):
    """Spikes ``[T, N, width]`` of one layer."""
    functional.reset_net(net)
    return run(net[: 2 * depth], x)


INPUTS = [torch.rand(8, 50, 6, generator=torch.Generator().manual_seed(1)) for _ in range(3)]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("node", [neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode])
def test_every_unit_reaches_the_rate(step_mode, node):
    net = deep(4, step_mode, node=node)
    changed = calibrated(net, INPUTS)
    assert [c.name for c in changed] == ["1", "3", "5", "7"]
    for depth in (1, 2, 3, 4):
        spikes = torch.cat([by_hand(net, x, depth) for x in INPUTS], 1)
        rates = spikes.mean((0, 1))
        error = (rates - 0.1).abs()
        assert error.quantile(0.9) < 0.03  # a unit whose spikes come all at once can miss
        assert error.max() < 0.1


def test_activity_is_that_of_the_spikes():
    net = deep(2)
    with torch.no_grad():
        net[0].weight[:5] = 0
        net[0].bias[:5] = torch.tensor([5.0, 5.0, -5.0, -5.0, -5.0])
    first, second = activity(net, INPUTS)
    spikes = torch.cat([by_hand(net, x, 1) for x in INPUTS], 1)
    assert first.units == 32
    assert first.saturated == int((spikes.amin((0, 1)) == 1).sum()) >= 2
    assert first.silent == int((spikes.amax((0, 1)) == 0).sum()) >= 3
    assert first.rate == pytest.approx(float(spikes.mean()))
    assert (first.affine_name, second.affine_name) == ("0", "2")


def test_only_dead_layers_are_repaired():
    net = deep(3)
    calibrated(net, INPUTS)
    with torch.no_grad():
        net[4].weight.mul_(1e-3)
        net[4].bias.mul_(1e-3)
    before = {name: p.clone() for name, p in net.named_parameters()}
    (changed,) = calibrated(net, INPUTS, only_dead=True)
    assert changed.name == "5"
    assert changed.before.silent == 32
    assert changed.after.silent == 0
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("4."))


def test_a_layer_of_which_a_quarter_fires_is_changed_where_half_must():
    net = deep(2)
    calibrated(net, INPUTS)
    with torch.no_grad():
        net[0].weight[8:].mul_(1e-3)
        net[0].bias[8:].mul_(1e-3)
    before = net[0].weight.clone()
    calibrated(net, INPUTS, only_dead=True)
    assert torch.equal(net[0].weight, before)
    changed = calibrated(net, INPUTS, only_dead=True, also=lambda affine, layer: affine is net[0])
    assert (changed[0].name, changed[0].before.silent, changed[0].after.silent) == ("1", 24, 0)
    assert changed[0].before.alive
    assert not changed[0].before.healthy


def test_saturated_layers_are_brought_down():
    net = deep(1)
    with torch.no_grad():
        net[0].weight.abs_().mul_(100)
        net[0].bias.fill_(50.0)
    (changed,) = calibrated(net, INPUTS, only_dead=True)
    assert changed.before.saturated == 32
    assert changed.after.saturated == 0
    assert changed.after.alive


def test_a_unit_that_is_only_inhibited_is_negated():
    net = deep(1)
    with torch.no_grad():
        net[0].weight[0] = -1.0
        net[0].bias[0] = 0.0
    (changed,) = calibrated(net, INPUTS)
    assert changed.negated >= 1
    assert (net[0].weight[0] > 0).all()


def test_directions_are_kept():
    net = deep(2)
    before = net[2].weight.clone()
    calibrated(net, INPUTS)
    cosine = torch.cosine_similarity(before, net[2].weight, dim=1).abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_affine_of_a_batch_norm_is_scaled(step_mode):
    net = nn.Sequential(layer.Conv2d(1, 5, 3), layer.BatchNorm2d(5), neuron.LIFNode(), layer.Flatten())
    functional.set_step_mode(net, step_mode)
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    inputs = [torch.rand(4, 30, 1, 6, 6)]
    conv = net[0].weight.clone()
    (changed,) = calibrated(net, inputs, only_dead=True)
    assert (changed.affine_name, changed.before.units, changed.after.silent) == ("1", 5, 0)
    assert torch.equal(net[0].weight, conv)
    net.eval()
    functional.reset_net(net)
    spikes = run(net[:3], inputs[0])
    assert (spikes.mean((0, 1, 3, 4)) - 0.1).abs().max() < 0.05


def test_a_frozen_dead_layer_is_refused_by_name():
    net = deep(2)
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
        net[2].bias.mul_(1e-3)
    net[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'3' carries no information.*'2'.*frozen"):
        calibrated(net, INPUTS, only_dead=True)


def test_a_dead_layer_with_a_computed_weight_is_refused_by_name():
    net = deep(2)
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
        net[2].bias.mul_(1e-3)
    nn.utils.parametrizations.weight_norm(net[2])
    with pytest.raises(ValueError, match=r"'3' carries no information.*'2'.*computed from other parameters"):
        calibrated(net, INPUTS, only_dead=True)


def test_frozen_live_layers_are_left_alone():
    net = deep(1)
    with torch.no_grad():
        net[0].weight.mul_(5)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    assert calibrated(net, INPUTS) == []
    assert torch.equal(before, net[0].weight)


def test_a_dead_layer_that_nothing_feeds_is_refused():
    net = nn.Sequential(neuron.LIFNode(step_mode="m"))
    with undisturbed(net), pytest.raises(ValueError, match="No Linear, Conv or batch norm feeds it"):
        calibrate_layers(Network(net, rows_of(net, [(torch.zeros(4, 3, 6), torch.zeros(3))])), rate=0.1, only_dead=True)


def test_a_network_of_the_users_own():
    net = Net(gain=0.1)
    x = rows(60)[0]
    with undisturbed(net):
        net.eval()
        (changed,) = calibrate_layers(Network(net, rows_of(net, [(x, torch.zeros(60))])), rate=0.2, only_dead=True)
    assert changed.name == "hidden.1"
    assert changed.after.rate == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_biases_bring_units_to_the_rate_at_weights_of_one_size(step_mode, size):
    net = deep(2, step_mode)
    before = [net[i].weight.clone() for i in (0, 2)]
    inputs = [size * x for x in INPUTS]
    changed = calibrated(net, inputs, manner=lambda affine, layer: "shift_bias")
    for i, weight, layer_changed in zip((0, 2), before, changed, strict=True):
        assert torch.allclose(net[i].weight, layer_changed.scale * weight, rtol=1e-5)
        assert layer_changed.shift != 0
    for depth in (1, 2):
        below = [x if depth == 1 else by_hand(net, x, 1) for x in inputs]
        currents = torch.cat([net[2 * depth - 2](x) for x in below], 1)
        assert float(currents.flatten(0, 1).var(0).mean().sqrt()) == pytest.approx(0.5, rel=1e-3)
        rates = torch.cat([by_hand(net, x, depth) for x in inputs], 1).mean((0, 1))
        assert (rates - 0.1).abs().quantile(0.9) < 0.03


def test_a_bias_silences_and_excites_and_gives_up():
    net = deep(1)
    with torch.no_grad():
        net[0].weight[0] = 0  # the same current on every row: all or nothing
        net[0].bias[0] = 50.0
    calibrated(net, INPUTS, manner=lambda affine, layer: "shift_bias")
    rates = by_hand(net, INPUTS[0], 1).mean((0, 1))
    assert rates[0] < 0.6
    stubborn = deep(1, node=lambda: neuron.LIFNode(v_threshold=1e6))
    before = stubborn[0].weight.clone()
    with pytest.raises(ValueError, match=r"'1' carries no information.*Rescaling '0'.*was undone"):
        calibrated(stubborn, INPUTS, manner=lambda affine, layer: "shift_bias")
    assert torch.equal(before, stubborn[0].weight)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(
    "node",
    [
        neuron.LIFNode,
        neuron.IFNode,
        lambda: neuron.LIFNode(tau=5.0, decay_input=False, v_threshold=0.7, v_reset=None),
        lambda: neuron.LIFNode(tau=100.0, decay_input=False, v_reset=None),  # keeps what it receives
        lambda: neuron.LIFNode(tau=3.0, v_threshold=0.2, v_reset=-0.4),
        lambda: neuron.ParametricLIFNode(init_tau=4.0),
    ],
)
def test_copies_fire_with_the_units_below(step_mode, node):
    net = deep(3, step_mode, node=node)
    net[4] = layer.Linear(32, 70, step_mode=step_mode)  # wider: some units below have two copies
    with torch.no_grad():
        for i in (2, 4):
            net[i].weight.mul_(1e-4)
            net[i].bias.mul_(1e-4)
    calibrated(net[:2], INPUTS, manner=lambda affine, layer: "shift_bias")
    changed = calibrated(net, INPUTS, only_dead=True, manner=lambda affine, layer: "copy_below")
    assert [(c.name, c.copies) for c in changed] == [("3", True), ("5", True)]
    first = by_hand(net, INPUTS[0], 1)
    assert first.any()
    assert torch.equal(by_hand(net, INPUTS[0], 2), first)
    assert torch.equal(by_hand(net, INPUTS[0], 3), first[..., torch.arange(70) % 32])


def test_copies_without_biases_lose_nothing_in_any_depth():
    net = nn.Sequential()
    for depth in range(12):
        net.append(layer.Linear(6 if depth == 0 else 32, 32, bias=False))
        net.append(neuron.LIFNode(tau=100.0, decay_input=False, v_reset=None))
    functional.set_step_mode(net, "m")
    changed = calibrated(net, INPUTS, manner=lambda affine, layer: "copy_below" if layer.source else "shift_bias")
    assert [c.copies for c in changed] == [False] + [True] * 11
    first = by_hand(net, INPUTS[0], 1)
    assert first.any()
    assert torch.equal(by_hand(net, INPUTS[0], 12), first)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_channels_of_a_convolution_send_on_the_maps_below(step_mode):
    net = nn.Sequential(
        layer.Conv2d(1, 5, 3, padding=1), neuron.LIFNode(), layer.Conv2d(5, 8, 3, padding=1), neuron.LIFNode()
    )
    functional.set_step_mode(net, step_mode)
    x = torch.rand(4, 30, 1, 6, 6)
    changed = calibrated(net, [x], manner=lambda affine, layer: "copy_below" if layer.source else "scale")
    assert [c.copies for c in changed] == [False, True]
    functional.reset_net(net)
    below = run(net[:2], x)
    functional.reset_net(net)
    assert torch.equal(run(net, x), below[:, :, torch.arange(8) % 5])


def test_units_that_fire_once_or_alike_do_not_make_a_layer_healthy():
    net = deep(1)
    calibrated(net, INPUTS)
    assert activity(net, INPUTS)[0].healthy
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[:1].expand(32, -1))
        net[0].bias.copy_(net[0].bias[:1].expand(32))
    (alike,) = activity(net, INPUTS)
    assert (alike.silent, alike.distinct, alike.alive, alike.healthy) == (0, 1, True, False)
    rare = deep(1, node=neuron.IFNode)
    with torch.no_grad():
        rare[0].weight.copy_(torch.eye(32, 6))
        rare[0].bias.zero_()
    x = torch.zeros(8, 100, 6)
    x[0, 0] = 1.0  # one spike of six units in 800 steps
    (once,) = activity(rare, [x])
    assert (once.silent, once.distinct) == (26, 0)


class Unknown(neuron.LIFNode):
    pass


@pytest.mark.parametrize("case", ["no layer below", "narrower", "unknown neuron", "changed on the way", "held down"])
def test_what_cannot_be_copied_is_scaled(case):
    net = deep(1)
    calibrated(net, INPUTS)
    if case == "no layer below":
        net = deep(1)
    elif case == "changed on the way":
        net.append(nn.Softplus())
    if case != "no layer below":
        net.append(layer.Linear(32, 16 if case == "narrower" else 32, step_mode="m"))
        net.append((Unknown if case == "unknown neuron" else neuron.LIFNode)(step_mode="m"))
    affine, name = net[-2], str(len(net) - 2)
    if case == "held down":
        with torch.no_grad():
            affine.bias.fill_(-1e3)
    before = affine.weight.clone()
    changed = calibrated(
        net, INPUTS, manner=lambda affine, layer: "copy_below" if layer.affine_name == name else "scale"
    )
    assert not changed[-1].copies
    cosine = torch.cosine_similarity(before, affine.weight, dim=1).abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)


# -- the layer that feeds the dead neurons ----------------------------------------------------------------------------


def linear(gain=1.0, width=6):
    made = layer.Linear(width, width)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(gain)
    return made


def repaired(net, **options):
    """What was done to ``net`` and the names of the parameters that changed."""
    before = {name: p.clone() for name, p in net.named_parameters()}
    with undisturbed(net):
        net.eval()
        network = Network(net, rows_of(net, [(x, torch.zeros(x.shape[1])) for x in INPUTS]))
        done = calibrate_layers(network, **{"rate": 0.1, "only_dead": True, **options})
    return done, {name.rpartition(".")[0] for name, p in net.named_parameters() if not torch.equal(p, before[name])}


def preactivation(net, x):
    """A residual block whose shortcut runs first, as in spikingjelly's ``ms_resnet``."""
    h = net.stem(x)
    shortcut = net.shortcut(h)
    return net.second(net.fc(net.first(h)) + shortcut)


def block(**changed):
    torch.manual_seed(0)
    parts = {"stem": linear(5.0), "shortcut": linear(5.0), "fc": linear(5.0)}
    return Parts(preactivation, **{**parts, "first": neuron.LIFNode(), "second": neuron.LIFNode(), **changed})


@pytest.mark.parametrize("how", ["scale", "shift_bias"])
def test_of_a_residual_block_the_layer_is_repaired_that_feeds_the_dead_neurons(how):
    done, written = repaired(block(stem=linear(1e-3)), manner=lambda affine, layer: how)
    assert done[0].name == "first"
    assert done[0].affine_name == "stem"
    assert done[0].after.rate == pytest.approx(0.1, abs=0.03)
    assert written - {"fc", "shortcut"} == {"stem"}


def test_one_part_of_a_sum_brings_its_neurons_to_life_beside_the_rest():
    net = block()
    net.shortcut, net.fc = linear(1e-2), linear(1e-3)
    net.shortcut.step_mode = net.fc.step_mode = "m"
    done, written = repaired(net)
    assert [(c.name, c.affine_name, c.before.silent) for c in done] == [("second", "fc", 6)]
    assert written == {"fc"}
    assert done[0].after.healthy
    functional.reset_net(net)
    rates = torch.cat([net(x) for x in INPUTS], 1).mean((0, 1))
    assert (rates - 0.1).abs().max() < 0.05


def test_units_that_the_rest_makes_fire_keep_their_weights():
    net = block(fc=linear(1e-3))
    with torch.no_grad():
        net.shortcut.weight.zero_()
        net.shortcut.bias.copy_(torch.tensor([1.5] + [0.0] * 5))
    before = net.fc.weight.clone()
    (changed,), written = repaired(net, also=lambda affine, layer: not layer.healthy)
    assert written == {"fc"}
    assert torch.equal(net.fc.weight[0], before[0])
    assert (changed.before.silent, changed.after.silent) == (5, 0)


def test_a_layer_that_neurons_share_is_left_to_the_first_ones():
    net = Parts(
        lambda n, x: n.second(n.fc(x)) + n.first(n.fc(x)),
        fc=linear(5.0), first=neuron.LIFNode(v_threshold=1e3), second=neuron.LIFNode(),
    )  # fmt: skip
    weight = net.fc.weight.clone()
    with pytest.raises(
        ValueError, match=r"'first' carries no information.*fed by 'fc', none of which.*no spiking layer"
    ):
        repaired(net)
    assert torch.equal(weight, net.fc.weight)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (layer.DropConnectLinear(6, 6, activation=None), r"'part' \(DropConnectLinear\), which is no plain Linear"),
        (nn.LayerNorm(6), r"'part' \(LayerNorm\), which is no plain Linear"),
        (nn.utils.spectral_norm(nn.Linear(6, 6)), "computed from other parameters"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), "computed from other parameters"),
        (nn.utils.weight_norm(nn.Linear(6, 6)), "computed from other parameters"),
        (layer.WSLinear(6, 6, gain=False, bias=False), "Rescaling 'part'.*undone"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_what_is_no_plain_affine_layer_is_refused_and_left_as_it_was(part, message):
    net = Parts(lambda n, x: n.spike(n.part(n.fc(x))), fc=linear(), part=part, spike=neuron.LIFNode(v_threshold=50.0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"(?s)'spike' carries no information.*{message}"):
        repaired(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_columns_of_a_transposed_convolution_are_not_taken_for_rows():
    net = Parts(
        lambda n, x: n.spike(n.up(x.unsqueeze(-2))),
        up=layer.ConvTranspose1d(1, 1, 3), spike=neuron.LIFNode(v_threshold=1e3),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'up' \(ConvTranspose1d\), which is no plain"):
        repaired(net)


def test_a_layer_that_all_rows_send_the_same_is_left_with_a_warning():
    net = Parts(lambda n, x: n.spike(n.norm(n.fc(x))), fc=linear(), norm=layer.BatchNorm1d(6), spike=neuron.LIFNode())
    nn.init.zeros_(net.norm.weight)  # as the last norm of a residual block may be
    with pytest.warns(UserWarning, match="'spike' carries no information.*was undone: it receives the same"):
        assert repaired(net) == ([], set())


def test_neurons_of_spikes_alone_are_left_with_a_warning():
    """As in a spiking attention, whose products of spikes no weights scale."""
    net = Parts(
        lambda n, x: n.attended(n.queries(n.q(x)).mT @ n.keys(n.k(x))),
        q=linear(1e-3), k=linear(5.0),
        queries=neuron.LIFNode(), keys=neuron.LIFNode(), attended=neuron.LIFNode(v_threshold=1e3),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"'attended' carries no information.*spikes of 'queries', 'keys'"):
        done, written = repaired(net)
    assert [c.name for c in done] == ["queries"]
    assert written == {"q"}
