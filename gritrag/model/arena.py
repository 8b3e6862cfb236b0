"""Arena: memory of placed states, kept between answers.

The system gives fresh memory page by page, when a page is touched first: for a hundred megabytes that takes longer than
filling them with states. So memory that no answer uses any more waits here for the next one.
"""

import threading
import weakref

import numpy as np
import torch

CACHE_LINE = 64
GRAIN = 1 << 24
"""Sizes are rounded up to a multiple of this, so that an answer that is somewhat longer finds memory too."""

KEPT = 2
"""So many pieces wait at most: one for the answers of a thread, and one for an answer that overlaps."""


class _Lease(np.ndarray):
    """Memory that is in use; unlike a plain array it can be watched. Tensors made of it keep it alive."""


class Arena:
    """Pieces of memory, each in the hands of one owner, or waiting. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[np.ndarray] = []

    def take(self, size: int) -> torch.Tensor:
        """uint8 `[size]`, with whatever is in it, at the start of a cache line. It comes back when unused."""
        with self._lock:
            fitting = [number for number, memory in enumerate(self._waiting) if len(memory) >= size + CACHE_LINE]
            if fitting:
                # the smallest, and of equal ones the last that was used: some of it may still be in the cache
                memory = self._waiting.pop(min(reversed(fitting), key=lambda number: len(self._waiting[number])))
            else:
                self._waiting = self._waiting[:0]  # too small for what is asked now: memory is better than held twice
                memory = np.empty(-(-(size + CACHE_LINE) // GRAIN) * GRAIN, np.uint8)  # in huge pages, says NumPy
        start = -memory.ctypes.data % CACHE_LINE
        lease = memory[start : start + size].view(_Lease)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return torch.from_numpy(lease)

    def clear(self) -> None:
        """Let go of all that waits."""
        with self._lock:
            self._waiting.clear()

    @property
    def waiting_bytes(self) -> int:
        """Of memory that nobody uses."""
        return sum(map(len, self._waiting))

    def _give_back(self, memory: np.ndarray) -> None:
        # may run wherever an object ends, so it must not wait for a thread that holds the lock: perhaps it is this one
        if self._lock.acquire(blocking=False):
            try:
                self._waiting = sorted([*self._waiting, memory], key=len)[-KEPT:]
            finally:
                self._lock.release()


ARENA = Arena()
"""That of this process: models share it."""
