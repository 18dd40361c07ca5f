import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, rows, state
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from lightning_cvxsnn.patterns import undisturbed
from lightning_cvxsnn.readout import find_readout

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


def test_a_spiking_output_layer_is_refused():
    class SpikingOut(Net):
        def __init__(self):
            super().__init__()
            self.out = neuron.LIFNode(step_mode="m")

        def forward(self, x):
            return self.out(self.readout(self.hidden(self.steps(x)))).mean(0)

    refused(SpikingOut(), "'readout' is followed by the spiking neuron 'out'")


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
    refused(Net(), "followed by the spiking neuron 'hidden.1'", "hidden.0")


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


def test_a_dictionary_of_outputs():
    net = Net()
    net.convex_forward = lambda x: {"logits": net(x)}
    refused(net, "returned dict; expected one tensor")


def test_no_forward():
    net = Net()
    net.forward = super(Net, net).forward
    refused(net, "has no `forward`")


def test_an_operation_that_is_not_implemented_is_not_mistaken_for_a_missing_forward():
    def forward(x):
        raise NotImplementedError("no kernel for this device")

    net = Net()
    net.forward = forward
    with pytest.raises(NotImplementedError, match="no kernel"):
        find(net)
