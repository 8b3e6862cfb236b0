"""Origins: which file each document of an index came from."""

from gritrag.documents.ids import Ids
from gritrag.documents.sources import FILE, ROOT
from gritrag.index.contents import Contents
from gritrag.records import Document

__all__ = ["ids_of", "origin", "origins"]


def origin(document: Document) -> tuple[str, str]:
    """Root and name of the file that it is from; empty for a document that came from no file."""
    return _origin(document.metadata.get(ROOT), document.metadata.get(FILE))


def origins(index: Contents) -> dict[str, tuple[str, str]]:
    """Root and file of each document that came from a file, by its id."""
    roots, files = index.field(ROOT), index.field(FILE)
    both = ((id, _origin(root, files.get(id))) for id, root in roots.items())
    return {id: place for id, place in both if any(place)}


def ids_of(index: Contents) -> Ids:
    """The ids that documents of an index have."""
    known = origins(index)
    return Ids({id: known.get(id, ("", ""))[0] for id in index})


def _origin(root: object, file: object) -> tuple[str, str]:
    """Documents from elsewhere may hold anything there."""
    return (root, file) if isinstance(root, str) and isinstance(file, str) else ("", "")
