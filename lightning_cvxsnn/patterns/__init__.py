"""Spike patterns: models of neurons, the spikes that they make of currents, the dictionary of these.

It works on tensors alone and imports neither spikingjelly nor Lightning.
"""

from lightning_cvxsnn.patterns.dictionary import DistinctColumns, SpikeDictionary
from lightning_cvxsnn.patterns.kernels import Backend, resolve_backend
from lightning_cvxsnn.patterns.neuron import KLIFNeuron, LinearForm, Neuron
from lightning_cvxsnn.patterns.spikes import PatternKind, spike_patterns, spike_trains

__all__ = [
    "Backend",
    "DistinctColumns",
    "KLIFNeuron",
    "LinearForm",
    "Neuron",
    "PatternKind",
    "SpikeDictionary",
    "resolve_backend",
    "spike_patterns",
    "spike_trains",
]
