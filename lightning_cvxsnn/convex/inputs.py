"""What the convex programmes accept, checked once: dictionaries, targets, weights and rho."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_cvxsnn.convex.losses import Loss, check_weights, encode_targets
from lightning_cvxsnn.convex.matrix import DictionaryLike, Entries, Matrix, PackedDictionary

__all__ = ["Dictionary", "check_dictionary", "check_problem", "check_rho"]

Dictionary = Tensor | DictionaryLike

_DENSE_ENTRIES = 2**23  # dictionaries up to this size (64 MiB in float64) are converted once and for all


def check_dictionary(dictionary: Dictionary) -> Matrix:
    """The dictionary as a matrix on its own device: float64 if it is small, packed as it comes if it is not.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``. One that is a
            ``PackedDictionary`` is not written out if it is large.

    Raises:
        ValueError: Not a matrix, complex, no rows, no columns, NaN or infinity.
        TypeError: Neither a tensor nor an object with ``to_dense``.
    """
    source: PackedDictionary
    if isinstance(dictionary, Tensor):
        source = Entries(dictionary.detach().to_dense())
    elif isinstance(dictionary, PackedDictionary):
        source = dictionary
    elif isinstance(dictionary, DictionaryLike):
        source = Entries(dictionary.to_dense(torch.float64))
    else:
        raise TypeError(
            f"dictionary is a {type(dictionary).__name__}; expected a torch.Tensor [n, P] or an object with "
            "to_dense(dtype). Convert it with torch.as_tensor."
        )
    shape = tuple(source.shape)
    if len(shape) != 2:
        raise ValueError(
            f"dictionary has shape {shape}; expected two dimensions [n, P]. Flatten time and channel dimensions first."
        )
    if isinstance(source, Entries) and source.values.is_complex():
        raise ValueError("dictionary is complex; expected bool, integer or float entries. Pass its real part.")
    if shape[0] == 0:
        raise ValueError("dictionary has no rows (n = 0); expected at least one training row. Check the data loader.")
    if shape[1] == 0:
        raise ValueError("dictionary has no columns (P = 0); expected at least one unit. Check the readout's input.")
    if isinstance(source, Entries):
        source = Entries(source.values.contiguous())
    if shape[0] * shape[1] <= _DENSE_ENTRIES:
        source = Entries(source.block(slice(0, shape[0])).to(torch.float64), source.scale)
    matrix = Matrix(source)
    if matrix.dtype.is_floating_point or not math.isfinite(source.scale):
        _check_finite(matrix)
    return matrix


def _check_finite(matrix: Matrix) -> None:
    total = sum(block.sum() for _, block in matrix.blocks())
    if math.isfinite(float(total) * matrix.source.scale):
        return  # NaN and infinity stay in a sum
    count, first = 0, (0, 0)
    for part, block in matrix.blocks():
        bad = ~torch.isfinite(block * matrix.source.scale)
        found = int(bad.sum())
        if found and not count:
            row, column = (int(i) for i in bad.nonzero()[0])
            first = part.start + row, column
        count += found
    if count:
        raise ValueError(
            f"dictionary holds {count} NaN or infinite entries, the first at row {first[0]}, column {first[1]}; "
            "expected finite numbers. Check the network's input and its membrane potentials."
        )


def check_rho(rho: float) -> float:
    """Return ``rho`` as a float, refusing all but positive finite numbers."""
    value = float(rho)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"rho is {value}; expected a positive finite number, such as beta / sqrt(P) with beta > 0.")
    return value


def check_problem(
    dictionary: Dictionary, targets: Tensor, loss: Loss, num_outputs: int | None, sample_weight: Tensor | None
) -> tuple[Matrix, Tensor, Tensor]:
    """Checked ``(D [n, P], Y [n, C], s [n])`` on the dictionary's device, the last two float64."""
    matrix = check_dictionary(dictionary)
    encoded = encode_targets(targets, loss=loss, num_outputs=num_outputs).to(matrix.device)
    if encoded.shape[0] != matrix.shape[0]:
        raise ValueError(
            f"targets has {encoded.shape[0]} rows and dictionary has {matrix.shape[0]}; expected the same number. "
            "Pair every dictionary row with its target."
        )
    return matrix, encoded, check_weights(sample_weight, matrix.shape[0], matrix.device)
