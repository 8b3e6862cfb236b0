"""A disk that fails: the n-th write of this process, or every one from then on, whether Python's or SQLite's own.

SQLite's are met in its VFS, its layer for the operating system (https://www.sqlite.org/vfs.html): a copy of the default
one whose calls that change a file ask first.
"""

import _sqlite3
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

LIBRARY = ctypes.CDLL(_sqlite3.__file__)  # finds the SQLite that this Python uses
LIBRARY.sqlite3_vfs_find.restype = ctypes.c_void_p
LIBRARY.sqlite3_vfs_register.argtypes = [ctypes.c_void_p, ctypes.c_int]
LIBRARY.sqlite3_vfs_unregister.argtypes = [ctypes.c_void_p]

WORD = ctypes.sizeof(ctypes.c_void_p)
VFS_BYTES, METHODS_BYTES = 22 * WORD, 19 * WORD
NEXT, NAME, OPEN, DELETE = 2, 3, 5, 6  # places of fields in sqlite3_vfs, in words: three ints take the first two
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
OPENS = ctypes.CFUNCTYPE(INT, POINTER, POINTER, POINTER, INT, POINTER)
DELETES = ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT)
# place in sqlite3_io_methods: signature, and what SQLite calls its failure
CHANGES: dict[int, tuple[Any, int]] = {
    3: (ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT, LONG), 778),  # xWrite, SQLITE_IOERR_WRITE
    4: (ctypes.CFUNCTYPE(INT, POINTER, LONG), 1546),  # xTruncate
    5: (ctypes.CFUNCTYPE(INT, POINTER, INT), 1034),  # xSync
    13: (ctypes.CFUNCTYPE(INT, POINTER, INT, INT, INT, POINTER), 4874),  # xShmMap, which makes the shared memory longer
}
FULL, CANTOPEN, IOERR_DELETE = 13, 14, 2570
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts what changes files, and fails the call number `fail_at` (from 1), or all from there on if it `stays`."""

    def __init__(self, fail_at: int = 0, error: int = errno.EIO, stays: bool = False) -> None:
        self.calls = 0
        self._fail_at, self._error, self._stays = fail_at, error, stays

    def fails(self) -> bool:
        self.calls += 1
        return self._fail_at > 0 and (self.calls == self._fail_at or (self._stays and self.calls > self._fail_at))

    def raises(self) -> None:
        if self.fails():
            raise OSError(self._error, os.strerror(self._error))

    def code(self, otherwise: int) -> int:
        return FULL if self._error == errno.ENOSPC else otherwise


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """Files that are opened in the block are on this disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "fsync", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, _asking(disk, getattr(os, name)))
        real_open = os.open

        def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & WRITING:
                disk.raises()
            return real_open(path, flags, *rest, **named)

        patch.setattr(os, "open", open_)
        with _vfs(disk):
            yield disk


def _asking(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        disk.raises()
        return real(*arguments, **named)

    return call


@contextmanager
def _vfs(disk: Disk) -> Iterator[None]:
    real = LIBRARY.sqlite3_vfs_find(None)
    ours = ctypes.create_string_buffer(ctypes.string_at(real, VFS_BYTES))
    fields = (POINTER * (VFS_BYTES // WORD)).from_buffer(ours)
    name = ctypes.create_string_buffer(b"failing")
    alive: list[Any] = []  # ctypes frees a callback that Python forgets
    methods: dict[int, Any] = {}
    real_open, real_delete = OPENS(fields[OPEN]), DELETES(fields[DELETE])

    def open_(_: int, path: int, file: int, flags: int, out: int) -> int:
        if disk.fails():
            return disk.code(CANTOPEN)
        status: int = real_open(real, path, file, flags, out)
        address = POINTER.from_address(file)
        if address.value:
            if address.value not in methods:
                methods[address.value] = _failing_methods(disk, address.value, alive)
            address.value = ctypes.addressof(methods[address.value])
        return status

    def delete(_: int, path: int, sync: int) -> int:
        return disk.code(IOERR_DELETE) if disk.fails() else real_delete(real, path, sync)

    alive += [OPENS(open_), DELETES(delete)]
    fields[NEXT], fields[NAME] = None, ctypes.addressof(name)
    fields[OPEN], fields[DELETE] = (ctypes.cast(each, POINTER).value for each in alive[:2])
    LIBRARY.sqlite3_vfs_register(ours, 1)
    try:
        yield
    finally:
        LIBRARY.sqlite3_vfs_unregister(ours)
        LIBRARY.sqlite3_vfs_register(real, 1)
        _KEPT.append((ours, name, alive, methods))  # a connection that is still open calls them


_KEPT: list[Any] = []


def _failing_methods(disk: Disk, real: int, alive: list[Any]) -> Any:
    copy = ctypes.create_string_buffer(ctypes.string_at(real, METHODS_BYTES))
    table = (POINTER * (METHODS_BYTES // WORD)).from_buffer(copy)
    for place, (signature, failure) in CHANGES.items():
        if table[place]:
            alive.append(signature(_asking_code(disk, signature(table[place]), failure)))
            table[place] = ctypes.cast(alive[-1], POINTER).value
    return copy


def _asking_code(disk: Disk, real: Callable[..., int], failure: int) -> Callable[..., int]:
    return lambda *arguments: disk.code(failure) if disk.fails() else real(*arguments)
