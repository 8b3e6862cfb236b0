"""Roots: the folders that files come from, by short names. So a folder can move, and two can have files of one name.

A document says the name of its root and that of its file; where the root is, the index notes once. The files of the
first root are called by their path below it, those of every other one have its name before them: ``notes:a/b.md``.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from gritrag.documents.sources import Source

__all__ = ["Root", "Roots"]

LOOKED_AT = 1000
"""So many files are looked for, to tell whether a folder is another one that has moved."""


class Root(NamedTuple):
    """A folder: its absolute path, links resolved, or its URL; and what the names of its files begin with."""

    path: str
    prefix: str = ""


class Roots:
    """The roots of an index.

    Args:
        known: by their names.
        files: for each name, the files that have documents in the index.
    """

    def __init__(
        self, known: Mapping[str, Root] | None = None, files: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.known = dict(known or {})
        self.moved: list[tuple[str, str]] = []
        """Where roots were, and where `place` found them."""
        self._files = files or {}

    def file(self, root: str, name: str) -> Path:
        """Where a file of a document is, on this machine."""
        return Path(*self.where(root, name))

    def where(self, root: str, name: str) -> tuple[str, str]:
        """Path of a root, or its URL, and that of a file of a document below it. A root may be named by its path, as it
        was before roots had names."""
        path, prefix = self.known.get(root, Root(root))
        return path, name.removeprefix(prefix)

    def place(self, sources: Iterable[Source], at: str | Path | None = None) -> list[Source]:
        """The files under the names that they have in the index, in sorted order, each once.

        A folder below a root belongs to it. One that is new is taken for a root that is no longer where it was, if at
        least half of that root's files are here; else it becomes a root.

        Args:
            sources: as `list_sources` gives them.
            at: where the root of all of them is, if it cannot be told.

        Raises:
            ValueError: a file is not below `at`, or it cannot be told which of several roots `at` is.
        """
        listed = list(sources)
        main = None if at is None else self._root_at(os.path.realpath(at))
        places: dict[str, tuple[str, str]] = {}
        # a folder before those within it
        for folder in sorted({source.root for source in listed}, key=lambda folder: (len(folder), folder)):
            places[folder] = self._place(folder) if main is None else (main, self._below(main, folder))
        placed: dict[str, Source] = {}
        for source in listed:
            root, below = places[source.root]
            name = self.known[root].prefix + PurePath(below, source.name).as_posix()
            placed.setdefault(name, Source(source.path, name, root))
        return [placed[name] for name in sorted(placed)]

    def _place(self, folder: str) -> tuple[str, str]:
        """The root of a folder, and its path below that."""
        above = [name for name, root in self.known.items() if PurePath(folder).is_relative_to(root.path)]
        if above:
            root = max(above, key=lambda name: len(self.known[name].path))
            return root, self._below(root, folder)
        gone = [name for name, root in self.known.items() if "://" not in root.path and not os.path.isdir(root.path)]
        shares = {name: self._share(name, folder) for name in gone}
        if shares and max(shares.values()) >= 0.5:
            return self._move(max(shares, key=shares.__getitem__), folder), ""
        return self._new(folder), ""

    def _root_at(self, folder: str) -> str:
        """The root that is in a folder now, because somebody says so."""
        if there := [name for name, root in self.known.items() if root.path == folder]:
            return there[0]
        if not self.known:
            return self._new(folder)
        shares = {name: self._share(name, folder) for name in self.known}
        likely = max(shares, key=shares.__getitem__)
        if len(shares) > 1 and not shares[likely]:
            where = ", ".join(root.path for root in self.known.values())
            raise ValueError(f"{folder} has no file of any of the roots of this index ({where}): leave --root out")
        return self._move(likely, folder)

    def _share(self, root: str, folder: str) -> float:
        """Part of the files of a root that are in a folder too."""
        names = [name.removeprefix(self.known[root].prefix) for name in self._files.get(root, ())][:LOOKED_AT]
        return sum(os.path.isfile(os.path.join(folder, name)) for name in names) / max(1, len(names))

    def _move(self, root: str, folder: str) -> str:
        self.moved.append((self.known[root].path, folder))
        self.known[root] = self.known[root]._replace(path=folder)
        return root

    def _new(self, folder: str) -> str:
        base = os.path.basename(folder).encode("utf-8", "backslashreplace").decode() or "root"
        names = (base, *(f"{base}-{number}" for number in range(2, len(self.known) + 3)))
        name = next(name for name in names if name not in self.known)
        self.known[name] = Root(folder, f"{name}:" if self.known else "")
        return name

    def _below(self, root: str, folder: str) -> str:
        path = self.known[root].path
        if not PurePath(folder).is_relative_to(path):
            raise ValueError(f"{folder} is not below {path}, which --root names: give the folder that holds both")
        return PurePath(folder).relative_to(path).as_posix()
