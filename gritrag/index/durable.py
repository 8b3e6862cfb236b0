"""A durable file: whole or absent, whatever dies in between. Every file of an index but SQLite's is written so."""

import os
from collections.abc import Iterable
from pathlib import Path


def replace_files(files: Iterable[tuple[Path, bytes | memoryview]]) -> None:
    """Write each `data` to a temporary neighbour of its `path`, fsync them all, then rename them all.

    Together, because the first fsync of a batch pays for most of the others. The names themselves are durable after
    `sync` on their folders.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, data in files:
            temporary[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary[path].write_bytes(data)
        for written in temporary.values():
            sync(written)
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
