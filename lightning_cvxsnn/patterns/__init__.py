"""Spike patterns: the neuron's constants, the trains that it makes of currents, the dictionary of these.

Tensors only: nothing here knows of modules, of Lightning, or of losses.
"""

from lightning_cvxsnn.patterns.dictionary import DistinctColumns, SpikeDictionary
from lightning_cvxsnn.patterns.kernels import Backend, resolve_backend
from lightning_cvxsnn.patterns.neuron import Neuron, PatternKind, spike_patterns, spike_trains

__all__ = [
    "Backend",
    "DistinctColumns",
    "Neuron",
    "PatternKind",
    "SpikeDictionary",
    "resolve_backend",
    "spike_patterns",
    "spike_trains",
]
