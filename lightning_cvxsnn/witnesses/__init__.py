"""Witnesses, the hidden weights behind the columns: calibrated, drawn, priced, enumerated, widened, pruned."""

from lightning_cvxsnn.witnesses.attainable import AttainableTrains, attainable_trains
from lightning_cvxsnn.witnesses.calibration import CalibratedLayer, calibrate_layers
from lightning_cvxsnn.witnesses.optimum import NetworkOptimum, network_optimum

__all__ = [
    "AttainableTrains",
    "CalibratedLayer",
    "NetworkOptimum",
    "attainable_trains",
    "calibrate_layers",
    "network_optimum",
]
