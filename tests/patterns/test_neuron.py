import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neurons import cases, spikes_of, ties
from spikingjelly.activation_based import neuron, surrogate

from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import Neuron, spike_patterns, spike_trains
from lightning_cvxsnn.patterns import neuron as dynamics


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(["s", "m"]))
def test_spikes_are_those_of_the_module_bit_for_bit(case, step_mode):
    module, currents = case
    assert torch.equal(spike_trains(neuron_of(module), currents), spikes_of(module, currents, step_mode))


def test_ties_of_rounded_voltages_fire_as_in_the_module():
    for module, currents in ties():
        spikes = spikes_of(module, currents)
        assert spikes.any()
        assert torch.equal(spike_trains(neuron_of(module), currents), spikes)


def test_a_module_in_training_is_only_read():
    module = neuron.LIFNode(v_reset=0.25)
    module(torch.ones(2, 3, requires_grad=True))
    voltage, value = module.v, module.v.clone()
    assert neuron_of(module).v_initial == 0.25
    assert module.v is voltage
    assert torch.equal(module.v, value)


def test_the_initial_voltage_is_that_of_a_reset_and_not_of_the_reset_value():
    module = neuron.LIFNode(v_reset=0.25)
    module.v_reset = -1.0  # its memory still resets to 0.25
    currents = torch.randn(5, 3, 4)
    assert torch.equal(spike_trains(neuron_of(module), currents), spikes_of(module, currents))
    assert neuron_of(module).v_initial == 0.25


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.5, 0.25])
def test_ties_fire(v_reset):
    for described, current in (
        (Neuron(v_reset=v_reset, v_initial=0.0), 1.0),
        (Neuron(tau=2.0, v_reset=v_reset, v_initial=0.0), 2.0 + (v_reset or 0.0) * -1.0),
        (Neuron(decay=0.5, decay_input=False, v_reset=v_reset, v_initial=v_reset or 0.0), 1.0 - (v_reset or 0.0)),
    ):
        ((voltage, fires),) = described.steps(torch.tensor([[current, math.nextafter(current, 0) - 1e-6]]))
        assert voltage[0] == 1.0
        assert fires.tolist() == [True, False]


def test_an_infinite_current_silences_a_hard_reset_and_not_a_soft_one():
    currents = torch.tensor([math.inf, 5.0, 5.0])[:, None]
    for v_reset in (0.0, None):
        module = neuron.IFNode(v_reset=v_reset)
        found = spike_trains(neuron_of(module), currents)
        assert found[:, 0].tolist() == ([1, 1, 1] if v_reset is None else [1, 0, 0])
        assert torch.equal(found, spikes_of(module, currents))


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(["last", "membrane", "mean", "sum"]), st.integers(1, 200))
def test_patterns_are_what_a_readout_receives_from_the_spikes(case, kind, block):
    module, currents = case
    described = neuron_of(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "_BLOCK", block)
        found = spike_patterns(described, currents, kind)
    spikes = spikes_of(module, currents).double()
    *_, (voltage, _) = described.steps(currents)
    expected = {
        "last": spikes[-1],
        "membrane": (voltage >= 0).double(),
        "mean": spikes.sum(0) * (1 / len(spikes)),
        "sum": spikes.sum(0),
    }
    assert torch.equal(found.to_dense(), expected[kind])
    assert (found.packed_columns is not None) == (kind in ("last", "membrane"))
    assert found.counts.dtype == torch.uint8


def test_the_voltage_after_the_last_charge_is_spikingjellys():
    currents = torch.randn(5, 20, 11)
    module = neuron.LIFNode(v_threshold=1e9, step_mode="m", store_v_seq=True)  # never resets: v is h
    module(currents)
    found = spike_patterns(neuron_of(module), currents, "membrane")
    assert torch.equal(found.to_dense(), (module.v_seq[-1] >= 0).double())


def test_counts_beyond_a_byte():
    found = spike_patterns(Neuron(v_threshold=1.0), torch.full((300, 1, 2), 1.0), "sum")
    assert found.counts.dtype == torch.uint16
    assert found.to_dense().tolist() == [[300.0, 300.0]]


class Subclass(neuron.LIFNode):
    pass


def _precise():
    module = neuron.LIFNode(step_mode="m")
    module._neuron_precision = (torch.float16, "fp32", "fp32")
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (neuron.QIFNode(), "class QIFNode"),
        (neuron.SimpleLIFNode(2.0, True), "class SimpleLIFNode"),
        (Subclass(), "not a subclass"),
        (torch.nn.ReLU(), "class ReLU"),
        (neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False)), "non-spiking mode"),
        (neuron.IFNode(surrogate_function=lambda x: (x > 0).to(x)), "0 below and 1 from it on"),
        (neuron.ParametricLIFNode().double(), "float64"),
        (_precise(), "precision of its own"),
        (neuron.LIFNode(v_threshold=math.inf), "finite in float32"),
    ],
)
def test_neurons_of_another_kind_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        neuron_of(module)


@pytest.mark.parametrize(
    "constants",
    [{"tau": 0.5}, {"decay": 1.5}, {"tau": 2.0, "decay": 0.5}, {"v_reset": math.nan}, {"v_threshold": 1e39}],
)
def test_constants_out_of_range_are_refused(constants):
    with pytest.raises(ValueError, match=r"Found .* Expected"):
        Neuron(**constants)


@pytest.mark.parametrize(
    "currents", [torch.zeros(3, 2, 2, dtype=torch.float64), torch.zeros(0, 2, 2), torch.zeros(2, 2), torch.tensor(1.0)]
)
def test_other_currents_are_refused(currents):
    with pytest.raises(ValueError, match="Expected float32"):
        spike_patterns(Neuron(), currents, "last")
    if currents.dim() != 2:
        with pytest.raises(ValueError, match="Expected float32"):
            spike_trains(Neuron(), currents)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='first'"):
        spike_patterns(Neuron(), torch.zeros(1, 1, 1), "first")


@pytest.mark.parametrize(("described", "leak"), [(Neuron(), 1.0), (Neuron(tau=4.0), 0.75), (Neuron(decay=0.25), 0.75)])
def test_leak(described, leak):
    assert described.leak == leak
