"""Errors from inside the code of others, which are told by name rather than passed on."""

INNER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the code of an architecture may raise where it is asked for what it was not written for."""


def told(error: BaseException) -> str:
    """Kind of an error, and the first line that it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
