"""A log: the commits that SQLite has not yet folded into the catalog's file, frame by frame, as far as they are whole.

SQLite takes a frame that fails its checksum for the end of the log and forgets all commits after it, so a flipped bit
would undo in silence what was acknowledged. Here the log is read as SQLite reads it, to be compared with where it ought
to end. Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log

`F` frames, `W` 32-bit words of a frame that its checksum covers.
"""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from gritrag.index.storage.durable import open_file

__all__ = ["Log", "LogEnd", "read_log"]

HEADER = struct.Struct(">8I")  # magic, format, page size, number of checkpoints, two salts, two sums
FRAME = struct.Struct(">6I")  # page, pages of the database after this commit (else 0), two salts, two sums
BATCH_BYTES = 1 << 24
MASK = 0xFFFF_FFFF

Pair = tuple[int, int]


class LogEnd(NamedTuple):
    """A place in a log. Its sums follow from every byte before it: two logs with one end are one log until there."""

    salts: Pair
    frames: int
    sums: Pair


class Log(NamedTuple):
    """A log until a commit: where that is, xxh3-64 of the pages it holds, and how many the catalog then has."""

    end: LogEnd
    pages: dict[int, int]
    size: int


class _Frame(NamedTuple):
    end: LogEnd
    page: int
    size: int
    content: memoryview


def read_log(path: Path, after: Log | None = None, frames: int | None = None) -> Log | None:
    """The log at `path` until its last whole commit; None where it has none.

    Args:
        path: the file that SQLite calls `-wal`.
        after: what is known of it; where it is still that log, only what has been appended since is read.
        frames: stop after so many.
    """
    if not os.path.lexists(path):
        return None
    with open_file(path) as file:
        header = HEADER.unpack(file.read(HEADER.size).ljust(HEADER.size, b"\0"))
        magic, _, page_size, _, *salts, sum0, sum1 = header
        words = ">u4" if magic & 1 else "<u4"
        start = LogEnd((salts[0], salts[1]), 0, (sum0, sum1))
        covered = np.frombuffer(HEADER.pack(*header), words)[:6]
        if magic | 1 != 0x377F0683 or _advance((0, 0), covered.size, _shares(covered[None])[0]) != start.sums:
            return None
        log = after if after is not None and after.end.salts == start.salts else Log(start, {}, 0)
        pages, pending = dict(log.pages), {}
        for frame in _frames(file, log.end, words, page_size):
            pending[frame.page] = xxhash.xxh3_64_intdigest(frame.content)
            if frame.size:
                pages.update(pending)
                pending = {}
                log = Log(frame.end, pages, frame.size)
            if frame.end.frames == frames:
                break
    return log if log.end.frames else None


def _read(file: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, or what is left."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _frames(file: BinaryIO, end: LogEnd, words: str, page_size: int) -> Iterator[_Frame]:
    """The frames after `end`, up to the first that is torn, damaged or left over from an earlier log."""
    length = FRAME.size + page_size
    file.seek(HEADER.size + end.frames * length)
    while batch := _read(file, max(1, BATCH_BYTES // length) * length):
        whole = np.frombuffer(batch, np.uint8)[: len(batch) // length * length].reshape(-1, length)
        covered = np.concatenate([whole[:, :8], whole[:, FRAME.size :]], axis=1).view(words)
        for row, share in enumerate(_shares(covered)):
            content = memoryview(batch)[row * length : (row + 1) * length]
            page, size, *salts, sum0, sum1 = FRAME.unpack_from(content)
            sums = _advance(end.sums, covered.shape[1], share)
            if page == 0 or tuple(salts) != end.salts or sums != (sum0, sum1):
                return
            end = LogEnd(end.salts, end.frames + 1, sums)
            yield _Frame(end, page, size, content[FRAME.size :])


# SQLite's sums run over pairs of words: s0 += x0 + s1; s1 += x1 + s0. That is linear modulo 2^32: what a frame adds is
# one product of its words with fixed weights, and only a step of two numbers for each frame is left to do in order.


@functools.cache
def _weights(count: int) -> tuple[np.ndarray, Pair, Pair]:
    """What each of `count` words adds to both sums, uint32 `[W, 2]`, and the matrix by which the sums before it act."""
    weights = np.empty((count, 2), np.uint32)
    row0, row1 = (1, 0), (0, 1)
    for word in range(count - 2, -1, -2):
        weights[word] = (row0[0] + row0[1]) & MASK, (row1[0] + row1[1]) & MASK
        weights[word + 1] = row0[1], row1[1]
        row0, row1 = (((a + b) & MASK, (a + 2 * b) & MASK) for a, b in (row0, row1))
    return weights, row0, row1


def _shares(words_FW: np.ndarray) -> list[Pair]:
    """What the words of each frame add to the two sums."""
    weights, _, _ = _weights(words_FW.shape[1])
    native = words_FW.astype(np.uint32, copy=False)
    return list(zip(*((native * weights[:, side]).sum(1, dtype=np.uint32).tolist() for side in (0, 1)), strict=True))


def _advance(sums: Pair, count: int, share: Pair) -> Pair:
    _, (a, b), (c, d) = _weights(count)
    return (a * sums[0] + b * sums[1] + share[0]) & MASK, (c * sums[0] + d * sums[1] + share[1]) & MASK
