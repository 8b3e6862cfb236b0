"""What one call costs: seconds by part, tokens, and what the system keeps for it, memory and pages of files."""

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from gritrag.records import Answer, Timings

T = TypeVar("T")

PARTS = ("retrieve", "load", "place", "question", "decode")
"""Of an answer, in their order: embedding and search, states from their files, rotation to their places, forward over
all tokens that no state stands for, and the tokens after the first."""


def parts_of(timings: Timings) -> dict[str, float]:
    """Seconds of each part; together they are the total. What no part claims of the first token is the forward."""
    given = {field.name: getattr(timings, field.name) for field in fields(timings)}
    first, total = given.pop("first_token"), given.pop("total")
    before = {part: given[part] for part in PARTS[:3]}
    return {**before, "question": first - sum(before.values()), "decode": total - first}


def cost_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of one answer, or of a batch: times are then those of its last row, tokens those of all its rows."""
    timings, usages = answers[-1].timings, [answer.usage for answer in answers]
    return {
        "first_token": timings.first_token,
        "total": timings.total,
        "parts": parts_of(timings),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
    }


def in_turn(cells: Sequence[T], warmup: int, rounds: int) -> Iterator[tuple[int, T]]:
    """`(round, cell)`: each round has every cell once, so that drift of the machine hits all alike, and begins with
    another cell than the one before, so that none always follows the same. Rounds below 0 warm up."""
    for number in range(-warmup, rounds):
        first = number % len(cells)
        yield from ((number, cell) for cell in (*cells[first:], *cells[:first]))


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
