"""What the processor can do, as every torch that we allow tells it."""

from collections.abc import Mapping

import pytest
import torch

from gritrag import processor
from gritrag.processor import QUESTIONS


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch lists nothing to compare with")
def test_every_question_is_answered_as_in_the_list() -> None:
    listed = torch.cpu.get_capabilities()
    for name, question in QUESTIONS.items():
        assert getattr(torch.cpu, question)() == listed.get(name, False)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_torch_that_lists_nothing_is_asked_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for each, question in QUESTIONS.items():
        monkeypatch.setattr(torch.cpu, question, lambda is_it=each == name: is_it)
    assert processor.capabilities() == {each: each == name for each in QUESTIONS}
    assert processor.has_bf16() == name.endswith("bf16")


@pytest.mark.parametrize(
    ("listed", "has"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
    ],
)
def test_what_torch_lists_is_believed(listed: Mapping[str, object], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)
    assert processor.capabilities() == listed
    assert processor.has_bf16() is has
