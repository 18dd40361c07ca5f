"""How far to go along a step: to where a convex objective is flat enough.

That a step descends says little. A full one may end far up the other side, and early steps of a saturated loss end
halfway down: both cost whole iterations, an evaluation of the slope costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["flat_length"]

_FLAT = 0.2  # share of the first slope that may be left
_LOOKS = 6
_LONGEST = 4.0
_INSIDE = 0.1  # share of an interval that stays between a new length and its ends


def flat_length(steepness: Callable[[float], float], first: float) -> float:
    """A length at which a convex function is flat, for its size: a full step if that is flat already.

    Args:
        steepness: The derivative at a length; it does not fall.
        first: The derivative at 0; where rounding error has made it no descent, a full step is left to be judged.
    """
    if not first < 0:
        return 1.0
    low, high = (0.0, first), (0.0, 0.0)
    length = 1.0
    for _ in range(_LOOKS):
        slope = steepness(length)
        if abs(slope) <= _FLAT * abs(first) or (slope < 0 and length >= _LONGEST):
            break
        low, high = ((length, slope), high) if slope < 0 else (low, (length, slope))
        if high[0] == 0:
            length *= 2
            continue
        width = high[0] - low[0]
        crossing = low[0] - low[1] * width / (high[1] - low[1])
        length = min(max(crossing, low[0] + _INSIDE * width), high[0] - _INSIDE * width)
    return length
