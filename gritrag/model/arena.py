"""Arena: memory of placed states, kept between answers.

The system gives fresh memory page by page, when a page is touched first: for a hundred megabytes that takes longer than
filling them with states. So memory that no answer uses any more waits here for the next one.
"""

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
    """Pieces of memory, each in the hands of one owner, or waiting. Threads may share it.

    There is no lock: memory comes back wherever an object ends, also in a thread that is just taking some, and an
    interrupt there would leave a lock held for ever. What is done to the dictionary of what waits is done at once.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, np.ndarray] = {}
        """By the numbers of the objects, that used last at the end."""

    def take(self, size: int) -> torch.Tensor:
        """uint8 `[size]`, with whatever is in it, at the start of a cache line. It comes back when unused."""
        memory = self._fitting(size + CACHE_LINE)
        if memory is None:
            self.clear()  # too small for what is asked now: memory is better than held twice
            memory = np.empty(-(-(size + CACHE_LINE) // GRAIN) * GRAIN, np.uint8)  # in huge pages, says NumPy
        start = -memory.ctypes.data % CACHE_LINE
        lease = memory[start : start + size].view(_Lease)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return torch.from_numpy(lease)

    def _fitting(self, size: int) -> np.ndarray | None:
        """The smallest piece that is large enough, which waits no more."""
        latest_first = list(self._waiting.values())[::-1]  # some of it may still be in the processor's cache
        for memory in sorted(latest_first, key=len):
            if len(memory) >= size and self._waiting.pop(id(memory), None) is not None:
                return memory
        return None

    def clear(self) -> None:
        """Let go of all that waits."""
        self._waiting.clear()

    @property
    def waiting_bytes(self) -> int:
        """Of memory that nobody uses."""
        return sum(map(len, list(self._waiting.values())))

    def _give_back(self, memory: np.ndarray) -> None:
        self._waiting[id(memory)] = memory
        for smallest in sorted(self._waiting.values(), key=len)[:-KEPT]:
            self._waiting.pop(id(smallest), None)


ARENA = Arena()
"""That of this process: models share it."""
