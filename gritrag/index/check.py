"""A check-up of an index: every byte that can rot is read and compared with what was written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.durable import is_folder, remove_files
from gritrag.index.storage.entries import StateRow
from gritrag.index.storage.garbage import remove_garbage
from gritrag.index.storage.manifest import Manifest, begun_files
from gritrag.index.storage.states import StateStore, relative_path
from gritrag.index.storage.vectors import VectorIndex
from gritrag.progress import StagesBar

__all__ = ["Checkup", "check_index", "collect", "shrink", "statistics"]


class Checkup(NamedTuple):
    """What `Index.verify` found, in words, and which of it has been repaired."""

    problems: list[str]
    repaired: list[str]


def check_index(
    catalog: Catalog, files: StateStore, vectors: VectorIndex, writable: bool, repair: bool, show_progress_bar: bool
) -> Checkup:
    """Check SQLite's pages, every document's row, every state file and the FAISS file; the words too if `writable`."""
    size, rows = catalog.nbytes(), catalog.states()
    sizes = {"pages": size, "documents": size, "states": sum(row.bytes for row in rows), "vectors": vectors.nbytes()}
    with StagesBar(sizes, show_progress_bar) as bar:
        bar.begin("pages")
        pages = catalog.problem()
        bar.begin("documents")
        damaged = catalog.damaged_ids(bar.advance)
        bar.begin("states")
        bad = _bad_states(files, rows, bar)
        bar.begin("vectors")
        lost = vectors.problem()
    lasting = [] if pages is None else [f"catalog: {pages}"]
    lasting += [f"document {id!r} is damaged: delete it and add it again" for id in damaged]
    stray = _strays(catalog, files, vectors)
    folders = [path for path in stray if is_folder(catalog.path.parent / path)]
    lasting += [f"{path} is a folder that no index has: look at it and remove it" for path in folders]
    words = catalog.words_problem() if writable else None
    problems = [f"state file {relative_path(key)}: {why}" for key, why in bad.items()]
    problems += [f"{path} belongs to no document" for path in stray if path not in folders]
    problems += [problem for problem in (words, lost) if problem is not None]
    if not repair:
        return Checkup(lasting + problems, [])
    with catalog.transaction():
        catalog.forget_states(bad)
        if words is not None:
            catalog.rebuild_words()
    remove_garbage(catalog, files, bad)
    collect(catalog, files, vectors)
    if lost is not None:
        vectors.save(rebuild=True)
    return Checkup(lasting + problems, problems)


def collect(catalog: Catalog, files: StateStore, vectors: VectorIndex) -> None:
    """Remove files and links that the catalog does not know, as a writer leaves them that dies before its commit, or
    after it and before it has removed what was deleted. Folders stay: no index ever made one there."""
    remove_garbage(catalog, files)
    root = catalog.path.parent
    stray = [*_strays(catalog, files, vectors), *begun_files(root)]
    remove_files(root, stray)


def shrink(catalog: Catalog, files: StateStore, vectors: VectorIndex, show_progress_bar: bool) -> None:
    """Drop files that belong to no document, give the space of deleted rows back, and write the vectors file anew."""
    with StagesBar({"catalog": catalog.nbytes(), "vectors": vectors.nbytes_to_read()}, show_progress_bar) as bar:
        bar.begin("catalog")
        collect(catalog, files, vectors)
        catalog.shrink()
        bar.begin("vectors")
        vectors.save(rebuild=True, on_read=bar.advance)


def statistics(catalog: Catalog, vectors: VectorIndex, manifest: Manifest) -> dict[str, Any]:
    """Counts, bytes by kind, bytes of state per token in all and by codec, and what the index was built with."""
    documents, tokens = catalog.document_totals()
    codecs = {
        codec: {"states": count, "bytes": size, "bytes_per_token": size / tokens}
        for codec, (count, size, tokens) in catalog.state_totals().items()
    }
    totals = list(zip(*catalog.state_totals().values(), strict=True)) or [(0,), (0,), (0,)]
    states, state_bytes, state_tokens = (sum(each) for each in totals)
    return {
        "documents": documents,
        "tokens": tokens,
        "states": states,
        "bytes": {
            "catalog": catalog.nbytes(),
            "vectors": vectors.nbytes(),
            "states": state_bytes,
        },
        "state_bytes_per_token": state_bytes / state_tokens if states else 0.0,
        "codecs": codecs,
        "codec": manifest.codec,
        "state_quota": manifest.state_quota,
        "dim": manifest.dim,
        "states_at": manifest.states_at,
        "vectors": vectors.figures(),
        "fingerprint": dict(manifest.fingerprint.parts),
    }


def _bad_states(files: StateStore, rows: Sequence[StateRow], bar: StagesBar) -> dict[str, str]:
    """What is wrong with state files, by their keys."""
    bad = {}
    for row in rows:
        if (why := files.problem(row)) is not None:
            bad[row.key] = why
        bar.advance(row.bytes)
    return bad


def _strays(catalog: Catalog, files: StateStore, vectors: VectorIndex) -> list[str]:
    return files.strays(row.key for row in catalog.states()) + vectors.strays()
