"""Certified convex warm starts, re-solves and reconstruction for spiking networks trained with PyTorch Lightning."""

from lightning_cvxsnn.metrics import (
    DeadUnits,
    DistinctPatterns,
    DualityGap,
    FiringRate,
    SequenceAccuracy,
    TokenAccuracy,
)
from lightning_cvxsnn.network.programme import spike_dictionary
from lightning_cvxsnn.reconstruction.doctor import diagnose
from lightning_cvxsnn.reconstruction.standalone import reconstruct
from lightning_cvxsnn.reports import plots
from lightning_cvxsnn.reports.diagnosis import Diagnosis, LayerHealth
from lightning_cvxsnn.reports.solve_report import SolveReport
from lightning_cvxsnn.tasks.addition import AdditionDataModule
from lightning_cvxsnn.tasks.automata import AutomatonDataModule
from lightning_cvxsnn.tasks.digits import DigitsDataModule
from lightning_cvxsnn.tasks.feedback import AdditionSNN, AutomatonSNN, TwoHeadedAdditionSNN
from lightning_cvxsnn.tasks.images import SequentialMNISTDataModule
from lightning_cvxsnn.tasks.mackey_glass import MackeyGlassDataModule
from lightning_cvxsnn.tasks.parallel import ParallelSNN
from lightning_cvxsnn.tasks.stack import LitSNN, RegressionSNN
from lightning_cvxsnn.tasks.xor import XORDataModule
from lightning_cvxsnn.training.callback import ConvexReconstruction
from lightning_cvxsnn.witnesses.kinds import calibrate
from lightning_cvxsnn.witnesses.margin import MarginReport, widen_margins
from lightning_cvxsnn.witnesses.pruning import prune

__all__ = [
    "AdditionDataModule",
    "AdditionSNN",
    "AutomatonDataModule",
    "AutomatonSNN",
    "ConvexReconstruction",
    "DeadUnits",
    "Diagnosis",
    "DigitsDataModule",
    "DistinctPatterns",
    "DualityGap",
    "FiringRate",
    "LayerHealth",
    "LitSNN",
    "MackeyGlassDataModule",
    "MarginReport",
    "ParallelSNN",
    "RegressionSNN",
    "SequenceAccuracy",
    "SequentialMNISTDataModule",
    "SolveReport",
    "TokenAccuracy",
    "TwoHeadedAdditionSNN",
    "XORDataModule",
    "calibrate",
    "diagnose",
    "plots",
    "prune",
    "reconstruct",
    "spike_dictionary",
    "widen_margins",
]
__version__ = "0.1.0"
