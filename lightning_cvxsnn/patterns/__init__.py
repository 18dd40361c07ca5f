"""From a network's spikes to a `SpikeDictionary`: capture, dynamics, calibration, batch-norm statistics.

Knows nothing of Lightning and nothing of losses.
"""

from lightning_cvxsnn.patterns.attainable import AttainableTrains, attainable_trains
from lightning_cvxsnn.patterns.batch_norm import adapting_batch_norms, estimate_batch_norm
from lightning_cvxsnn.patterns.calibrate import CalibratedLayer, LayerActivity, calibrate_layers, measure_activity
from lightning_cvxsnn.patterns.capture import ENCODER_DRAWS, Capture, capture, join, observe
from lightning_cvxsnn.patterns.dictionary import DistinctColumns, SpikeDictionary
from lightning_cvxsnn.patterns.dynamics import Neuron, PatternKind, spike_patterns, spike_trains
from lightning_cvxsnn.patterns.isolation import fresh_state, release_graphs, undisturbed
from lightning_cvxsnn.patterns.kernels import Backend, resolve_backend
from lightning_cvxsnn.patterns.lif import LIF
from lightning_cvxsnn.patterns.reduction import Reduction

__all__ = [
    "ENCODER_DRAWS",
    "LIF",
    "AttainableTrains",
    "Backend",
    "CalibratedLayer",
    "Capture",
    "DistinctColumns",
    "LayerActivity",
    "Neuron",
    "PatternKind",
    "Reduction",
    "SpikeDictionary",
    "adapting_batch_norms",
    "attainable_trains",
    "calibrate_layers",
    "capture",
    "estimate_batch_norm",
    "fresh_state",
    "join",
    "measure_activity",
    "observe",
    "release_graphs",
    "resolve_backend",
    "spike_patterns",
    "spike_trains",
    "undisturbed",
]
