"""An index as a field of a LangChain object: an open one, or the path of one.

A path is opened once for all that name it: a chat model recognises what a retriever has returned only if both hold the
same index.
"""

import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from pydantic import BeforeValidator

from gritrag.index.index import Index

__all__ = ["OpenIndex", "opened"]

_opened: WeakValueDictionary[str, Index] = WeakValueDictionary()
_opening = threading.Lock()


def opened(index: Any, mode: Literal["r", "rw"] = "r") -> Any:
    """An index as it was given; where it is a path, the index there, with the model that it was built with.

    It stays open while something holds it. Anything else is left to the caller to refuse.

    Args:
        index: an open index, or the path of one.
        mode: ``"rw"`` to write it too. One that is open to be written serves those who only read as well.

    Raises:
        ValueError: see `Index.open`.
    """
    if not isinstance(index, str | Path):
        return index
    path = os.path.realpath(index)
    with _opening:
        known = _opened.get(path)
        if known is None or known.closed or (mode == "rw" and not known.writable):
            known = _opened[path] = Index.open(index, mode=mode)
        return known


OpenIndex = Annotated[Index, BeforeValidator(opened)]
"""A field that takes an index or its path."""
