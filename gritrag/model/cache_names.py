"""The name by which a forward of transformers takes a cache."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import lru_cache
from inspect import signature
from typing import Any

from torch import nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Of the argument by which forwards of transformers take what they keep of a text, and by which they hand it out: the
others were its names before 5.24, and are those of models whose code comes with their weights."""


def given_cache(module: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """A cache as the argument that the forward of a model takes; the name depends on the model and on the release.

    An argument by another name is not refused: some models let it vanish, and read as if nothing had been read before.
    """
    return {cache_name(module): cache}


def cache_name(module: nn.Module) -> str:
    """The one of `CACHE_NAMES` that the forward of a model takes."""
    return _taken(type(module).forward)


@lru_cache
def _taken(forward: Callable[..., Any]) -> str:
    return _first(signature(forward).parameters) or OF_THIS_RELEASE


def _first(names: Iterable[str]) -> str | None:
    return next((name for name in CACHE_NAMES if name in names), None)


OF_THIS_RELEASE = _first([field.name for field in fields(BaseModelOutputWithPast)]) or CACHE_NAMES[0]
"""What a forward is given that hands on whatever it is given, as those around the decoders of BART's kind do."""
