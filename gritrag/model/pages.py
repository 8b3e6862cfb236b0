"""Pages: memory of tensors that lie in a mapped file can be given back, and comes again from the file when it is read.

transformers maps weights that a safetensors file holds in the dtype that is asked for. Once they are packed they are
seldom read: by the slow forward, by training, by whoever writes them to a file. Until then their pages need not be
resident.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

PAGEMAP = Path("/proc/self/pagemap")
"""For every page of this process 64 bits (Linux, Documentation/admin-guide/mm/pagemap.rst)."""

PRESENT, SWAPPED, OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def can_give_back() -> bool:
    """Whether this system tells which pages are those of a file, and takes them back."""
    return sys.platform == "linux" and os.access(PAGEMAP, os.R_OK)


def is_of_file(tensor: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are those of a mapped file: no page has been written to since it was mapped.

    False where the system does not tell.
    """
    if not can_give_back():
        return False
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        return _is_of_file(tensor, pagemap)


def give_back(tensors: Iterable[torch.Tensor]) -> None:
    """Let the system take the pages of tensors until they are read again, where that loses nothing: `is_of_file`."""
    if not can_give_back():
        return
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for tensor in tensors:
            if _is_of_file(tensor, pagemap):
                # whole pages only: what lies beside it in the file may be in use
                start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
                end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
                if start < end:
                    length = ctypes.c_size_t(end - start)
                    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), length, mmap.MADV_DONTNEED)


def give_back_heap() -> None:
    """Let the system take what has been freed, where the C library keeps it for itself."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc has it
        trim(0)


def _is_of_file(tensor: torch.Tensor, pagemap: BinaryIO) -> bool:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    start = tensor.data_ptr()
    first, end = start // mmap.PAGESIZE, -(-(start + tensor.nbytes) // mmap.PAGESIZE)
    pagemap.seek(8 * first)
    pages = np.frombuffer(pagemap.read(8 * (end - first)), dtype=np.uint64)
    is_own = ((pages & PRESENT) != 0) & ((pages & OF_FILE) == 0)
    return len(pages) == end - first and not bool((is_own | ((pages & SWAPPED) != 0)).any())
