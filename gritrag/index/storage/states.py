"""A state file: the state of one reading, addressed by its content, and never trusted before it is checked.

`states/ab/<key>.safetensors`, where the key hashes the fingerprint, the reading and the token ids. Keys never depend on
a document's neighbours or name, so one file serves every document that reads the same tokens, in any context.
"""

import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from safetensors.torch import save

from gritrag.index.storage.durable import is_folder, make_folder, open_file, remove_files, replace_files, sync
from gritrag.index.storage.entries import StateRow
from gritrag.index.storage.packed import decode, encode
from gritrag.model.state import DocumentState, Reading
from gritrag.records import Fingerprint

__all__ = [
    "Checks",
    "DocumentState",
    "Reading",
    "StateFileWarning",
    "StateStore",
    "encoded",
    "stable_file",
    "state_key",
]

Checks = Literal["once", "always"]
"""When a state file is compared with its checksum: when first read and whenever it has changed since, or always."""

KEY = re.compile(r"[0-9a-f]{32}")
HEADER_LIMIT = 1 << 20
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class StateFileWarning(UserWarning):
    """A state file is damaged or not what the catalog says; its state is treated as missing and will be read anew."""


def state_key(fingerprint: Fingerprint, token_ids: Sequence[int] | np.ndarray) -> str:
    """32 hex digits that name the reading of these tokens `[T]` by the reader with that fingerprint."""
    reading = fingerprint.parts.get("reading", "")
    header = f"{fingerprint.digest}\0{reading}\0".encode()
    return xxhash.xxh3_128_hexdigest(header + np.ascontiguousarray(token_ids, "<i4").tobytes())


class StateStore:
    """The folder `states/` of one index. It knows files; which of them exist is written in the catalog."""

    def __init__(self, root: Path, checks: Checks = "once") -> None:
        """`root` is the directory of the index."""
        self._root = root
        self._checks = checks
        self._verified: dict[str, tuple[int, ...]] = {}

    def save(self, states: Iterable[tuple[str, DocumentState]], codec: str) -> list[StateRow]:
        """Write `(key, state)` pairs; when it returns, files and their names are durable."""
        rows: list[StateRow] = []

        def files() -> Iterator[tuple[Path, bytes]]:
            for key, state in states:
                path = self._root / relative_path(key)
                make_folder(path.parent)
                if is_folder(path):  # somebody's, and in the way: this state is read whenever it is needed
                    continue
                data = encoded(state, codec)
                rows.append(StateRow(key, len(data), xxhash.xxh3_128_hexdigest(data), codec, len(state)))
                yield path, data

        replace_files(files())
        folders = {(self._root / relative_path(row.key)).parent for row in rows}
        for folder in {self._root / "states", *folders} if rows else ():
            sync(folder)
        return rows

    def load(self, row: StateRow, token_ids: np.ndarray) -> DocumentState:
        """The state, its tensors mapped from the file.

        Raises:
            OSError, ValueError: the file is not what was written, or not of these tokens; it says what is wrong.
        """
        tensors, notes = _parse(self._map(row))
        if not np.array_equal(tensors["token_ids"].numpy(), token_ids):
            raise ValueError("its token ids are not the document's")
        if notes["codec"] != row.codec:
            raise ValueError(f"it is of codec {notes['codec']}, the catalog says {row.codec}")
        state = decode(tensors, row.codec, notes["reading"])
        computed: torch.dtype = getattr(torch, notes["dtype"])
        if type(state) is not DocumentState or computed.itemsize >= state.keys.dtype.itemsize:
            return state
        # more digits than were computed would pass for exactness
        return DocumentState(state.keys.to(computed), state.values.to(computed), state.token_ids, state.reading)

    def adopt(self, other: "StateStore", rows: Sequence[StateRow]) -> list[str]:
        """Copy these files of another store, checked; return the keys of those that are not what they should be."""
        whole: list[tuple[Path, memoryview]] = []
        lost = []
        for row in rows:
            path = self._root / relative_path(row.key)
            make_folder(path.parent)
            try:
                whole.append((path, memoryview(other._map(row))))
            except (OSError, ValueError):
                lost.append(row.key)
        replace_files(whole)
        for folder in {self._root / "states", *(path.parent for path, _ in whole)}:
            sync(folder)
        return lost

    def prefetch(self, rows: Sequence[StateRow]) -> None:
        """Have these at hand: they are."""

    def problem(self, row: StateRow) -> str | None:
        """What is wrong with the file of `row`, read and checked anew; None if nothing is."""
        self._verified.pop(row.key, None)
        try:
            self._map(row)
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def _map(self, row: StateRow) -> mmap.mmap:
        """The file in memory, copy on write, known to be what was written."""
        with open_file(self._root / relative_path(row.key)) as file:
            status = os.fstat(file.fileno())
            if status.st_size != row.bytes:
                raise ValueError(f"it has {status.st_size} bytes, {row.bytes} were written")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._checks == "always" or self._verified.get(row.key) != stamp:
            found = xxhash.xxh3_128_hexdigest(buffer)
            if found != row.xxh3:
                raise ValueError(f"its checksum is {found}, {row.xxh3} was written")
            self._verified[row.key] = stamp
        return buffer

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the files of states that the catalog has forgotten."""
        remove_files(self._root, (relative_path(key) for key in keys))

    def strays(self, known: Iterable[str]) -> list[str]:
        """Relative paths of all that lies below `states/` and is no file of a `known` key. No link is followed."""
        expected = {relative_path(key) for key in known}
        found: list[str] = []
        for folder in _entries(self._root / "states"):
            inside = _entries(folder.path) if folder.is_dir(follow_symlinks=False) else [folder]
            found += [os.path.relpath(entry.path, self._root) for entry in inside]
        return sorted(path for path in found if path not in expected)


def encoded(state: DocumentState, codec: str) -> bytes:
    """The file of a state."""
    notes = {"codec": codec, "reading": state.reading, "dtype": str(state.keys.dtype).removeprefix("torch.")}
    return stable_file(encode(state, codec), notes)


def stable_file(tensors: dict[str, torch.Tensor], notes: Mapping[str, str]) -> bytes:
    """A safetensors file, the same whenever it is made.

    safetensors itself writes the notes in another order each time: what is stored twice, as by a call that is repeated
    after a failure, would have two names on object storage, and one of them for ever.
    """
    data = save(tensors, dict(notes))
    start, end = 8, 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[start:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - start)
    assert len(text) == end - start, "the same names and values, in another order"
    return b"".join([data[:start], text, data[end:]])


def relative_path(key: str) -> str:
    """Where the state of that key lies in its index."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no state key: the catalog is damaged")
    return f"states/{key[:2]}/{key}.safetensors"


def _entries(folder: "Path | str") -> list[os.DirEntry[str]]:
    if not os.path.exists(folder):  # states are derived: somebody who needed space has removed them
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _parse(buffer: mmap.mmap) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a safetensors file, sharing its memory, and its notes. The file has passed its checksum."""
    (length,) = struct.unpack("<Q", buffer[:8])
    if length > min(len(buffer) - 8, HEADER_LIMIT):
        raise ValueError(f"its header has {length} bytes")
    header = json.loads(buffer[8 : 8 + length])
    notes = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        flat = torch.frombuffer(buffer, dtype=dtype, count=(end - start) // dtype.itemsize, offset=8 + length + start)
        tensors[name] = flat.view(entry["shape"])
    return tensors, notes
