"""The manifest: what an index was built with. It is written last, so a directory that has one is an index."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from gritrag.index.errors import DamagedIndex
from gritrag.index.storage.durable import begun_for, read_file, replace_files, sync
from gritrag.records import Fingerprint, FingerprintMismatch

__all__ = ["CATALOG", "Manifest", "begun_files", "check_names", "check_replaceable", "parse_bytes", "wipe"]

NAME = "manifest.json"
FORMAT = "gritrag-index"
VERSION = 4
READABLE = (3, VERSION)  # format 3 differs in its words, which a writer makes anew when it opens the index
# Everything an index ever puts into its directory; the lock stays when an index is replaced.
LOCKS = {"lock", "lock.pid"}
CATALOG = "catalog.sqlite"
JOURNAL = f"{CATALOG}-journal"  # while a catalog is made, and never later
LOGS = (f"{CATALOG}-wal", f"{CATALOG}-shm", JOURNAL)
OWN = (
    NAME,
    "catalog.checksums",
    "staging",
    "vectors",
    "states",
    *LOGS,
    CATALOG,
)  # in the order in which `wipe` removes
LIMIT = 1 << 20  # bytes of a manifest
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class Manifest:
    """What an index was built with.

    Args:
        fingerprint: of its model.
        dim: length of a vector.
        codec: of its states, or ``"none"``.
        state_quota: most bytes of states; None for no limit.
        model: what loads the model again, ``name`` among it; empty where it has no name. The fingerprint says whether
            it is still the same.
        states_at: URL of its states on object storage; None where they lie in its directory.
        vectors_at: place of Qdrant and name of the collection; None for FAISS.
    """

    fingerprint: Fingerprint
    dim: int
    codec: str
    state_quota: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    states_at: str | None = None
    vectors_at: tuple[str, str] | None = None

    def check_model(self, fingerprint: Fingerprint, root: Path) -> None:
        """Raise `FingerprintMismatch` if another model than that with this fingerprint built the index at `root`."""
        try:
            self.fingerprint.check(fingerprint, f"the index at {root}")
        except FingerprintMismatch as mismatch:
            if not self.model:
                raise
            named = f"{mismatch} It was built with the model {self.model['name']!r}."
            raise FingerprintMismatch(named, mismatch.fields) from None

    def save(self, root: Path) -> None:
        """Write `manifest.json` durably."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": {"digest": self.fingerprint.digest, "parts": dict(self.fingerprint.parts)},
            "dim": self.dim,
            "codec": self.codec,
            "state_quota": self.state_quota,
            "model": dict(self.model),
        }
        if self.states_at is not None:
            content["states_at"] = self.states_at
        if self.vectors_at is not None:
            content["vectors_at"] = list(self.vectors_at)
        replace_files([(root / NAME, _with_checksum(content))])
        sync(root)
        sync(root.parent)

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """The manifest of the index at `root`.

        Raises:
            ValueError: there is none, it is damaged, or another version of GritRAG wrote it.
        """
        if not root.is_dir():
            raise ValueError(f"there is no index at {root}: make one with Index.create or `gritrag index`")
        try:
            data = read_file(root / NAME, LIMIT)
            content = json.loads(data)
        except FileNotFoundError:
            raise ValueError(
                f"{root} has no {NAME}, so it is no finished index: make it (again) with "
                "Index.create(..., overwrite=True) or `gritrag index`"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedIndex(root / NAME, str(error)) from error
        if not isinstance(content, dict) or not ("xxh3" in content or content.get("format") == FORMAT):
            raise ValueError(f"{root / NAME} is not the manifest of a GritRAG index")
        content.pop("xxh3", None)
        if _with_checksum(content) != data:
            raise DamagedIndex(root / NAME, "its checksum is not that of its content")
        if content.get("version") not in READABLE:
            raise ValueError(
                f"{root} has index format {content.get('version')!r}, this GritRAG reads formats 3 and 4: "
                "open it with the version that built it, or build it anew"
            )
        return cls._from_content(root, content)

    @classmethod
    def _from_content(cls, root: Path, content: dict) -> "Manifest":
        fingerprint = Fingerprint(dict(content["fingerprint"]["parts"]))
        if fingerprint.digest != content["fingerprint"]["digest"]:
            raise DamagedIndex(root / NAME, "its fingerprint is not the digest of its parts")
        dim, codec = int(content["dim"]), str(content["codec"])
        at = tuple(content["vectors_at"]) if "vectors_at" in content else None
        return cls(fingerprint, dim, codec, content["state_quota"], content["model"], content.get("states_at"), at)


def _with_checksum(content: dict) -> bytes:
    """The bytes of a manifest, its own checksum among them: whatever else decodes to the same is not the manifest."""
    plain = json.dumps(content, indent=2, sort_keys=True)
    whole = content | {"xxh3": xxhash.xxh3_128_hexdigest(plain.encode())}
    return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()


def check_names(root: Path) -> None:
    """Refuse an index with a link for a part, which could lead anywhere, or with a journal that SQLite would play."""
    links = [name for name in (*OWN, *LOCKS) if (root / name).is_symlink()]
    if links:
        raise DamagedIndex(
            root, f"{links[0]} is a symbolic link, and no part of an index is", "put the file itself there"
        )
    if os.path.lexists(root / JOURNAL) and (root / NAME).exists():
        raise DamagedIndex(root, f"{JOURNAL} is no part of an index, and SQLite would follow it", "move it away")


def check_replaceable(root: Path, overwrite: bool) -> None:
    """Refuse to create an index where something else lies, or over an index that nobody gave up."""
    if not root.exists():
        return
    if not root.is_dir():
        raise ValueError(f"{root} is a file: an index needs a directory")
    names = {path.name for path in root.iterdir()} - LOCKS
    foreign = sorted({name for name in names if begun_for(name) not in OWN} or (names if CATALOG not in names else ()))
    if foreign:
        raise ValueError(
            f"{root} holds other things than an index ({', '.join(foreign[:3])}): choose another directory"
        )
    if names and not overwrite and NAME not in names:
        raise ValueError(
            f"{root} holds an index without its {NAME}, which was never finished or has been damaged: delete the "
            "folder, or replace what is there with overwrite=True"
        )
    if names and not overwrite:
        raise ValueError(f"{root} already holds an index: open it with Index.open, or replace it with overwrite=True")


def begun_files(root: Path) -> list[str]:
    """What a writer left beside the catalog that died while it wrote a file there."""
    return [name for name in os.listdir(root) if begun_for(name) != name and begun_for(name) in OWN]


def wipe(root: Path) -> None:
    """Remove the index at `root`, its manifest first, so that no half of it can be taken for whole."""
    for name in (*OWN, *begun_files(root)):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        sync(root)


def parse_bytes(size: "str | int | None") -> int | None:
    """``"20GB"``, ``"512 MiB"``, a number of bytes, or None for no limit."""
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", size.upper()) if isinstance(size, str) else None
    if match is None:
        raise ValueError(f"{size!r} is no size: give bytes as a number, or a string such as '20GB' or '512MiB'")
    return int(float(match[1]) * UNITS[match[2]])
