"""Programmes from L1 to ridge over a dictionary of patterns, solved to a certified duality gap.

This package knows nothing of spikes or of Lightning: a dictionary is a matrix.
"""

from lightning_cvxsnn.convex.certify import Certificate
from lightning_cvxsnn.convex.losses import Loss
from lightning_cvxsnn.convex.matrix import DictionaryLike, PackedDictionary
from lightning_cvxsnn.convex.programme import Programme
from lightning_cvxsnn.convex.rho_path import Path
from lightning_cvxsnn.convex.solution import Limits, Point, Solution
from lightning_cvxsnn.convex.solver import certificate, mean_loss, path, rho_max, solve

__all__ = [
    "Certificate",
    "DictionaryLike",
    "Limits",
    "Loss",
    "PackedDictionary",
    "Path",
    "Point",
    "Programme",
    "Solution",
    "certificate",
    "mean_loss",
    "path",
    "rho_max",
    "solve",
]
