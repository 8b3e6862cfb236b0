"""A durable file: whole or absent, whatever dies in between; and a plain one: no link, pipe or folder is taken for it.

Every file of an index but SQLite's own is written and read here.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not keep its reader waiting


def replace_files(files: Iterable[tuple[Path, bytes | memoryview]]) -> None:
    """Write each `data` to a temporary neighbour of its `path`, fsync them all, then rename them all.

    Together, because the first fsync of a batch pays for most of the others. The names themselves are durable after
    `sync` on their folders.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, data in files:
            temporary[path] = _beside(path)
            write_new(temporary[path], data)
        for written in temporary.values():
            sync(written)
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """As `replace_files` for one file that does not fit into memory."""
    temporary = _beside(path)
    try:
        _write(temporary, pieces)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that nobody else writes to: another thread, or a process of another machine, may be writing the same."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def begun_for(name: str) -> str:
    """The file that was to get what has this name: itself, but for what a writer leaves that dies meanwhile."""
    return name[1:-4].rpartition(".")[0] if name.startswith(".") and name.endswith(".tmp") else name


def settled(path: Path) -> Path:
    """Where a path leads to now, whatever becomes of the working directory and of links."""
    return Path(os.path.realpath(path))


def settled_place(place: str) -> str:
    """A URL as it is, and a folder by its absolute path, whatever becomes of the working directory."""
    protocol, separator, path = place.rpartition("://")
    if protocol not in ("", "file", "local"):
        return place
    return f"{protocol}{separator}{os.path.abspath(os.path.expanduser(path))}"


def write_new(path: Path, data: bytes | memoryview) -> None:
    """A file that was not there before: a link that was is removed, and not followed."""
    _write(path, [data])


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        for data in pieces:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A plain file to read from, without a buffer; OSError for a link or anything else that goes by that name."""
    descriptor = os.open(path, PLAIN)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no plain file")
        yield file


def read_file(path: Path, limit: int) -> bytes:
    """A whole plain file of at most `limit` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"it has {size} bytes, more than the {limit} that can be right")
        data = bytearray()
        while len(data) < size and (piece := file.read(size - len(data))):
            data += piece
    return bytes(data)


def remove_files(root: Path, paths: Iterable[str]) -> None:
    """Delete files and links, by their paths relative to `root`; never what is behind a link, nor a folder, which no
    index has made there. Wait until it is done."""
    folders = set()
    for path in paths:
        folder = (root / path).parent
        if folder.is_symlink() or is_folder(root / path):
            continue
        (root / path).unlink(missing_ok=True)
        folders.add(folder)
    for folder in folders:
        if folder.is_dir():
            sync(folder)


def is_folder(path: Path) -> bool:
    """Whether a folder goes by that name, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def make_folder(path: Path) -> None:
    """A folder of that name; a link there, which could lead anywhere, gives way to it."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(exist_ok=True)
