"""Sources: files and folders that documents come from. Nothing is left out in silence."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from gritrag.documents.read import read_file, reason_to_refuse
from gritrag.documents.text import AS_IT_IS, TextOptions
from gritrag.records import Document

FILE = "source_file"
"""Metadata field of every document from here: `Source.name` of its file."""
ROOT = "source_root"
"""Metadata field of every document from here: `Source.root` of its file."""

Extent = Literal["file", "part", "nothing"]


class Source(NamedTuple):
    """A file to read. `name` is its path below `root`, and starts its documents' ids.

    `root` is the folder that was asked for, or the one that holds the file that was: absolute, links resolved. In an
    index it has a short name, and where there are several roots `name` begins with it; see `gritrag.documents.roots`.
    """

    path: Path
    name: str
    root: str

    @property
    def metadata(self) -> dict[str, str]:
        """What every document of this file says of where it is from."""
        return {FILE: self.name, ROOT: self.root}


class Skipped(NamedTuple):
    """A file or folder that is not read, and why.

    `extent` says what is missing: all of a ``"file"`` that cannot be read, a ``"part"`` of one; or ``"nothing"`` that
    was asked for, as of kinds that hold no text, hidden and empty files.
    """

    path: Path
    reason: str
    extent: Extent = "file"


class Listing(NamedTuple):
    """What `list_sources` found, each in sorted order."""

    sources: list[Source]
    skipped: list[Skipped]


def list_sources(paths: Iterable[str | Path]) -> Listing:
    """The files under `paths`, which are files or folders.

    Empty files and files of another kind are skipped and reported, and in a folder hidden entries too, and what cannot
    be listed, is no file, or has a name that is no Unicode. There links are followed (a loop of links is entered once).

    Raises:
        ValueError: a path does not exist, or is empty, as that of a variable of the shell that was never set.
    """
    sources: dict[tuple[str, str], Source] = {}
    skipped: list[Skipped] = []
    given = list(paths)
    if "" in given:
        raise ValueError("an empty path names no file and no folder; this folder is called .")
    for path in map(Path, given):
        found = _list_folder(path) if path.is_dir() else _named_file(path)
        for source in found.sources:
            sources.setdefault((source.name, source.root), source)
        skipped += found.skipped
    return Listing([sources[place] for place in sorted(sources)], skipped)


def read_source(
    source: Source, on_loss: Callable[[str], None] = lambda reason: None, options: TextOptions = AS_IT_IS
) -> Iterator[Document]:
    """Documents of one file; see `read_file`.

    Their metadata hold the file's name as `source_file`, and the folder above that name as `source_root`.

    Raises:
        ValueError: the file cannot be read or is broken; names file, line and remedy.
    """
    try:
        with source.path.open("rb") as file:
            yield from read_file(
                file,
                source.name,
                where=str(source.path),
                metadata=source.metadata,
                options=options,
                on_loss=on_loss,
            )
    except OSError as error:
        raise ValueError(
            f"{source.path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error


def _named_file(path: Path) -> Listing:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if skipped := _skipped(path, is_hidden=False):
        return Listing([], [skipped])
    return Listing([Source(path, path.name, os.path.realpath(path.parent))], [])


def _list_folder(root: Path) -> Listing:
    sources: list[Source] = []
    skipped: list[Skipped] = []
    entered: set[str] = set()
    real_root = os.path.realpath(root)

    def unlistable(error: OSError) -> None:
        reason = f"a folder that cannot be listed ({error.strerror}); check its permissions"
        skipped.append(Skipped(_shown(Path(error.filename)), reason))

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=unlistable):
        real = os.path.realpath(folder)
        if real in entered:
            reason = "a link to a folder that was already entered"
            skipped.append(Skipped(_shown(Path(folder)), reason, "nothing"))
            subfolders.clear()
            continue
        entered.add(real)
        hidden = sorted(name for name in subfolders if name[0] == ".")
        skipped += [Skipped(_shown(Path(folder, name)), "hidden folder", "nothing") for name in hidden]
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        for name in sorted(files):
            path = Path(folder, name)
            if found := _skipped(path, name.startswith(".")):
                skipped.append(found)
            else:
                sources.append(Source(path, path.relative_to(root).as_posix(), real_root))
    return Listing(sources, skipped)


def _skipped(path: Path, is_hidden: bool) -> Skipped | None:
    """None if the file is to be read. A dead link is: reading it fails, and that says which."""
    if reason := "hidden file" if is_hidden else reason_to_refuse(path.name):
        return Skipped(_shown(path), reason, "nothing")
    if _shown(path) != path:
        return Skipped(_shown(path), "its name is no Unicode text; rename it")
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return Skipped(path, "no file but a pipe, socket or device; copy what it gives into a file")
    return None if found.st_size else Skipped(path, "empty file", "nothing")


def _shown(path: Path) -> Path:
    """A path that can be printed: bytes that are no Unicode as their numbers."""
    return Path(str(path).encode("utf-8", "backslashreplace").decode())
