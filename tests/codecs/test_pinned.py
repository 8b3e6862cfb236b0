"""Tensors that are joined for one copy come out as they were."""

from typing import Any

import pytest
import torch

from gritrag.codecs.pinned import brought


def test_tensors_of_every_kind_arrive_as_they_were() -> None:
    given = {
        "odd": torch.arange(7, dtype=torch.uint8).view(1, 7),
        "half": torch.randn(3, 5).half(),
        "turned": torch.randn(4, 6, 2).transpose(0, 1),
        "empty": torch.zeros(0, 3, dtype=torch.int32),
        "bfloat16": torch.randn(2, 3).bfloat16(),
    }
    found = brought(given, torch.device("cpu"))
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()


def test_nothing_can_be_brought() -> None:
    assert brought({}, torch.device("cpu")) == {}


def test_memory_that_is_not_pinned_is_read_before_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []

    class Watched(torch.Tensor):
        def to(self, *args: Any, non_blocking: bool = False, **named: Any) -> torch.Tensor:
            waits.append(not non_blocking)
            return super().to(*args, non_blocking=non_blocking, **named)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **named: empty(*size, **named).as_subclass(Watched))
    brought({"numbers": torch.arange(4)}, torch.device("meta"))  # a device to which nothing is copied at all
    assert waits == [True]
