"""States on object storage: immutable objects under a URL of fsspec, behind a bounded folder on the local disk.

The name of an object is the key of its state and the checksum of its content, so an object is never changed, and who
reads a name gets what was written under it or nothing. The catalog says which there are: any machine that has a copy of
an index without states, or sees its folder, reads the same ones. What cannot be fetched counts as missing, and is read
anew by the model. Credentials and endpoint come from the environment (for S3: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``), never from an index.
"""

import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
import xxhash

try:
    from botocore.exceptions import BotoCoreError
except ImportError:  # an extra: without it there is no S3 either
    BotoCoreError = ConnectionError

from gritrag.folders import cache_folder
from gritrag.index.storage.durable import replace_files
from gritrag.index.storage.entries import StateRow
from gritrag.index.storage.manifest import parse_bytes
from gritrag.index.storage.states import KEY, Checks, DocumentState, StateStore, encoded, relative_path

__all__ = ["OPTIONS", "RemoteStates", "default_cache", "put", "remove_folder", "retried"]

T = TypeVar("T")
ATTEMPTS = 4
FIRST_DELAY = 0.1
"""Seconds before a request is repeated; each time twice as many."""

AT_ONCE = 16
"""Requests."""

CACHE_BYTES = 10 * 10**9
AWAY_SECONDS = 30.0
"""After a server could not be reached, it is not asked again for so long: an answer does not wait for each state."""

OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"connect_timeout": 5, "retries": {"mode": "standard", "max_attempts": 2}},
        # a listing that is kept is never renewed: what was replaced since could not be opened, as long as we run
        "use_listings_cache": False,
    }
}
FOR_GOOD = (FileNotFoundError, PermissionError)
"""Errors that a repetition does not mend."""


def default_cache() -> Path:
    """Where states from object storage are kept on this machine: ``GRITRAG_STATE_CACHE``, or in the cache folder.

    Raises:
        ValueError: neither is known, see `cache_folder`.
    """
    named = os.environ.get("GRITRAG_STATE_CACHE")
    return Path(named).expanduser() if named else cache_folder() / "states"


def cache_bytes() -> int:
    """How many bytes of them are kept: ``GRITRAG_STATE_CACHE_BYTES``, a number or such as ``20GB``, or 10 GB.

    Raises:
        ValueError: it is no size.
    """
    try:
        return parse_bytes(os.environ.get("GRITRAG_STATE_CACHE_BYTES") or CACHE_BYTES) or 0
    except ValueError as error:
        raise ValueError(f"GRITRAG_STATE_CACHE_BYTES: {error}") from None


class RemoteStates(StateStore):
    """As the folder `states/` of an index, but at `url`.

    Of all indexes of that URL at most `cache_bytes()` stay on the local disk. States that are asked for together may
    exceed it for a moment.
    """

    def __init__(self, url: str, checks: Checks = "once") -> None:
        """See `StateStore`.

        Raises:
            ValueError: there is no such kind of URL, what reads it is not installed, or no folder is known to cache in.
        """
        cache = default_cache() / xxhash.xxh3_64_hexdigest(url.encode())
        super().__init__(cache, checks)
        try:
            self._remote, self._base = fsspec.core.url_to_fs(url, **OPTIONS.get(url.split(":")[0], {}))
        except (ImportError, ValueError) as error:
            raise ValueError(f"states at {url} cannot be reached: {error}; for s3:// install 'gritrag[s3]'") from error
        self._most = cache_bytes()
        self._away_until = 0.0

    def save(self, states: Iterable[tuple[str, DocumentState]], codec: str) -> list[StateRow]:
        """Put `(key, state)` pairs; when it returns, all objects are there.

        Raises:
            OSError: one could not be put, after several attempts.
        """
        rows: list[StateRow] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            puts = []
            for key, state in states:
                data = encoded(state, codec)
                row = StateRow(key, len(data), xxhash.xxh3_128_hexdigest(data), codec, len(state))
                rows.append(row)
                puts.append(pool.submit(put, self._remote, self.name(row), data))
            for each in puts:
                each.result()
        return rows

    def prefetch(self, rows: Sequence[StateRow]) -> None:
        """Bring those that are not on the local disk, all at once. One that cannot be had is told of when it is
        loaded."""
        missing = [row for row in rows if not self._is_cached(row)]
        if len(missing) > 1:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._fetch_quietly, missing))

    def adopt(self, other: StateStore, rows: Sequence[StateRow]) -> list[str]:
        """Nothing to copy: a copy of the index reads the same objects."""
        return []

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the objects of states that the catalog has forgotten, and what is kept of them here."""
        listed = list(keys)
        super().remove(listed)
        if listed:
            self._remote.invalidate_cache()  # other processes stage states, and not all file systems list anew
        for key in listed:
            for path in retried(partial(self._remote.glob, f"{escape(self._base)}/{key[:2]}/{key}.*")):
                retried(partial(self._remote.rm_file, path))

    def strays(self, known: Iterable[str]) -> list[str]:
        """None: another index may have put what this one does not know."""
        return []

    def problem(self, row: StateRow) -> str | None:
        """What is wrong with the object of `row`, fetched anew; None if nothing is."""
        (self._root / relative_path(row.key)).unlink(missing_ok=True)
        return super().problem(row)

    def _map(self, row: StateRow) -> mmap.mmap:
        if not self._is_cached(row):
            self._fetch(row)
        try:
            return super()._map(row)
        except (OSError, ValueError):  # what lies here is damaged, or another process has just made room
            self._fetch(row)
            return super()._map(row)

    def _is_cached(self, row: StateRow) -> bool:
        path = self._root / relative_path(row.key)
        try:
            os.utime(path)  # what was used last goes last
            return path.stat().st_size == row.bytes
        except OSError:
            return False

    def _fetch_quietly(self, row: StateRow) -> None:
        with suppress(OSError, ValueError):
            self._fetch(row)

    def _fetch(self, row: StateRow) -> None:
        """From object storage to the local disk, checked on arrival: bytes that changed on the way are asked for again.

        Raises:
            OSError: it cannot be had.
            ValueError: it is not what was written.
        """

        def whole() -> bytes:
            if time.monotonic() < self._away_until:
                raise PermissionError(f"{self._base} could not be reached a moment ago, and is not asked again yet")
            data: bytes = self._remote.cat_file(self.name(row))
            if xxhash.xxh3_128_hexdigest(data) != row.xxh3:
                raise OSError(f"{self.name(row)} arrived with another checksum than was written")
            return data

        try:
            data = retried(whole)
        except ConnectionError:
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise
        self._make_room(len(data))
        path = self._root / relative_path(row.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_files([(path, data)])

    def _make_room(self, needed: int) -> None:
        """Delete what was not used for longest. Another process may be deleting too."""
        held = []
        for path in self._root.glob("states/*/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            held.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in held) + needed
        for _, size, path in sorted(held):
            if total <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= size

    def name(self, row: StateRow) -> str:
        """Of the object of `row`."""
        if not KEY.fullmatch(row.key):
            raise ValueError(f"{row.key!r} is no state key: the catalog is damaged")
        return f"{self._base}/{row.key[:2]}/{row.key}.{row.xxh3}.safetensors"


def put(remote: Any, path: str, data: bytes) -> None:
    """Write an object: all of it is there, or nothing.

    Raises:
        OSError: it could not be put, after several attempts.
    """
    if "file" in _protocols(remote):  # object stores show nothing of an object before all of it is there
        temporary = f"{path}.{uuid4().hex}.tmp"
        remote.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        retried(lambda: remote.pipe_file(temporary, data))
        retried(lambda: remote.mv(temporary, path))
    else:
        retried(lambda: remote.pipe_file(path, data))


def remove_folder(remote: Any, path: str) -> None:
    """Remove all that is below a path, if there is anything.

    On object stores `rm` takes brackets in a path for a pattern, and would remove what matches it instead.

    Raises:
        OSError: not all could be removed, after several attempts.
    """
    if "file" not in _protocols(remote):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda each: retried(partial(remote.rm_file, each)), retried(lambda: remote.find(path))))
    elif remote.exists(path):
        retried(lambda: remote.rm(path, recursive=True))


def _protocols(remote: Any) -> tuple[str, ...]:
    return (remote.protocol,) if isinstance(remote.protocol, str) else tuple(remote.protocol)


def retried(ask: Callable[[], T]) -> T:
    """What `ask` returns, after up to four attempts; the last error as an OSError."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except FOR_GOOD:
            raise
        except BotoCoreError as error:  # which has tried several times itself
            raise ConnectionError(str(error)) from error
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(FIRST_DELAY * 2**attempt)
    raise AssertionError
