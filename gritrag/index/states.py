"""A state file: the state of one reading, addressed by its content, and never trusted before it is checked.

`states/ab/<key>.safetensors`, where the key hashes the fingerprint, the reading and the token ids. Keys never depend on
a document's neighbours or name, so one file serves every document that reads the same tokens, in any context.
"""

import json
import mmap
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors.torch import save

from gritrag.index.catalog import StateRow
from gritrag.index.codecs import get_codec
from gritrag.index.durable import replace_files, sync
from gritrag.model.state import DocumentState, Reading
from gritrag.records import Fingerprint

__all__ = ["DocumentState", "Reading", "StateFileWarning", "StateStore", "state_key"]

KEY = re.compile(r"[0-9a-f]{32}")
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

    def __init__(self, root: Path) -> None:
        """`root` is the directory of the index."""
        self._root = root
        self._verified: dict[str, tuple[int, ...]] = {}

    def save(self, states: Iterable[tuple[str, DocumentState]], codec: str) -> list[StateRow]:
        """Write `(key, state)` pairs; when it returns, files and their names are durable."""
        rows: list[StateRow] = []

        def encoded() -> Iterator[tuple[Path, bytes]]:
            for key, state in states:
                path = relative_path(key)
                (self._root / path).parent.mkdir(parents=True, exist_ok=True)
                data = save(get_codec(codec).encode(state), _notes(state, codec))
                rows.append(StateRow(key, path, len(data), xxhash.xxh3_128_hexdigest(data), codec, len(state)))
                yield self._root / path, data

        replace_files(encoded())
        for folder in {self._root / "states", *((self._root / row.path).parent for row in rows)} if rows else ():
            sync(folder)
        return rows

    def load(self, row: StateRow, token_ids: np.ndarray) -> DocumentState | None:
        """The state, its tensors mapped from the file; None with a `StateFileWarning` where it cannot be trusted.

        The checksum is verified when a file is first read, and again whenever it has changed on disk since.
        """
        try:
            tensors, notes = _parse(self._map(row))
            if not np.array_equal(tensors["token_ids"].numpy(), token_ids):
                raise ValueError("its token ids are not the document's")
        except (OSError, ValueError) as error:
            message = f"state file {relative_path(row.key)} is not used: {error}. It will be read anew."
            warnings.warn(message, StateFileWarning, stacklevel=3)
            return None
        state = get_codec(row.codec).decode(tensors, notes["reading"])
        computed: torch.dtype = getattr(torch, notes["dtype"])
        if computed.itemsize >= state.keys.dtype.itemsize:
            return state
        # more digits than were computed would pass for exactness
        return DocumentState(state.keys.to(computed), state.values.to(computed), state.token_ids, state.reading)

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
        with open(self._root / relative_path(row.key), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size != row.bytes:
                raise ValueError(f"it has {status.st_size} bytes, {row.bytes} were written")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(row.key) != stamp:
            found = xxhash.xxh3_128_hexdigest(buffer)
            if found != row.xxh3:
                raise ValueError(f"its checksum is {found}, {row.xxh3} was written")
            self._verified[row.key] = stamp
        return buffer

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files that the catalog has forgotten, by relative path."""
        for path in paths:
            (self._root / path).unlink(missing_ok=True)

    def files(self) -> list[str]:
        """Relative paths of all files below `states/`, temporary ones of killed writers included."""
        found = (self._root / "states").glob("*/*")
        return sorted(path.relative_to(self._root).as_posix() for path in found)


def _notes(state: DocumentState, codec: str) -> dict[str, str]:
    return {"codec": codec, "reading": state.reading, "dtype": str(state.keys.dtype).removeprefix("torch.")}


def relative_path(key: str) -> str:
    """Where the state of that key lies in its index."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no state key: the catalog is damaged")
    return f"states/{key[:2]}/{key}.safetensors"


def _parse(buffer: mmap.mmap) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a safetensors file, sharing its memory, and its notes. The file has passed its checksum."""
    (length,) = struct.unpack("<Q", buffer[:8])
    header = json.loads(buffer[8 : 8 + length])
    notes = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        flat = torch.frombuffer(buffer, dtype=dtype, count=(end - start) // dtype.itemsize, offset=8 + length + start)
        tensors[name] = flat.view(entry["shape"])
    return tensors, notes
