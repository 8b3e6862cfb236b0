"""Progress bars that another process cannot hold up.

tqdm guards its list of bars, hidden ones too, with a lock that forked processes share; one that is killed while it
makes a bar never gives that lock back, and every later bar of its parent and siblings waits for ever. Bars of ours are
guarded among the threads of one process only: two may write over each other's lines, and neither stops the other.
"""

import os
import threading

from tqdm.auto import tqdm

__all__ = ["ProgressBar"]


class ProgressBar(tqdm):
    """tqdm's bar, in a terminal or a notebook, with a lock of this process alone."""


def _own_lock() -> None:
    ProgressBar.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)  # another thread may have held the parent's
