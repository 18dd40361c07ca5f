import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neurons import cases
from spikingjelly.activation_based import neuron

from lightning_cvxsnn.network import LIF
from lightning_cvxsnn.network.quick import quick_neurons


class Counting(torch.autograd.Function):
    """Counts how often a surrogate is asked: not at all by quick neurons."""

    calls = 0

    @staticmethod
    def forward(_context, x):
        Counting.calls += 1
        return (x >= 0).to(x)

    @staticmethod
    def backward(_context, gradient):
        return gradient


def asked(module, x):
    """Spikes, and the surrogate's calls while the module runs."""
    before = Counting.calls
    spikes = module(x)
    return spikes, Counting.calls - before


def counting(kind=neuron.IFNode, **arguments):
    return kind(surrogate_function=Counting.apply, step_mode="m", **arguments)


def same(a, b):
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@settings(max_examples=100, deadline=None)
@given(case=cases(), later=st.booleans())
def test_spikes_and_voltages_are_those_of_spikingjelly_bit_for_bit(case, later):
    module, currents = case
    module.step_mode = "m"
    twin = copy.deepcopy(module)
    if later:  # not from a reset on
        module(currents)
        twin(currents)
    with torch.no_grad(), quick_neurons(module):
        found = module(currents)
    assert torch.equal(found, twin(currents))
    assert same(module.v, twin.v)


def test_copies_made_inside_are_their_own():
    module, x = torch.nn.Sequential(neuron.IFNode(step_mode="m")), torch.full((2, 3), 0.6)
    with torch.no_grad(), quick_neurons(module):
        copied = copy.deepcopy(module)
        copied[0].v_threshold = 0.5
        assert copied(x).tolist() == [[1.0] * 3] * 2
        assert module(x).tolist() == [[0.0] * 3, [1.0] * 3]
    copied[0].v_threshold = 2.0
    assert not copied(x).any()


def test_constants_and_surrogates_that_a_forward_changes_are_followed():
    module, x = counting(v_threshold=1.0), torch.full((1, 2), 0.6)
    with torch.no_grad(), quick_neurons(module):
        assert not module(x).any()
        module.reset()
        module.v_threshold = 0.5
        assert module(x).all()
        module.reset()
        module.v_threshold = float("inf")  # which is none that we know
        assert not module(x).any()
        module.reset()
        module.v_threshold = 0.5
        module.surrogate_function = torch.sigmoid
        assert torch.equal(module(x), torch.full((1, 2), 0.1).sigmoid())


def test_surrogates_are_not_asked():
    module, x = counting(), torch.ones(3, 2)
    module(x)
    module.reset()
    with torch.no_grad(), quick_neurons(module):
        assert asked(module, x)[1] == 0


@pytest.mark.parametrize(
    ("state", "dtype"),
    [({"store_v_seq": True}, torch.float32), ({}, torch.float64), ({"v": torch.zeros(1)}, torch.float32)],
)
def test_other_calls_are_computed_as_ever(state, dtype):
    module, twin, x = counting(), counting(), torch.rand(3, 2, dtype=dtype)
    for each in (module, twin):
        for name, value in state.items():
            setattr(each, name, value)
    with torch.no_grad(), quick_neurons(module):
        spikes, calls = asked(module, x)
    assert calls > 0
    assert torch.equal(spikes, twin(x))


def test_gradients_are_those_of_the_surrogate():
    module, twin = (neuron.LIFNode(step_mode="m") for _ in range(2))
    inputs = [torch.ones(3, 2, requires_grad=True) for _ in range(2)]
    with quick_neurons(module):
        module(inputs[0]).sum().backward()
    twin(inputs[1]).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)


class Subclass(neuron.IFNode):
    def multi_step_forward(self, x_seq):
        return 2 * x_seq


def replaced():
    module = neuron.IFNode(step_mode="m")
    module.multi_step_forward = lambda x: 2 * x
    return module


@pytest.mark.parametrize("module", [Subclass(step_mode="m"), replaced()])
def test_a_forward_of_somebodys_own_is_called_and_stays(module):
    x = torch.ones(3, 2)
    for _ in range(2):
        with torch.no_grad(), quick_neurons(module):
            assert torch.equal(module(x), 2 * x)
    assert torch.equal(module(x), 2 * x)


def test_nothing_is_left_behind():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), neuron.LIFNode(step_mode="m"), LIF())
    before = [dict(vars(m)) for m in module.modules()]
    with pytest.raises(KeyError), quick_neurons(module):
        raise KeyError
    assert [dict(vars(m)) for m in module.modules()] == before
