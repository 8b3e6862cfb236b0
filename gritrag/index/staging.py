"""Staging: what many processes have read for one index, until one commit takes all of it.

Vectors are staged in parts, each of some documents. States are staged as objects: at their final address where the
index has its states on object storage, else in its folder, from where a commit links them to their place. Names hold
checksums of contents, so what two processes write at once, or one that died had begun, harms nothing; and what is there
already is not read again. `D` length of a vector.
"""

import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from glob import escape
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import torch
import xxhash
from safetensors.torch import load

from gritrag.index.storage.durable import is_folder, make_folder, replace_files, sync
from gritrag.index.storage.entries import StateRow
from gritrag.index.storage.remote_states import OPTIONS, RemoteStates, put, remove_folder, retried
from gritrag.index.storage.states import Reading, relative_path, stable_file

__all__ = ["FOLDER", "Part", "Staging"]

FOLDER = "staging"
"""In the directory of an index, or below the URL of its states."""


class Part(NamedTuple):
    """Vectors float32 `[D]` and rows of states, by the keys of the readings. Without states there are no rows."""

    vectors: dict[str, np.ndarray]
    rows: dict[str, StateRow]


class Staging:
    """Of one index. Every process that reads for it makes its own."""

    def __init__(self, root: Path, states_at: str | None, codec: str) -> None:
        """`root` is the directory of the index; without `states_at` every process must see it."""
        url = f"{states_at or f'file://{root.absolute()}'}/{FOLDER}"
        self._codec = codec
        self._links = states_at is None
        self._states = RemoteStates(states_at or f"{url}/states")
        self._remote, self._base = fsspec.core.url_to_fs(url, **OPTIONS.get(url.split(":")[0], {}))
        self.part = lru_cache(maxsize=8)(self._part)

    def find(self, keys: Iterable[str]) -> str | None:
        """The part of exactly these readings, if it has been written."""
        self._remote.invalidate_cache()
        found = retried(lambda: self._remote.glob(f"{escape(self._base)}/parts/{_digest(keys)}.*.safetensors"))
        return next((path.rsplit("/", 1)[1] for path in found), None)

    def write(self, readings: dict[str, Reading] | dict[str, np.ndarray]) -> str:
        """Stage states, then vectors; the name of the part. Vectors alone where no states are stored.

        Raises:
            OSError: one could not be written, after several attempts.
        """
        vectors = {key: each.vector if isinstance(each, Reading) else each for key, each in readings.items()}
        states = [(key, each.state) for key, each in readings.items() if isinstance(each, Reading)]
        rows = self._states.save(states, self._codec) if states else []
        notes = {"keys": json.dumps(list(vectors)), "rows": json.dumps(rows)}
        data = stable_file({"vectors": torch.from_numpy(np.stack([*vectors.values()]).astype(np.float32))}, notes)
        name = f"{_digest(vectors)}.{xxhash.xxh3_128_hexdigest(data)}.safetensors"
        put(self._remote, f"{self._base}/parts/{name}", data)
        return name

    def known(self) -> dict[str, str]:
        """For each reading that is staged the part that holds it. Parts that are damaged are left out."""
        self._remote.invalidate_cache()
        paths = retried(lambda: self._remote.glob(f"{escape(self._base)}/parts/*.safetensors"))
        found: dict[str, str] = {}
        for name in sorted(path.rsplit("/", 1)[1] for path in paths):
            try:
                found |= dict.fromkeys(self.part(name).vectors, name)
            except ValueError:
                retried(partial(self._remote.rm_file, f"{self._base}/parts/{name}"))
        return found

    def _part(self, name: str) -> Part:
        data: bytes = retried(lambda: self._remote.cat_file(f"{self._base}/parts/{name}"))
        if xxhash.xxh3_128_hexdigest(data) != name.split(".")[1]:
            raise ValueError(f"{self._base}/parts/{name} is not what was written")
        length = int.from_bytes(data[:8], "little")
        notes = json.loads(data[8 : 8 + length])["__metadata__"]
        rows = [StateRow(*row) for row in json.loads(notes["rows"])]
        vectors = zip(json.loads(notes["keys"]), load(data)["vectors"].numpy(), strict=True)
        return Part(dict(vectors), {row.key: row for row in rows})

    def take(self, rows: Sequence[StateRow], root: Path) -> list[StateRow]:
        """Put staged states where the index at `root` has its own, durably; those that were there to be taken.

        A state that is not there, as after a power cut, is left out: its document is read again when it is needed.
        """
        if not self._links:
            return list(rows)
        taken = []
        for row in rows:
            source, target = Path(self._states.name(row)), root / relative_path(row.key)
            if not source.is_file() or source.stat().st_size != row.bytes or is_folder(target):
                continue
            make_folder(target.parent)
            sync(source)
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:  # a file system without links, or another one
                replace_files([(target, source.read_bytes())])
            taken.append(row)
        for folder in {root / "states", *((root / relative_path(row.key)).parent for row in taken)}:
            sync(folder)
        return taken

    def clear(self) -> None:
        """Remove what is staged: after the commit, or to begin anew."""
        self.part.cache_clear()
        self._remote.invalidate_cache()
        remove_folder(self._remote, self._base)


def _digest(keys: Iterable[str]) -> str:
    return xxhash.xxh3_128_hexdigest("".join(sorted(keys)).encode())
