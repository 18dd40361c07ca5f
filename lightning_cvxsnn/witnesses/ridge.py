"""Ridge readouts, each row answered by a fit to all others: what spikes tell of rows that were not seen."""

import torch
from torch import Tensor

_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # times the largest eigenvalue
_TINY = 1e-12
_LEAST = 1e-5  # of what leverages leave of 1: rounding of float32


def left_out(columns: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """What the best ridge readout answers on rows, each left out of the fit in turn.

    Leaving a row out divides its residual by one minus its leverage (Allen's PRESS), so one eigendecomposition does for
    all rows and penalties. The penalty is that of the least squared error.

    Args:
        columns: ``[n, P]``.
        values: ``[n, C]``.
        weights: ``[n]``, of the rows.

    Returns:
        ``[n, C]``; of rows of weight 0, which nobody asks about, their own values.

    Example:
        >>> x = torch.arange(8.0)[:, None]
        >>> bool((left_out(x, 3 * x + 1, torch.ones(8)) - (3 * x + 1)).abs().max() < 1)
        True
    """
    share = weights / weights.sum()
    root = share.sqrt()[:, None]
    d, y = ((part - share @ part) * root for part in (columns, values))
    tall = d.shape[0] > d.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(d.T @ d if tall else d @ d.T)
    largest = float(eigenvalues.max().clamp_min(_TINY))
    eigenvalues = eigenvalues.clamp_min(0.0)
    if tall:
        kept = eigenvalues > 1e-6 * largest
        eigenvalues, vectors = eigenvalues[kept], d @ vectors[:, kept] / eigenvalues[kept].sqrt()
    projected, squares = vectors.T @ y, vectors.square()

    def residual(penalty: float) -> Tensor:
        shrunk = eigenvalues / (eigenvalues + penalty * largest)
        leverage = squares @ shrunk + share
        return (y - vectors @ (shrunk[:, None] * projected)) / (1 - leverage).clamp_min(_LEAST)[:, None]

    best = min(map(residual, _PENALTIES), key=lambda r: float(r.square().sum()))
    return values - best / root.clamp_min(_TINY)


def left_out_error(columns: Tensor, values: Tensor, weights: Tensor) -> float:
    """Share of the values' variance that the best ridge readout leaves on rows, each left out of the fit in turn.

    Args:
        columns: ``[n, P]``.
        values: ``[n, C]``.
        weights: ``[n]``, of the rows.

    Example:
        >>> x = torch.arange(8.0)[:, None]
        >>> left_out_error(x, 3 * x + 1, torch.ones(8)) < 0.02, left_out_error(0 * x, 3 * x + 1, torch.ones(8)) > 1
        (True, True)
    """
    return share_left(left_out(columns, values, weights), values, weights)


def share_left(answers: Tensor, values: Tensor, weights: Tensor) -> float:
    """Share of the variance of ``values`` that ``answers`` leave, both ``[n, C]``, rows weighed by ``weights``."""
    share = weights / weights.sum()
    variance = share @ (values - share @ values).square()
    return float((share @ (values - answers).square()).sum()) / max(float(variance.sum()), _TINY)
