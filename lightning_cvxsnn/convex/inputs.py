"""What the convex programmes accept, checked once: dictionaries, targets, weights and rho."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_cvxsnn.convex.losses import Loss, check_weights, encode_targets

__all__ = ["Dictionary", "DictionaryLike", "check_problem", "check_rho", "dense"]


@runtime_checkable
class DictionaryLike(Protocol):
    """Anything that can write itself out as a dense matrix, such as packed spike counts."""

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as a dense ``[n, P]`` tensor of ``dtype``."""
        ...


Dictionary = Tensor | DictionaryLike


def dense(dictionary: Dictionary) -> Tensor:
    """The dictionary as a float64 ``[n, P]`` tensor on its own device.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``.

    Raises:
        ValueError: Not a matrix, complex, no rows, no columns, NaN or infinity.
        TypeError: Neither a tensor nor an object with ``to_dense``.
    """
    if isinstance(dictionary, Tensor):
        matrix = dictionary.detach().to_dense()
    elif isinstance(dictionary, DictionaryLike):
        matrix = dictionary.to_dense(torch.float64)
    else:
        raise TypeError(
            f"dictionary is a {type(dictionary).__name__}; expected a torch.Tensor [n, P] or an object with "
            "to_dense(dtype). Convert it with torch.as_tensor."
        )
    if matrix.ndim != 2:
        raise ValueError(
            f"dictionary has shape {tuple(matrix.shape)}; expected two dimensions [n, P]. Flatten time and channel "
            "dimensions first."
        )
    if matrix.is_complex():
        raise ValueError("dictionary is complex; expected bool, integer or float entries. Pass its real part.")
    if matrix.shape[0] == 0:
        raise ValueError("dictionary has no rows (n = 0); expected at least one training row. Check the data loader.")
    if matrix.shape[1] == 0:
        raise ValueError("dictionary has no columns (P = 0); expected at least one unit. Check the readout's input.")
    matrix = matrix.to(torch.float64)
    bad = ~torch.isfinite(matrix)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"dictionary holds {int(bad.sum())} NaN or infinite entries, the first at row {row}, column {column}; "
            "expected finite numbers. Check the network's input and its membrane potentials."
        )
    return matrix


def check_rho(rho: float) -> float:
    """Return ``rho`` as a float, refusing all but positive finite numbers."""
    value = float(rho)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"rho is {value}; expected a positive finite number, such as beta / sqrt(P) with beta > 0.")
    return value


def check_problem(
    dictionary: Dictionary, targets: Tensor, loss: Loss, num_outputs: int | None, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked float64 copies or views ``(D [n, P], Y [n, C], s [n])`` on the dictionary's device."""
    matrix = dense(dictionary)
    encoded = encode_targets(targets, loss=loss, num_outputs=num_outputs).to(matrix.device)
    if encoded.shape[0] != matrix.shape[0]:
        raise ValueError(
            f"targets has {encoded.shape[0]} rows and dictionary has {matrix.shape[0]}; expected the same number. "
            "Pair every dictionary row with its target."
        )
    return matrix, encoded, check_weights(sample_weight, matrix.shape[0], matrix.device)
