import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, reduce_over_time, rows, state
from spikingjelly.activation_based import functional, layer, neuron, rnn, surrogate
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from lightning_cvxsnn.network import capture, undisturbed
from lightning_cvxsnn.network.readout import find_readout

X = rows(16)[0]


def find(net, name=None):
    with undisturbed(net):
        net.eval()
        return find_readout(net, X, name)


def refused(net, message, name=None):
    before = state(net)
    with pytest.raises(MisconfigurationException, match=message):
        find(net, name)
    assert_same_state(net, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["last", "mean", "sum", "all"])
def test_the_reduction_is_found(step_mode, reduction):
    readout = find(Net(reduction, step_mode))
    assert readout.name == "readout"
    assert readout.reduction.kind == reduction
    assert readout.reduction.steps == 4
    assert readout.reduction.layout == ("calls" if step_mode == "s" else "steps")
    assert readout.reduction.bias_count == (4 if reduction == "sum" else 1)


@pytest.mark.parametrize("reduction", ["last", "mean", "sum"])
def test_a_silent_network_and_a_zero_readout_hide_nothing(reduction):
    net = Net(reduction, gain=0.0)
    nn.init.zeros_(net.readout.weight)
    nn.init.zeros_(net.readout.bias)
    assert find(net).reduction.kind == reduction


def test_nothing_is_left_behind():
    net = Net()
    before = state(net)
    find(net)
    assert_same_state(net, before)
    assert not net.readout._forward_hooks
    assert not net.readout._forward_pre_hooks


def test_the_last_linear_layer_reached_is_found_among_several():
    net = Net()
    net.unused = nn.Linear(3, 3)
    net.hidden.append(layer.Linear(24, 24, step_mode="m"))
    net.hidden.append(neuron.LIFNode(step_mode="m"))
    assert find(net).name == "readout"


def test_convex_forward_is_what_is_tested():
    net = Net("all")
    net.convex_forward = lambda x: net(x).mean(0)
    assert find(net).reduction.kind == "mean"


def test_one_output_may_be_squeezed():
    net = Net(classes=1, tail=nn.Flatten(0))
    assert find(net).reduction.kind == "mean"


def test_written_values_are_read_back_and_the_parameters_stay_the_same_objects():
    net = Net("sum")
    readout = find(net)
    weight, bias = net.readout.weight, net.readout.bias
    coef, intercept = torch.randn(24, 3).double(), torch.randn(3).double()
    readout.write(coef, intercept)
    assert net.readout.weight is weight
    assert net.readout.bias is bias
    assert torch.equal(bias, (intercept / 4).float())
    read_coef, read_intercept = readout.read()
    assert torch.allclose(read_coef, coef, atol=1e-6)
    assert torch.allclose(read_intercept, intercept, atol=1e-6)


@pytest.mark.parametrize("tail", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.ReLU()])
def test_a_non_linear_output_is_refused_with_what_was_tried(tail):
    refused(
        Net(tail=tail), r"no linear function.*'readout'.*tried: last off by \d+%, mean off by \d+%, sum off by \d+%"
    )


def test_a_maximum_over_time_is_refused():
    class MaxNet(Net):
        def forward(self, x):
            return self.readout(self.hidden(self.steps(x))).amax(0)

    refused(MaxNet(), "no linear function")


class SpikingOut(Net):
    """The readout's output goes to spiking neurons, then (``tail``) is reduced over time."""

    def __init__(self, reduction="mean", step_mode="m", between=None, out=None, **kwargs):
        super().__init__(reduction, step_mode, **kwargs)
        self.between = between or nn.Identity()
        self.out = out or neuron.LIFNode(step_mode=step_mode)

    def forward(self, x):
        functional.reset_net(self)
        steps = self.steps(x)
        if self.step_mode == "m":
            spikes = self.out(self.between(self.readout(self.hidden(steps))))
        else:
            spikes = torch.stack([self.out(self.between(self.readout(self.hidden(step)))) for step in steps])
        return self.tail(reduce_over_time(spikes, self.reduction))


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["last", "mean", "sum", "all"])
def test_a_spiking_output_layer_is_found(step_mode, reduction):
    net = SpikingOut(reduction, step_mode)
    readout = find(net)
    assert (readout.name, readout.neuron_name, readout.neuron) == ("readout", "out", net.out)
    assert readout.reduction.kind == reduction


def test_the_linear_part_of_a_spiking_output_layer_is_the_network_without_its_spikes():
    net = SpikingOut("mean")
    readout = find(net)
    with readout.linearised():
        linear = net(X)
    functional.reset_net(net)
    coef, intercept = readout.read()
    received = net.hidden(net.steps(X)).mean(0).double()
    assert torch.allclose(linear.double(), received @ coef + intercept, atol=1e-5)
    assert set((net(X) * 4).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize(
    "net",
    [
        SpikingOut(between=nn.BatchNorm1d(3, affine=False), step_mode="s"),
        SpikingOut(tail=nn.Softmax(-1)),
        SpikingOut(tail=nn.Sigmoid()),
    ],
    ids=["batch norm between", "softmax of rates", "sigmoid of rates"],
)
def test_more_than_a_spiking_output_layer_is_refused(net):
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean += 0.3
    refused(net, "no linear function of what 'readout' receives")


def test_two_spiking_layers_after_the_readout_are_refused():
    net = SpikingOut(out=nn.Sequential(neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m")))
    refused(net, r"'readout' is followed by the spiking neuron 'out.0' and more layers \(\['out.1'\]\)")


def test_a_spiking_output_layer_alone():
    net = SpikingOut()
    net.hidden = nn.Sequential(layer.Linear(6, 24), nn.ReLU())
    readout = find(net)
    assert (readout.name, readout.neuron_name) == ("readout", "out")


def test_a_spiking_output_layer_in_non_spiking_mode():
    net = SpikingOut(out=neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False), step_mode="m"))
    refused(net, "'out' emits no spikes")


class Integrated(Net):
    """Membrane potentials of non-spiking neurons are the output."""

    def __init__(self, integrator, pick=lambda v: v, **kwargs):
        super().__init__(**kwargs)
        self.integrator, self.pick = integrator, pick

    def forward(self, x):
        functional.reset_net(self.hidden)
        return self.pick(self.integrator(self.readout(self.hidden(self.steps(x)))))


def decayed(tau):
    return [(1 / tau) * (1 - 1 / tau) ** (3 - t) for t in range(4)]


@pytest.mark.parametrize(
    ("net", "weights"),
    [
        (Integrated(neuron.NonSpikingLIFNode(tau=3.0, decode="last_mem")), decayed(3.0)),
        (Integrated(neuron.NonSpikingLIFNode(tau=2.0), lambda v: v[-1]), decayed(2.0)),
        (Integrated(neuron.NonSpikingIFNode(decode="mean-mem")), [1.0, 0.75, 0.5, 0.25]),
        (Integrated(neuron.NonSpikingLIFNode(tau=3.0, decode="last_mem"), bias=False), decayed(3.0)),
        (Integrated(nn.Identity(), lambda v: v[2:].mean(0)), [0.0, 0.0, 0.5, 0.5]),
    ],
    ids=["LIF last", "LIF last of list", "IF mean", "LIF without bias", "mean of the last half"],
)
def test_weights_over_time_are_measured(net, weights):
    readout = find(net)
    assert readout.reduction.kind == "weighted"
    assert readout.reduction.weights == pytest.approx(weights, abs=1e-5)
    assert readout.reduction.bias_count == pytest.approx(sum(weights), abs=1e-5)


def test_an_integrator_with_equal_weights_is_a_sum():
    assert find(Integrated(neuron.NonSpikingIFNode(decode="last_mem"))).reduction.kind == "sum"


@pytest.mark.parametrize("decode", ["max-mem", "max-abs-mem"])
def test_a_maximum_of_membranes_is_refused(decode):
    net = Integrated(neuron.NonSpikingLIFNode(decode=decode))
    refused(net, r"no linear function.*sum off by \d+%, weighted off by \d+%")


def test_a_synapse_filter_after_the_readout_is_refused():  # its decay depends on its input
    net = Integrated(layer.SynapseFilter(tau=4.0, step_mode="m"), lambda v: v[-1])
    refused(net, r"weighted off by \d+%. After it ran 'integrator' \(SynapseFilter\)")


def test_a_list_of_membranes_is_refused():
    refused(Integrated(neuron.NonSpikingLIFNode()), r"The entries \[0, 1, 2, 3\].*are all read out by 'readout'")


def test_weights_that_cancel_the_bias():
    difference = {"integrator": nn.Identity(), "pick": lambda v: v[-1] - v[0]}
    refused(Integrated(**difference), "no linear function")
    assert find(Integrated(**difference, bias=False)).reduction.weights == pytest.approx([-1, 0, 0, 1], abs=1e-5)


def test_a_readout_of_every_position_is_refused():
    net = Net()
    net.steps = lambda x: torch.stack([x, x]).expand(4, 2, *x.shape)  # [T, positions, N, F]
    refused(net, r"input\(s\) of shape \[4, 2, 16, 24\]\); tried: no reduction gives its shape")


def test_no_linear_layer():
    net = Net()
    net.readout = nn.Identity()
    net.hidden[0] = layer.Conv1d(4, 4, 1)
    net.forward = lambda x: net.hidden[1](net.steps(x)).mean(0)
    refused(net, "No `nn.Linear` of Net was reached")


def test_no_spiking_neuron():
    net = Net()
    net.hidden[1] = nn.ReLU()
    refused(net, "No spiking neuron runs before the readout")


def test_a_name_that_is_no_linear_layer():
    refused(Net(), r"`readout='hidden.1'` is not an `nn.Linear`.*Found: \['hidden.0', 'readout'\]", "hidden.1")
    refused(Net(), "`readout='head'` is not an `nn.Linear`", "head")


def test_a_hidden_layer_as_readout():
    refused(Net(), r"followed by the spiking neuron 'hidden.1' and more layers \(\['readout'\]\)", "hidden.0")


def test_a_non_spiking_surrogate():
    net = Net()
    net.hidden[1].surrogate_function = surrogate.ATan()
    net.hidden[1].surrogate_function.set_spiking_mode(False)
    refused(net, r"'hidden.1' emits no spikes.*set_spiking_mode\(True\)")


def test_a_frozen_readout():
    net = Net()
    net.readout.weight.requires_grad_(False)
    refused(net, "`readout.weight` is frozen")


def test_a_tied_readout():
    net = Net()
    net.twin = nn.Linear(24, 3)
    net.twin.weight = net.readout.weight
    refused(net, r"`readout.weight` is shared: it is also \['twin.weight'\]")


def test_a_linear_layer_with_additions():
    class Lora(layer.Linear):
        def forward(self, x):
            return super().forward(x) + 0.1 * x[..., :3]

    net = Net()
    net.readout = Lora(24, 3, step_mode="m")
    refused(net, r"'readout' \(Lora\) is not a plain linear layer")


class Wrapped(nn.Module):
    """A low-rank adapter beside a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(24, 2, bias=False)
        self.up = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_a_voting_layer_is_refused():
    refused(Net(classes=6, tail=layer.VotingLayer(2)), r"no linear function.*After it ran 'tail' \(VotingLayer\)")


def test_a_low_rank_adapter_is_refused():
    net = Net()
    net.readout = Wrapped(net.readout)
    refused(net, "no linear function of what 'readout.up' receives")
    refused(net, "no linear function of what 'readout.base' receives", "readout.base")
    net.readout.base.requires_grad_(False)
    refused(net, "`readout.base.weight` is frozen", "readout.base")


def test_a_computed_weight_is_refused():
    class LowRank(nn.Module):
        def forward(self, weight):
            return weight[:, :2] @ weight[:2]

    for register in (nn.utils.parametrizations.weight_norm, lambda m: register_parametrization(m, "weight", LowRank())):
        net = Net()
        register(net.readout)
        refused(net, "The weight of the readout 'readout' is computed from other parameters")


def test_a_fake_quantised_readout_is_refused():
    class Quantised(layer.Linear):
        def forward(self, x):
            return F.linear(x, torch.fake_quantize_per_tensor_affine(self.weight, 0.1, 0, -8, 7), self.bias)

    net = Net()
    net.readout = Quantised(24, 3, step_mode="m")
    refused(net, r"'readout' \(Quantised\) is not a plain linear layer")


def test_a_quantised_readout_is_refused():
    net = Net()
    net.readout = nn.Linear(24, 3)
    net = torch.ao.quantization.quantize_dynamic(net, {"readout"}, dtype=torch.qint8)
    expected = r"no linear function of what 'hidden.0' .* After it ran 'hidden.1' \(LIFNode\), 'readout' \(Linear\)"
    with pytest.raises(MisconfigurationException, match=expected):
        find(net)


@pytest.mark.parametrize("part", ["network", "layers", "readout"])
def test_compiled_parts(part, compiling):
    net = Net("sum")
    if part == "network":
        net.compile(backend="eager")
    elif part == "layers":
        net.hidden = torch.compile(net.hidden, backend="eager")
    else:
        net.readout = torch.compile(net.readout, backend="eager")
    net(X)  # compiled without hooks
    readout = find(net)
    assert readout.reduction.kind == "sum"
    assert readout.name == ("readout._orig_mod" if part == "readout" else "readout")


class Heads(Net):
    """Two readouts."""

    def __init__(self, container=dict):
        super().__init__()
        self.carry = layer.Linear(24, 2, step_mode="m")
        self.container = container

    def forward(self, x):
        functional.reset_net(self.hidden)
        spikes = self.hidden(self.steps(x))
        digit, carry = self.readout(spikes).mean(0), self.carry(spikes)[-1]
        return {"digit": digit, "carry": carry} if self.container is dict else self.container((digit, carry))


@pytest.mark.parametrize("container", [dict, tuple, list])
def test_the_output_of_each_readout_is_found(container):
    net = Heads(container)
    digit, carry = ("digit", "carry") if container is dict else (0, 1)
    readout = find(net, "readout")
    assert (readout.output, readout.reduction.kind) == (digit, "mean")
    assert torch.equal(readout.forward_of(net)(X), net(X)[digit])
    readout = find(net, "carry")
    assert (readout.output, readout.reduction.kind) == (carry, "last")


def test_the_targets_of_a_readout():
    readout = find(Heads(), "carry")
    y = torch.zeros(3)
    assert readout.pick(None) is None
    assert readout.pick(y) is y
    assert readout.pick({"digit": None, "carry": y}) is y
    with pytest.raises(MisconfigurationException, match=r"'carry' gives the output 'carry'; .* have \['digit'\]"):
        readout.pick({"digit": y})
    with pytest.raises(MisconfigurationException, match=r"gives the output 'carry'; .* have 2 entries"):
        readout.pick((y, y))


def test_outputs_without_a_tensor():
    net = Net()
    net.convex_forward = lambda x: {"logits": net(x).tolist()}
    refused(net, "returned dict; expected a tensor")


def test_no_forward():
    net = Net()
    net.forward = super(Net, net).forward
    refused(net, "has no `forward`")


def test_an_operation_that_is_not_implemented_is_not_mistaken_for_a_missing_forward():
    def forward(x):
        raise NotImplementedError("no kernel for this device")

    net = Net()
    net.forward = forward
    refused(net, "raised NotImplementedError: no kernel for this device")


class SamplesFirst(Net):
    """Time-first neurons, then ``[N, T, P]`` to the readout, in one piece or flat; ``read`` reduces ``[N, T, C]``."""

    def __init__(self, read, flat=False, **kwargs):
        super().__init__(**kwargs)
        self.readout, self.read, self.flat = nn.Linear(24, 3), read, flat

    def forward(self, x):
        functional.reset_net(self)
        spikes = self.hidden(self.steps(x)).transpose(0, 1)
        if self.flat:
            return self.read(self.readout(spikes.flatten(0, 1)).unflatten(0, (len(x), -1)))
        return self.read(self.readout(spikes))


def captured_and_answered(net, x):
    """What the network answers, and what its readout makes of the rows that are captured."""
    with undisturbed(net), torch.no_grad():
        net.eval()
        readout = find_readout(net, x)
        found = capture(net, readout, [x])
    coef, intercept = readout.read()
    return readout.reduction, found.outputs.double(), found.dictionary.to_dense() @ coef + intercept


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("samples", [16, 4])
@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("mean", lambda values: values.mean(1)),
        ("sum", lambda values: values.sum(1)),
        ("last", lambda values: values[:, -1]),
        ("weighted", lambda values: (values * torch.tensor([0.5, 1.0, 2.0, 0.25])[:, None]).sum(1)),
        ("all", lambda values: values),
        ("all", lambda values: values.transpose(0, 1)),
    ],
    ids=["mean", "sum", "last", "weighted", "all", "all, transposed"],
)
def test_readouts_that_see_samples_first(kind, read, samples, flat):
    """Four steps; as many samples, which the axes' sizes do not tell apart."""
    reduction, outputs, expected = captured_and_answered(SamplesFirst(read, flat), X[:samples])
    assert (reduction.kind, reduction.layout, reduction.steps) == (kind, "flat samples" if flat else "samples", 4)
    assert torch.allclose(outputs, expected, atol=1e-5)
    assert len(outputs) == samples * reduction.rows_per_sample


@pytest.mark.parametrize("reduction", ["last", "mean", "sum", "all", "all batch first"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_readouts_that_see_time_first_with_as_many_samples_as_steps(reduction, step_mode):
    found, outputs, expected = captured_and_answered(Net(reduction, step_mode), X[:4])
    assert found.layout == ("calls" if step_mode == "s" else "steps")
    assert (found.kind, found.batch_first) == (reduction[:3] if "all" in reduction else reduction, "batch" in reduction)
    assert torch.allclose(outputs, expected, atol=1e-5)


def test_batches_with_fewer_steps_are_not_read_as_other_rows():
    net = SamplesFirst(lambda values: values.mean(1), flat=True)
    with undisturbed(net), torch.no_grad():
        readout = find_readout(net.eval(), X)
        net.steps = lambda x: torch.stack([3 * x] * 2)
        with pytest.raises(ValueError, match=r"received 8 rows of 4 time steps and the network answered 16"):
            capture(net, readout, [X])


def test_neurons_of_other_libraries_are_named():
    net = Net()
    net.hidden = nn.Sequential(nn.Linear(6, 24), nn.Sigmoid())
    refused(net, r"those of other libraries \(snntorch, norse\) are not known")


def test_spiking_recurrent_layers_are_spiking():
    class Recurrent(Net):
        def __init__(self):
            super().__init__()
            self.hidden = rnn.SpikingLSTM(6, 24, 1)

        def forward(self, x):
            return self.readout(self.hidden(self.steps(x))[0]).mean(0)

    assert find(Recurrent()).reduction.kind == "mean"
