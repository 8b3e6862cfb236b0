"""What the operating system keeps for a process: resident memory, and the pages of files that were read."""

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc, clear_refs
CAN_RESET = os.access(CLEAR_REFS, os.W_OK)


@dataclass
class Memory:
    """Bytes: `before` something was done, and the `peak` while it was done."""

    before: int = 0
    peak: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Measure what is done inside; see `how_memory` for what that means on this machine.

    What has been freed is given back first, else the peak of something earlier would hide this one. Getting it again
    takes time, so times that were taken meanwhile are not to be used.
    """
    memory = Memory()
    gc.collect()
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        give_back(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        memory.before = torch.cuda.memory_allocated(device)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
    elif CAN_RESET:
        CLEAR_REFS.write_text(RESET_PEAK)
        memory.before = _status("VmRSS")
        yield memory
        memory.peak = _status("VmHWM")
    else:
        memory.before = _high_water()
        yield memory
        memory.peak = _high_water()


def how_memory(device: torch.device) -> str:
    """How peak memory is measured here."""
    if device.type == "cuda":
        return "allocated on the device, peak reset before each run"
    if CAN_RESET:
        return "resident (VmHWM), mapped state files included, peak reset before each run"
    return "resident, high water of the whole process so far: later runs inherit the peaks of earlier ones"


def _status(field: str) -> int:
    """Bytes of a line of `/proc/self/status`."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def _high_water() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Make the next read of these files come from the disk. Pages that something has mapped stay.

    Raises:
        ValueError: this system has no way to ask for it.
    """
    if not hasattr(os, "posix_fadvise"):
        raise ValueError(f"cold reads need posix_fadvise, which {sys.platform} lacks; measure caches: [warm] only")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are still to be written would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
