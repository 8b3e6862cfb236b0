"""A check-up of an index: every byte that can rot is read and compared with what was written."""

from typing import NamedTuple

from gritrag.index.catalog import Catalog
from gritrag.index.states import StateStore, relative_path
from gritrag.index.vectors import VectorIndex

__all__ = ["Checkup", "check_index", "orphans"]


class Checkup(NamedTuple):
    """What `Index.verify` found, in words, and which of it has been repaired."""

    problems: list[str]
    repaired: list[str]


def check_index(catalog: Catalog, files: StateStore, vectors: VectorIndex, writable: bool, repair: bool) -> Checkup:
    """Check SQLite, every document's row, every state file and the FAISS file; the full-text index if `writable`."""
    lasting = [f"catalog: {line}" for (line,) in catalog.execute("PRAGMA integrity_check") if line != "ok"]
    lasting += [f"document {id!r} is damaged: delete it and add it again" for id in catalog.damaged_ids()]
    bad = {row.key: why for row in catalog.states() if (why := files.problem(row)) is not None}
    stray = orphans(catalog, files)
    words = catalog.words_problem() if writable else None
    lost = vectors.problem()
    problems = [f"state file {relative_path(key)}: {why}" for key, why in bad.items()]
    problems += [f"{path} belongs to no document" for path in stray]
    problems += [problem for problem in (words, lost) if problem is not None]
    if not repair:
        return Checkup(lasting + problems, [])
    with catalog.transaction():
        catalog.forget_states(bad)
    files.remove([*(relative_path(key) for key in bad), *stray])
    if words is not None:
        catalog.rebuild_words()
    if lost is not None:
        vectors.save(rebuild=True)
    return Checkup(lasting + problems, problems)


def orphans(catalog: Catalog, files: StateStore) -> list[str]:
    """Files below `states/` that the catalog does not know: left by a writer that died before its commit."""
    known = {relative_path(row.key) for row in catalog.states()}
    return [path for path in files.files() if path not in known]
