"""Keys and values as tensors to write, in full or in fewer bits: what an index stores and what training imitates.

One small class per file.
"""

from functools import cache
from pathlib import Path

from gritrag.codecs.base import Codec, Packed, Region
from gritrag.codecs.casts import BFloat16, Cast, Float32
from gritrag.codecs.int4 import Int4
from gritrag.codecs.int8 import Int8
from gritrag.codecs.transform import Transform
from gritrag.config import DEFAULT_MODEL

__all__ = ["CODECS", "Cast", "Codec", "Packed", "Region", "get_codec"]

CALIBRATION = Path(__file__).parents[1] / "checkpoints" / DEFAULT_MODEL / "states.safetensors"
"""Of the default checkpoint; `transform:FILE` names another one."""

PLAIN: dict[str, Codec] = {codec.name: codec for codec in (Float32(), BFloat16(), Int8(), Int4())}
CODECS = (*PLAIN, Transform.name)
"""Names of the codecs; ``transform`` takes a calibration of one's own as ``transform:FILE``."""


@cache
def get_codec(name: str) -> Codec:
    """The codec of that name; ``transform`` can be followed by the file of a calibration, as in ``transform:FILE``.

    Raises:
        ValueError: there is none of that name, or no calibration in the file.
    """
    if name in PLAIN:
        return PLAIN[name]
    kind, _, file = name.partition(":")
    if kind == Transform.name:
        return Transform.load(Path(file) if file else CALIBRATION)
    raise ValueError(f"unknown codec {name!r}; there are: {', '.join(CODECS)}, or 'none' for vectors without states")
