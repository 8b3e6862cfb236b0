"""Pages of a mapped file are given back and come back; whatever was written is never lost."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import TINY
from safetensors.torch import load_file, save_file

from gritrag.model import grit, pages
from gritrag.model.identity import facts_of
from gritrag.model.pages import PAGEMAP, PRESENT, can_give_back, give_back, give_back_heap, is_of_file

needs_pagemap = pytest.mark.skipif(not can_give_back(), reason="this system does not tell whose pages are whose")
NUMBERS = 64 * mmap.PAGESIZE


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, mapped; the small one shares a page with its neighbours."""
    torch.manual_seed(0)
    sizes = {"a": NUMBERS, "b": 3, "c": NUMBERS}
    save_file({name: torch.randn(size) for name, size in sizes.items()}, tmp_path / "tensors.safetensors")
    return load_file(tmp_path / "tensors.safetensors")


def resident(tensor: torch.Tensor) -> int:
    """Whole pages that are in memory."""
    first, end = -(-tensor.data_ptr() // mmap.PAGESIZE), (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE
    with PAGEMAP.open("rb") as file:
        file.seek(8 * first)
        return int(np.count_nonzero(np.frombuffer(file.read(8 * (end - first)), np.uint64) & PRESENT))


@needs_pagemap
def test_pages_of_a_file_go_and_come_back(mapped: dict[str, torch.Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in mapped.items()}
    assert resident(mapped["a"]) >= 63
    give_back([mapped["a"]])
    assert resident(mapped["a"]) == 0
    assert resident(mapped["c"]) >= 63
    for name, tensor in mapped.items():
        assert torch.equal(tensor, before[name])
    assert resident(mapped["a"]) >= 63


@needs_pagemap
@pytest.mark.parametrize("has_been_read", [False, True])
def test_what_was_written_is_never_given_back(mapped: dict[str, torch.Tensor], has_been_read: bool) -> None:
    """By torch, past torch's count of writes, or by NumPy; in one page of many."""
    if has_been_read:
        mapped["c"].sum()
    assert is_of_file(mapped["c"])
    mapped["c"].numpy()[NUMBERS // 2] = 7
    mapped["a"].data[0] = 7
    for name in ("a", "c"):
        assert not is_of_file(mapped[name])
        expected = mapped[name].clone()
        give_back([mapped[name]])
        assert torch.equal(mapped[name], expected)
    assert mapped["c"][NUMBERS // 2] == 7


@needs_pagemap
@pytest.mark.parametrize("numbers", [3, NUMBERS])
def test_memory_of_its_own_stays(numbers: int) -> None:
    tensor = torch.arange(numbers)
    assert not is_of_file(tensor)
    give_back([tensor, tensor.view(-1, 1).t()[::2], torch.empty(0)])
    assert torch.equal(tensor, torch.arange(numbers))


def test_a_system_that_tells_nothing_keeps_everything(
    mapped: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = mapped["a"].clone()
    monkeypatch.setattr(pages, "PAGEMAP", tmp_path / "none")
    assert not can_give_back()
    assert not is_of_file(mapped["a"])
    give_back([mapped["a"]])
    give_back_heap()
    assert torch.equal(mapped["a"], expected)


def test_what_loading_has_freed_is_given_back_once_the_model_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building it frees memory too: tokenizers and hashes of their vocabulary."""
    built: list[bool] = []
    monkeypatch.setattr(grit, "facts_of", lambda *of: built.append(True) or facts_of(*of))
    monkeypatch.setattr(grit, "give_back_heap", lambda: built.append(False))
    grit.GritModel.from_pretrained(TINY)
    assert built == [True, False]
