"""What the convex programmes accept, checked once: dictionaries, targets, weights and rho."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cvxsnn.convex.arguments import real_number, real_tensor
from lightning_cvxsnn.convex.losses import LossFunction
from lightning_cvxsnn.convex.matrix import Blocks, DictionaryLike, Entries, Matrix, PackedDictionary
from lightning_cvxsnn.convex.solution import Point

__all__ = [
    "Data", "Dictionary", "check_data", "check_dictionary", "check_held_out", "check_point", "check_ratio",
    "check_rho", "check_start", "check_weights",
]  # fmt: skip

Dictionary = Tensor | DictionaryLike | Matrix


@dataclass(frozen=True, eq=False)
class Data:
    """Checked rows of a programme, on the dictionary's device.

    Attributes:
        matrix: ``[n, P]``.
        encoded: ``[n, C]`` float64 encoded targets.
        weight: ``[n]`` float64 sample weights.
    """

    matrix: Matrix
    encoded: Tensor
    weight: Tensor

    def subset(self, rows: Tensor) -> Data:
        """Some of the rows, a bool mask ``[n]`` or int64 positions."""
        return Data(self.matrix[rows], self.encoded[rows], self.weight[rows])


def check_dictionary(dictionary: Dictionary, blocks: Blocks | None = None) -> Matrix:
    """The dictionary as a matrix on its own device: float64 if it is small, packed as it comes if it is not.

    Args:
        dictionary: ``[n, P]`` tensor (bool, integer or float), or an object with ``to_dense(dtype)``. One that is a
            ``PackedDictionary`` is not written out if it is large. A ``Matrix`` is one that has been checked.
        blocks: How many entries are converted at a time.

    Raises:
        ValueError: Not a matrix, complex, no rows, no columns, NaN or infinity.
        TypeError: Neither a tensor nor an object with ``to_dense``.
    """
    if isinstance(dictionary, Matrix):
        return dictionary
    source: PackedDictionary
    if isinstance(dictionary, Tensor):
        source = Entries(dictionary.detach().to_dense())
    elif isinstance(dictionary, PackedDictionary):
        source = dictionary
    elif isinstance(dictionary, DictionaryLike):
        source = Entries(dictionary.to_dense(torch.float64).detach())
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
    blocks = blocks or Blocks()
    if shape[0] * shape[1] <= blocks.whole:
        source = Entries(source.block(slice(0, shape[0])).to(torch.float64), source.scale)
    matrix = Matrix(source, blocks=blocks)
    if matrix.dtype.is_floating_point or not math.isfinite(source.scale):
        _check_finite(matrix)
    return matrix


def _check_finite(matrix: Matrix) -> None:
    size = max(float(torch.linalg.vector_norm(block)) for _, block in matrix.blocks()) * abs(matrix.source.scale)
    if math.isfinite(size * size):
        return  # NaN and infinity stay in a norm
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
    raise ValueError(
        "dictionary holds entries whose squares overflow float64; expected sizes below about 1e150. Divide it by a "
        "constant, and divide rho by it."
    )


def check_rho(rho: float) -> float:
    """Return ``rho`` as a float, refusing all but positive finite numbers."""
    value = real_number(rho, "rho")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"rho is {value}; expected a positive finite number, such as beta / sqrt(P) with beta > 0.")
    return value


def check_ratio(l1_ratio: float) -> float:
    """Return ``l1_ratio`` as a float, refusing all but numbers in [0, 1]."""
    value = real_number(l1_ratio, "l1_ratio")
    if not 0 <= value <= 1:
        raise ValueError(f"l1_ratio is {value}; expected a number in [0, 1]: 1 for L1, 0 for ridge.")
    return value


def check_weights(sample_weight: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Sample weights as float64 ``[n]``; ones when ``None``. Never renormalised.

    Raises:
        ValueError: Wrong shape, NaN, infinite or negative entries.
    """
    if sample_weight is None:
        return torch.ones(rows, dtype=torch.float64, device=device)
    weight = real_tensor(sample_weight, "sample_weight").to(device)
    if tuple(weight.shape) != (rows,):
        raise ValueError(
            f"sample_weight has shape {tuple(weight.shape)}; expected ({rows},), one weight for each dictionary row."
        )
    weight = weight.to(torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("sample_weight holds NaN or infinite entries; expected finite numbers >= 0.")
    if bool((weight < 0).any()):
        raise ValueError(
            f"sample_weight has a negative entry ({float(weight.min())}); expected numbers >= 0. Use 0 to drop a row."
        )
    return weight


def check_data(
    dictionary: Dictionary, targets: Tensor, loss: LossFunction, num_outputs: int | None, sample_weight: Tensor | None
) -> Data:
    """The rows of a programme, checked."""
    matrix = check_dictionary(dictionary)
    encoded = loss.encode(targets, num_outputs).to(matrix.device)
    if encoded.shape[0] != matrix.shape[0]:
        raise ValueError(
            f"targets has {encoded.shape[0]} rows and dictionary has {matrix.shape[0]}; expected the same number. "
            "Pair every dictionary row with its target."
        )
    weight = check_weights(sample_weight, matrix.shape[0], matrix.device)
    if loss.follows_targets:  # what a masked row holds instead of a target may be anything
        encoded = torch.where(weight[:, None] > 0, encoded, 0.0)
    return Data(matrix, encoded, weight)


def check_held_out(held_out: Tensor, data: Data) -> Tensor:
    """The mask of the rows that score, on the matrix's device; refuses one that leaves nothing to fit or to score."""
    rows = data.matrix.shape[0]
    held_out = real_tensor(held_out, "held_out").to(data.matrix.device)
    if held_out.dtype != torch.bool or tuple(held_out.shape) != (rows,):
        raise ValueError(
            f"held_out has dtype {held_out.dtype} and shape {tuple(held_out.shape)}; expected torch.bool ({rows},), "
            "one entry for each dictionary row."
        )
    if bool(held_out.all()) or not bool(held_out.any()):
        raise ValueError(
            f"held_out marks {int(held_out.sum())} of {rows} rows; expected at least one row held out and one fitted."
        )
    return held_out


def check_point(data: Data, coef: Tensor, intercept: Tensor | None, dual_point: Tensor | None) -> Point:
    """A point to certify, as float64 on the matrix's device."""
    (rows, columns), outputs, device = data.matrix.shape, data.encoded.shape[1], data.matrix.device
    coef = _finite(coef, "coef", (columns, outputs), device)
    if intercept is None:
        intercept = torch.zeros(outputs, dtype=torch.float64, device=device)
    intercept = _finite(intercept, "intercept", (outputs,), device)
    if dual_point is not None:
        dual_point = _finite(dual_point, "dual_point", (rows, outputs), device)
    return Point(coef, intercept, dual_point)


def check_start(data: Data, init: Point) -> tuple[Tensor, Tensor, Tensor | None]:
    """A start as float64 on the matrix's device: coefficients of at most its columns, intercept, and a dual point.

    The dual point is ``None`` where it is of other rows.

    Raises:
        TypeError: Not a point, or complex.
        ValueError: Shapes that do not fit, NaN or infinity.
    """
    columns, outputs = data.matrix.shape[1], data.encoded.shape[1]
    if not all(isinstance(getattr(init, name, None), Tensor) for name in ("coef", "intercept")):
        raise TypeError(
            f"init is a {type(init).__name__} without tensors coef and intercept; expected a Point, such as the "
            "point of a solution, or None."
        )
    coef, intercept = real_tensor(init.coef, "coef of init"), real_tensor(init.intercept, "intercept of init")
    dual_point = None if init.dual_point is None else real_tensor(init.dual_point, "dual_point of init")
    shape = tuple(coef.shape)
    if len(shape) != 2 or shape[0] > columns or shape[1] != outputs or tuple(intercept.shape) != (outputs,):
        raise ValueError(
            f"init has coef {shape} and intercept {tuple(intercept.shape)}; expected at most {columns} rows "
            f"and exactly {outputs} outputs. Pass the point of a solution of the same programme, or init=None."
        )
    if dual_point is not None and dual_point.shape != data.encoded.shape:
        dual_point = None
    if not all(bool(torch.isfinite(t).all()) for t in (coef, intercept, dual_point) if t is not None):
        raise ValueError("init holds NaN or infinite entries; expected finite numbers. Pass init=None.")
    coef, intercept = coef.to(data.weight), intercept.to(data.weight)
    return coef, intercept, None if dual_point is None else dual_point.to(data.weight)


def _finite(tensor: Tensor, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    tensor = real_tensor(tensor, name)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}.")
    tensor = tensor.to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinite entries; expected finite numbers.")
    return tensor
