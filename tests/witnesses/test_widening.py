import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import FEATURES, Net, assert_same_state, loader, state
from spikingjelly.activation_based import layer, neuron

from lightning_cvxsnn import reconstruct, widen_margins


def spikes(net, x):
    net.hidden[1].reset()
    return net.hidden(net.steps(x))


@pytest.mark.parametrize("bias", [True, False])
def test_spikes_and_outputs_stay_and_margins_grow(bias):
    torch.manual_seed(0)
    net, rows = Net(), loader(100)
    if not bias:
        net.hidden[0].bias = None
    x = rows.dataset.tensors[0]
    reconstruct(net, rows, beta=0.05)
    before, outputs = spikes(net, x), net(x)
    old = state(net)
    report = widen_margins(net, rows)
    assert torch.equal(spikes(net, x), before)
    assert torch.equal(net(x), outputs)
    assert report.widened > 0
    assert report.widened + report.kept <= report.units == 24
    assert report.smallest_after > report.smallest_before
    assert report.median_after > 3 * report.median_before
    assert not torch.equal(net.hidden[0].weight, old["hidden.0.weight"])
    assert torch.equal(net.readout.weight, old["readout.weight"])


def test_half_precision_weights_lose_fewer_spikes():
    torch.manual_seed(0)
    net, rows = Net(), loader(100)
    x = rows.dataset.tensors[0]

    def lost():
        exact, saved = spikes(net, x), state(net)
        with torch.no_grad():
            for parameter in net.hidden.parameters():
                parameter.copy_(parameter.bfloat16())
        rounded = spikes(net, x)
        net.load_state_dict(saved)
        return int((exact != rounded).sum())

    before = lost()
    widen_margins(net, rows)
    assert lost() < before


def test_modes_states_and_generators_are_as_before():
    net, rows = Net().train(), loader(60)
    net.hidden[1](torch.rand(2, 2, 24))
    v, rng = net.hidden[1].v.clone(), torch.get_rng_state()
    widen_margins(net, rows)
    assert net.training
    assert torch.equal(net.hidden[1].v, v)
    assert torch.equal(torch.get_rng_state(), rng)


class NoisyLIF(neuron.LIFNode):
    """A subclass may compute anything."""


def test_unknown_dynamics_are_refused():
    net = Net()
    net.hidden[1] = NoisyLIF(step_mode="m")
    before = state(net)
    with pytest.raises(ValueError, match="NoisyLIF"):
        widen_margins(net, loader(60))
    assert_same_state(net, before)


def test_a_batch_norm_is_refused():
    net = Net()
    net.hidden.insert(1, layer.BatchNorm1d(24, step_mode="m"))
    before = state(net)
    with pytest.raises(ValueError, match=r"Between 'hidden.0' and its neurons is the batch norm 'hidden.1'"):
        widen_margins(net, loader(60))
    assert_same_state(net, before)


def test_an_empty_loader_is_refused():
    with pytest.raises(MisconfigurationException, match="non-empty"):
        widen_margins(Net(), [])


def test_a_subset_of_rows():
    torch.manual_seed(0)
    net, rows = Net(), loader(100)
    assert widen_margins(net, rows, max_samples=20).smallest_after >= widen_margins(net, rows).smallest_before
    assert net(torch.rand(2, FEATURES)).shape == (2, 3)
