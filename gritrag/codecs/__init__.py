"""Keys and values in fewer bits: what codecs store and what training imitates. One small class per file."""

from functools import cache
from pathlib import Path

from gritrag.codecs.base import Packed, Quantiser, Region
from gritrag.codecs.int4 import Int4
from gritrag.codecs.int8 import Int8
from gritrag.codecs.transform import Transform
from gritrag.config import DEFAULT_MODEL

__all__ = ["QUANTISERS", "Packed", "Quantiser", "Region", "get_quantiser"]

CALIBRATION = Path(__file__).parents[1] / "checkpoints" / DEFAULT_MODEL / "states.safetensors"
"""Of the default checkpoint; `transform:FILE` names another one."""

QUANTISERS = ("int8", "int4", "transform")


@cache
def get_quantiser(name: str) -> Quantiser:
    """The quantiser of that name; ``transform`` can be followed by the file of a calibration, as in ``transform:FILE``.

    Raises:
        ValueError: there is none of that name, or no calibration in the file.
    """
    kind, _, file = name.partition(":")
    if name in (Int8.name, Int4.name):
        return Int8() if name == Int8.name else Int4()
    if kind == Transform.name:
        return Transform.load(Path(file) if file else CALIBRATION)
    raise ValueError(f"unknown quantiser {name!r}; there are: {', '.join(QUANTISERS)}")
