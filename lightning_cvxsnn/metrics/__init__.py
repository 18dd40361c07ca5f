"""torchmetrics classes for spiking networks: activity, diversity, certified optimality, tokens and sequences.

They follow torchmetrics' conventions: ``update`` and ``compute``, ``forward`` for the batch, exact under DDP, ``plot``.
One trap: spikingjelly's ``functional.reset_net(module)`` resets *every* submodule, metrics included. Reset the spiking
part of a LightningModule, not the module.
"""

from lightning_cvxsnn.metrics.activity import DeadUnits, DistinctPatterns, FiringRate
from lightning_cvxsnn.metrics.optimality import DualityGap
from lightning_cvxsnn.metrics.tokens import SequenceAccuracy, TokenAccuracy

__all__ = ["DeadUnits", "DistinctPatterns", "DualityGap", "FiringRate", "SequenceAccuracy", "TokenAccuracy"]
