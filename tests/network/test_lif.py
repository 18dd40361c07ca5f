import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neurons import cases, modules, spikes_of, ties
from spikingjelly.activation_based import neuron, surrogate

from lightning_cvxsnn.network import LIF
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import spike_patterns, spike_trains


def lif_like(node):
    return LIF(node.tau, node.v_threshold, node.v_reset, node.decay_input, node.surrogate_function)


def lif_nodes():
    return modules([neuron.LIFNode])


@settings(max_examples=100, deadline=None)
@given(case=cases([neuron.LIFNode]), step_mode=st.sampled_from("sm"))
def test_spikes_are_those_of_spikingjelly_bit_for_bit(case, step_mode):
    node, currents = case
    lif = lif_like(node)
    assert torch.equal(spikes_of(lif, currents, step_mode), spikes_of(node, currents))
    assert torch.equal(lif.v.nan_to_num(7.0), node.v.nan_to_num(7.0))


@settings(max_examples=100, deadline=None)
@given(case=cases([neuron.LIFNode]), later=st.booleans())
def test_without_gradients_spikes_and_both_voltages_are_the_same(case, later):
    node, currents = case
    lif, twin = lif_like(node), lif_like(node)
    for _ in range(1 + later):
        found = twin(currents)
        with torch.no_grad():
            assert torch.equal(lif(currents), found)
    for name in ("v", "charged"):
        assert torch.equal(getattr(lif, name).nan_to_num(7.0), getattr(twin, name).nan_to_num(7.0))


def test_a_surrogate_that_is_no_step_is_asked_without_gradients_too():
    lif = LIF(surrogate_function=surrogate.ATan(spiking=False))
    with torch.no_grad():
        assert 0 < float(lif(torch.ones(1, 1))) < 1


def test_ties_fire_as_in_spikingjelly():
    nodes = [(node, currents) for node, currents in ties() if type(node) is neuron.LIFNode]
    assert len(nodes) > 100
    for node, currents in nodes:
        spikes = spikes_of(lif_like(node), currents)
        assert spikes.any()
        assert torch.equal(spikes, spikes_of(node, currents))


@settings(max_examples=40, deadline=None)
@given(node=lif_nodes(), seed=st.integers(0, 2**32))
def test_gradients_are_those_of_spikingjelly(node, seed):
    currents = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(seed))
    weights = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(seed + 1))
    gradients = []
    for module in (lif_like(node), node):
        module.step_mode = "m"
        module.reset()
        x = currents.clone().requires_grad_()
        (module(x) * weights).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(case=cases([neuron.LIFNode]))
def test_constants_are_read_for_patterns(case):
    node, currents = case
    lif = lif_like(node)
    constants = neuron_of(lif)
    spikes = spikes_of(lif, currents)
    assert torch.equal(spike_trains(constants, currents), spikes)
    charged = lif.charged
    assert torch.equal(spike_patterns(constants, currents, "membrane").to_dense(), (charged >= 0).double())


def test_constants_come_back_with_the_state():
    saved = io.BytesIO()
    torch.save(LIF(7.3, 0.4, None).state_dict(), saved)
    saved.seek(0)
    lif = LIF(2.0, 1.0, -0.5)
    lif.load_state_dict(torch.load(saved, weights_only=True))
    assert neuron_of(lif) == neuron_of(LIF(7.3, 0.4, None))
    assert lif.extra_repr().startswith("tau=7.3, v_threshold=0.4, reset soft")


def test_state_is_kept_between_calls_until_the_reset():
    lif, x = LIF(tau=3.0, v_reset=None), torch.full((6, 2), 0.4)
    whole = lif(x)
    lif.reset()
    assert torch.equal(torch.cat([lif(x[:2]), lif(x[2:])]), whole)
    lif.reset()
    assert lif.v is None
    assert torch.equal(lif(x), whole)


def test_a_surrogate_that_is_no_spike_is_refused():
    lif = LIF()
    lif.surrogate_function.set_spiking_mode(False)
    with pytest.raises(ValueError, match="Expected 0 below and 1 from it on"):
        neuron_of(lif)
