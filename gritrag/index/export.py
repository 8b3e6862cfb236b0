"""An export: a consistent copy of an index in a new directory, usable at once, with nothing in it that was deleted."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.lock import WriterLock
from gritrag.index.storage.manifest import CATALOG, Manifest, check_replaceable, wipe
from gritrag.index.storage.states import StateStore
from gritrag.index.storage.vectors import VectorIndex

__all__ = ["export"]

BATCH_FILES = 64


def export(manifest: Manifest, catalog: Catalog, files: StateStore, target: Path) -> None:
    """Copy what one commit of `catalog` holds; a state that is damaged, or gone by then, is left out."""
    check_replaceable(target, overwrite=False)
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as closing:
        lock = WriterLock(target)
        closing.callback(lock.release)
        check_replaceable(target, overwrite=False)
        with ExitStack() as on_failure:
            on_failure.callback(wipe, target)
            catalog.copy(target / CATALOG)
            (target / "states").mkdir()
            copy = Catalog(target / CATALOG, "rw")
            on_failure.callback(copy.close)
            if manifest.states_at is None:
                _copy_states(files, copy, StateStore(target))
            VectorIndex(target, copy, manifest.dim).save(rebuild=True)
            copy.close()
            replace(manifest, vectors_at=None).save(
                target
            )  # two writers of one collection would undo each other's work
            on_failure.pop_all()


def _copy_states(files: StateStore, copy: Catalog, into: StateStore) -> None:
    rows = copy.states()
    lost: list[str] = []
    for start in range(0, len(rows), BATCH_FILES):
        lost += into.adopt(files, rows[start : start + BATCH_FILES])
    with copy.transaction():
        copy.forget_states(lost)
