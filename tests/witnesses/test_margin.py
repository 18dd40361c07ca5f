import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_cvxsnn.patterns import Neuron, spike_trains
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
