"""Memory and page cache, as the operating system tells them."""

import os
from pathlib import Path

import pytest
import torch

from gritrag.evaluate.machine import CAN_RESET, drop_from_page_cache, files_below, how_memory, peak_memory

MEGABYTE = 2**20


def test_a_peak_is_seen_though_it_is_over_and_does_not_hide_the_next_run() -> None:
    with peak_memory(torch.device("cpu")) as high:
        bytearray(200 * MEGABYTE)
    with peak_memory(torch.device("cpu")) as low:
        bytearray(MEGABYTE)
    assert high.peak - high.before > 150 * MEGABYTE
    assert low.peak - low.before < 100 * MEGABYTE
    assert ("reset before each run" in how_memory(torch.device("cpu"))) == CAN_RESET


def test_files_that_are_dropped_from_the_page_cache_are_still_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state").write_bytes(content := os.urandom(MEGABYTE))
    drop_from_page_cache(files := files_below(tmp_path))
    assert [file.read_bytes() for file in files] == [content]


def test_a_system_that_cannot_drop_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(ValueError, match=r"measure caches: \[warm\] only"):
        drop_from_page_cache(files_below(tmp_path))
