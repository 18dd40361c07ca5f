import math

import pytest
import torch
from neurons import spikes_of
from spikingjelly.activation_based import neuron, surrogate

from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import KLIFNeuron, Neuron, spike_trains


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


def test_the_constants_of_each_class():
    assert neuron_of(neuron.HalfThresholdIFNode(3.0)) == Neuron(v_threshold=3.0, v_reset=None, v_initial=1.5)
    assert neuron_of(neuron.SLTTLIFNode(3.0)) == neuron_of(neuron.LIFNode(3.0))
    expected = KLIFNeuron(tau=3.0, decay_input=False, v_initial=0.0, k=1.0, scale_reset=True)
    assert neuron_of(neuron.KLIFNode(True, 3.0, False)) == expected


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
        (neuron.KLIFNode().double(), "float64"),
        (_precise(), "precision of its own"),
        (neuron.LIFNode(v_threshold=math.inf), "finite in float32"),
    ],
)
def test_neurons_of_another_kind_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        neuron_of(module)
