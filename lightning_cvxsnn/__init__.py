"""Certified convex warm starts, re-solves and reconstruction for spiking networks trained with PyTorch Lightning."""

from lightning_cvxsnn.callback import ConvexReconstruction
from lightning_cvxsnn.data import AdditionDataModule, DigitsDataModule, SequentialMNISTDataModule, XORDataModule
from lightning_cvxsnn.hidden import calibrate
from lightning_cvxsnn.metrics import (
    DeadUnits,
    DistinctPatterns,
    DualityGap,
    FiringRate,
    SequenceAccuracy,
    TokenAccuracy,
)
from lightning_cvxsnn.models import AdditionSNN, LitSNN, ParallelSNN
from lightning_cvxsnn.problem import spike_dictionary
from lightning_cvxsnn.prune import prune
from lightning_cvxsnn.reconstruct import reconstruct
from lightning_cvxsnn.report import SolveReport
from lightning_cvxsnn.widen import MarginReport, widen_margins

__all__ = [
    "AdditionDataModule",
    "AdditionSNN",
    "ConvexReconstruction",
    "DeadUnits",
    "DigitsDataModule",
    "DistinctPatterns",
    "DualityGap",
    "FiringRate",
    "LitSNN",
    "MarginReport",
    "ParallelSNN",
    "SequenceAccuracy",
    "SequentialMNISTDataModule",
    "SolveReport",
    "TokenAccuracy",
    "XORDataModule",
    "calibrate",
    "prune",
    "reconstruct",
    "spike_dictionary",
    "widen_margins",
]
__version__ = "0.1.0"
