"""L1 programmes over a dictionary of patterns, solved to a certified duality gap.

This package knows nothing of spikes or of Lightning: a dictionary is a matrix.
"""

from lightning_cvxsnn.convex.certify import Certificate, certificate
from lightning_cvxsnn.convex.losses import Loss, mean_loss
from lightning_cvxsnn.convex.matrix import DictionaryLike, PackedDictionary
from lightning_cvxsnn.convex.rho_path import Path, path
from lightning_cvxsnn.convex.sharded import certificate_sharded, solve_sharded
from lightning_cvxsnn.convex.solution import Solution
from lightning_cvxsnn.convex.solver import rho_max, solve

__all__ = [
    "Certificate",
    "DictionaryLike",
    "Loss",
    "PackedDictionary",
    "Path",
    "Solution",
    "certificate",
    "certificate_sharded",
    "mean_loss",
    "path",
    "rho_max",
    "solve",
    "solve_sharded",
]
