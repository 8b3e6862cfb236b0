"""Garbage: files of states that the catalog has forgotten.

In the directory of an index whoever writes next finds what a writer has left that died. On object storage nobody looks,
as another index may have put what this one does not know; so the catalog notes there, in the commit that forgets a
state, that its object has to go, until it has gone.
"""

from collections.abc import Iterable

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.states import StateStore

__all__ = ["remove_garbage"]


def remove_garbage(catalog: Catalog, files: StateStore, keys: Iterable[str] = ()) -> None:
    """Delete the files of these states and of those that are still noted, but for what has been stored anew since.

    Raises:
        OSError: object storage cannot be reached; what is left is noted.
    """
    noted = catalog.garbage()
    files.remove([key for key in dict.fromkeys([*keys, *noted]) if catalog.state(key) is None])
    if noted:
        with catalog.transaction():
            catalog.forget_garbage()
