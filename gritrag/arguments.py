"""Arguments: numbers that callers give, whichever library they are from."""

from operator import index
from typing import Any

__all__ = ["real", "whole"]


def whole(name: str, value: Any) -> int:
    """A whole number; NumPy's and torch's are some too, and True and False are none.

    Raises:
        ValueError: it is none.
    """
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a whole number, not {value!r:.80}")


def real(name: str, value: Any) -> float:
    """A number as a float, of whatever kind; no text, even of digits.

    Raises:
        ValueError: it is none, or beyond float64.
    """
    try:
        if not isinstance(value, str | bytes | bytearray):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a number, not {value!r:.80}")
