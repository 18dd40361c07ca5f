import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import FEATURES, Net, assert_same_state, loader, state
from spikingjelly.activation_based import layer, neuron
from torch.nn import functional as F

from lightning_cvxsnn import reconstruct, widen_margins
from lightning_cvxsnn.patterns import KLIFNeuron, Neuron, spike_trains
from lightning_cvxsnn.witnesses.margin import margins, widen

NEURONS = [
    Neuron(),
    Neuron(v_reset=None, v_threshold=0.7),
    Neuron(tau=2.0),
    Neuron(tau=3.0, decay_input=False, v_reset=None),
    Neuron(tau=100.0, decay_input=False, v_reset=-0.2, v_initial=0.1),
    Neuron(decay=0.3, v_reset=0.1),
]


def units(neuron, seed, *, steps=4, rows=12, features=3, count=3, bias=True):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(steps, rows, features, generator=generator)
    weight = torch.randn(count, features, generator=generator) * 2
    offset = torch.randn(count, generator=generator) if bias else None
    return inputs, weight, offset, spike_trains(neuron, F.linear(inputs, weight, offset))


def voltages(neuron, inputs, weight, bias, trains):
    """Voltages after charging where the neuron is *made* to spike as ``trains`` say, step by step in float64."""
    rate = 1 / neuron.tau if neuron.tau is not None else (neuron.decay or 0.0)
    r = neuron.v_reset or 0.0
    v = torch.full(trains.shape[1:], r if neuron.v_initial is None else neuron.v_initial, dtype=torch.float64)
    out = []
    for x, s in zip(inputs.double(), trains.double(), strict=True):
        current = x @ weight.double().T + (0 if bias is None else bias.double())
        if rate == 0:
            h = v + current
        elif neuron.decay_input:
            h = v + (current - (v - r)) * rate
        else:
            h = v - (v - r) * rate + current
        out.append(h)
        v = h - s * neuron.v_threshold if neuron.v_reset is None else s * r + (1 - s) * h
    return torch.stack(out)


def room(neuron, h, trains):
    return torch.where(trains != 0, h - neuron.v_threshold, neuron.v_threshold - h).flatten(0, 1)


def largest_margin(neuron, inputs, weight, bias, trains):
    """The whole programme of one unit through CVXPY: the voltages are affine in the weights, so probes give them."""
    features = inputs.shape[2] + (bias is not None)
    probes = torch.cat([torch.zeros(1, features), torch.eye(features)])
    sent = trains.expand(-1, -1, len(probes))
    split = (probes[:, :-1], probes[:, -1]) if bias is not None else (probes, None)
    rooms = room(neuron, voltages(neuron, inputs, *split, sent), sent).numpy()
    w, m = cp.Variable(features), cp.Variable()
    size = torch.cat([weight, bias[:, None]], 1).norm() if bias is not None else weight.norm()
    affine = (rooms[:, 1:] - rooms[:, :1]) @ w + rooms[:, 0]
    return cp.Problem(cp.Maximize(m), [affine >= m, cp.norm(w) <= float(size)]).solve(solver="CLARABEL")


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), bias=st.booleans())
def test_the_margin_is_the_largest_there_is(neuron, seed, bias):
    inputs, weight, offset, trains = units(neuron, seed, bias=bias)
    found = widen(neuron, inputs, weight, offset, trains)
    size = torch.cat([weight, offset[:, None]], 1).norm(dim=1) if bias else weight.norm(dim=1)
    new_size = torch.cat([found.weight, found.bias[:, None]], 1).norm(dim=1)
    assert (new_size <= size * (1 + 1e-6)).all()
    h = voltages(neuron, inputs, found.weight, found.bias, trains)
    torch.testing.assert_close(room(neuron, h, trains).amin(0), found.after, rtol=1e-9, atol=1e-9)
    for unit in range(len(weight)):
        one = slice(unit, unit + 1)
        best = largest_margin(neuron, inputs, weight[one], None if offset is None else offset[one], trains[..., one])
        assert found.after[unit] <= best + 1e-6
        assert found.after[unit] >= best - 2e-3 * abs(best) - 1e-6
        assert found.bound[unit] == pytest.approx(best, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_margins_are_distances_of_the_voltage(neuron):
    inputs, weight, bias, trains = units(neuron, 1)
    expected = room(neuron, voltages(neuron, inputs, weight, bias, trains), trains).amin(0)
    torch.testing.assert_close(margins(neuron, inputs, weight, bias, trains), expected, rtol=1e-9, atol=1e-9)


def test_spikes_stay_although_many_more_constraints_than_the_first_ones_count():
    neuron = Neuron(tau=2.0)
    inputs, weight, bias, trains = units(neuron, 3, rows=400, features=2, count=4)
    found = widen(neuron, inputs, weight, bias, trains)
    assert (found.after > found.before).all()
    assert torch.equal(spike_trains(neuron, F.linear(inputs, found.weight.float(), found.bias.float())), trains)


def test_a_silent_unit_moves_away_from_the_threshold():
    inputs = torch.rand(3, 10, 2)
    weight, bias = torch.tensor([[0.01, 0.01]]), torch.tensor([0.0])
    found = widen(Neuron(tau=2.0), inputs, weight, bias, torch.zeros(3, 10, 1))
    assert float(found.after) > float(found.before) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.full((4, 12, 3), float("nan"))}, "NaN or infinity"),
        ({"weight": torch.zeros(3, 2)}, r"weight \[3, 2\]"),
        ({"trains": torch.zeros(4, 12, 2)}, r"trains \[4, 12, 2\]"),
    ],
)
def test_bad_input(change, message):
    inputs, weight, bias, trains = units(Neuron(), 0)
    arguments = {"inputs": inputs, "weight": weight, "bias": bias, "trains": trains, **change}
    for function in (widen, margins):
        with pytest.raises(ValueError, match=message):
            function(Neuron(), **arguments)


def test_a_neuron_without_a_linear_form_is_refused():
    inputs, weight, bias, trains = units(KLIFNeuron(), 0)
    for function in (widen, margins):
        with pytest.raises(ValueError, match="KLIF neuron cuts its voltage at zero"):
            function(KLIFNeuron(), inputs, weight, bias, trains)


# ---- Of a network.


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


def test_neurons_without_a_linear_form_are_refused():
    net = Net()
    net.hidden[1] = neuron.KLIFNode(step_mode="m")
    before = state(net)
    with pytest.raises(ValueError, match="KLIF neuron cuts its voltage at zero"):
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
