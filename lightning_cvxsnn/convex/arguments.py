"""Checks of the numbers and tensors that a programme is given."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["real_number", "real_tensor", "whole_number"]

_WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


def real_number(value: object, name: str) -> float:
    """The value as a float.

    Raises:
        TypeError: It is no real number.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    if isinstance(value, (str, bytes, Tensor)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {_what(value)}; expected a number. Convert it with float().")
    return float(value)


def whole_number(value: object, name: str) -> int:
    """The value as an int.

    Raises:
        TypeError: It is no integer.
    """
    whole = not isinstance(value, Tensor) or (value.numel() == 1 and value.dtype in _WHOLE)
    if isinstance(value, bool) or not hasattr(value, "__index__") or not whole:
        raise TypeError(f"{name} is {_what(value)}; expected an integer. Convert it with int().")
    return int(value)


def real_tensor(value: object, name: str) -> Tensor:
    """The value, detached.

    Raises:
        TypeError: It is no tensor, or a complex one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected a torch.Tensor. Convert it with torch.as_tensor."
        )
    if value.is_complex():
        raise TypeError(f"{name} is complex; expected real numbers. Pass its real part.")
    return value.detach()


def _what(value: object) -> str:
    return (
        repr(value)
        if isinstance(value, (str, bytes, float, complex, bool, type(None)))
        else f"a {type(value).__name__}"
    )
