import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neurons import cases, spikes_of, ties
from spikingjelly.activation_based import neuron

from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import KLIFNeuron, Neuron, spike_patterns, spike_trains

KINDS_OF_PATTERN = ["last", "membrane", "mean", "sum"]


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
@given(cases(), st.sampled_from(KINDS_OF_PATTERN))
def test_patterns_are_what_a_readout_receives_from_the_spikes(case, kind):
    _check_patterns(*case, kind)


@pytest.mark.parametrize("kind", KINDS_OF_PATTERN)
def test_patterns_of_more_rows_than_are_processed_at_a_time(kind):
    for columns in (300, 2**17 + 3):
        currents = torch.randn(3, 3 * 2**17 // columns + 2, columns)
        _check_patterns(neuron.LIFNode(v_reset=None, v_threshold=0.5), currents, kind)


def _check_patterns(module, currents, kind):
    described = neuron_of(module)
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


@pytest.mark.parametrize(
    "constants",
    [{"tau": 0.5}, {"decay": 1.5}, {"tau": 2.0, "decay": 0.5}, {"v_reset": math.nan}, {"v_threshold": 1e39}],
)
def test_constants_out_of_range_are_refused(constants):
    with pytest.raises(ValueError, match=r"Found .* Expected"):
        Neuron(**constants)


@pytest.mark.parametrize("constants", [{"tau": None}, {"tau": 0.5}, {"decay": 0.5}, {"k": math.inf}, {"k": None}])
def test_constants_of_klif_out_of_range_are_refused(constants):
    with pytest.raises(ValueError, match=r"Found .* Expected"):
        KLIFNeuron(**constants)


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


@pytest.mark.parametrize("tau", [1.0, 1.3, 2.0, 7.3, 100.0])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize(
    "constants", [{}, {"v_reset": None, "v_threshold": 0.3}, {"v_reset": -0.3, "v_initial": 0.2}, {"v_reset": 0.25}]
)
def test_the_firing_current_is_the_least_that_fires(tau, decay_input, constants):
    for described in (
        Neuron(tau=tau, decay_input=decay_input, **constants),
        Neuron(decay=1 / tau, decay_input=decay_input, **constants),
        KLIFNeuron(tau=tau, decay_input=decay_input, k=1.7, **constants),
    ):
        least = described.firing_current
        assert spike_trains(described, torch.tensor([[least - 1e-4 * tau, least + 1e-4 * tau]])).tolist() == [[0, 1]]


def test_no_current_makes_a_klif_neuron_of_another_sign_fire():
    assert KLIFNeuron(k=-1.0).firing_current == KLIFNeuron(v_threshold=0.0).firing_current == math.inf
    assert Neuron(decay=0.0).firing_current == math.inf


@settings(max_examples=100, deadline=None)
@given(cases([neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]), st.integers(0, 2**32))
def test_the_linear_form_is_the_step_in_exact_arithmetic(case, seed):
    module, currents = case
    described = neuron_of(module)
    form = described.linear_form()
    currents = torch.randn(currents.shape, generator=torch.Generator().manual_seed(seed))
    weights = currents.double().flatten(1).T  # the voltage as a function of weights is probed at weights of one
    v = torch.full_like(currents[0], described.initial_voltage).double().flatten()
    normal, constant = torch.zeros_like(weights), v.clone()
    for step, (h, fires) in enumerate(described.steps(currents)):
        x = torch.zeros_like(weights)
        x[:, step] = weights[:, step]
        v = form.charge(v, weights[:, step])
        normal, constant = form.charge_affine(normal, constant, x)
        torch.testing.assert_close(v, h.double().flatten(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(normal.sum(1) + constant, v)
        fires = fires.flatten()
        v = form.reset(v, fires)
        normal[fires], constant[fires] = form.reset_affine(normal[fires], constant[fires])


def test_a_voltage_that_is_cut_has_no_linear_form():
    with pytest.raises(ValueError, match=r"KLIF neuron cuts its voltage at zero.* Expected IF, LIF or parametric LIF"):
        KLIFNeuron().linear_form()
