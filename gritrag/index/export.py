"""An export: a consistent copy of an index in a new directory, usable at once, with nothing in it that was deleted."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.lock import WriterLock
from gritrag.index.storage.manifest import CATALOG, Manifest, check_replaceable, wipe
from gritrag.index.storage.states import StateStore
from gritrag.index.storage.vectors import VectorIndex
from gritrag.progress import StagesBar

__all__ = ["export"]

BATCH_FILES = 64


def export(manifest: Manifest, catalog: Catalog, files: StateStore, target: Path, show_progress_bar: bool) -> None:
    """Copy what one commit of `catalog` holds; a state that is damaged, or gone by then, is left out."""
    check_replaceable(target, overwrite=False)
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as at_end:
        lock = WriterLock(target)
        at_end.callback(lock.release)
        check_replaceable(target, overwrite=False)
        with ExitStack() as on_failure:
            on_failure.callback(wipe, target)
            with StagesBar(_sizes(manifest, catalog), show_progress_bar) as bar:
                _copy(manifest, catalog, files, target, bar)
            # two writers of one collection would undo each other's work
            replace(manifest, vectors_at=None).save(target)
            on_failure.pop_all()


def _sizes(manifest: Manifest, catalog: Catalog) -> dict[str, int]:
    states = 0 if manifest.states_at is not None else sum(row.bytes for row in catalog.states())
    vectors = 4 * manifest.dim * catalog.document_totals()[0]
    return {"catalog": catalog.nbytes(), "states": states, "vectors": vectors}


def _copy(manifest: Manifest, catalog: Catalog, files: StateStore, target: Path, bar: StagesBar) -> None:
    """Everything but the manifest."""
    bar.begin("catalog")
    catalog.copy(target / CATALOG)
    (target / "states").mkdir()
    with closing(Catalog(target / CATALOG, "rw")) as copy:
        if manifest.states_at is None:
            bar.begin("states")
            _copy_states(files, copy, StateStore(target), bar)
        with copy.transaction():
            copy.forget_garbage()  # who has put it removes it
        bar.begin("vectors")
        VectorIndex(target, copy, manifest.dim).save(rebuild=True, on_read=bar.advance)


def _copy_states(files: StateStore, copy: Catalog, into: StateStore, bar: StagesBar) -> None:
    rows = copy.states()
    lost: list[str] = []
    for start in range(0, len(rows), BATCH_FILES):
        batch = rows[start : start + BATCH_FILES]
        lost += into.adopt(files, batch)
        bar.advance(sum(row.bytes for row in batch))
    with copy.transaction():
        copy.forget_states(lost)
