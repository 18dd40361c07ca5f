"""The user's network with its rows: what it sends its readout, read without a trace and written all or not at all."""

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.batch_norm import adapting_batch_norms, estimate_batch_norm
from lightning_cvxsnn.network.contents import put_back
from lightning_cvxsnn.network.dataflow import is_spiking
from lightning_cvxsnn.network.isolation import forward_of, release_graphs, reset_neurons, undisturbed
from lightning_cvxsnn.network.lif import LIF
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.reduction import TimeReduction
from lightning_cvxsnn.network.spikes import ENCODER_DRAWS, Capture, capture, join, observe

__all__ = [
    "ENCODER_DRAWS",
    "LIF",
    "Capture",
    "LayerActivity",
    "TimeReduction",
    "adapting_batch_norms",
    "capture",
    "estimate_batch_norm",
    "forward_of",
    "is_spiking",
    "join",
    "measure_activity",
    "neuron_of",
    "observe",
    "put_back",
    "release_graphs",
    "reset_neurons",
    "undisturbed",
]
