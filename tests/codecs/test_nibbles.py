"""Nibbles are unpacked alike by the kernel for processors and by what runs on every device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritrag.codecs import get_codec, int4, integers, nibbles


@given(rows=st.integers(0, 5), count=st.integers(1, 33), seed=st.integers(0, 99))
def test_shifts_unpack_what_the_kernel_unpacks(rows: int, count: int, seed: int) -> None:
    numbers = torch.randint(0, 16, (rows, count), generator=torch.Generator().manual_seed(seed))
    packed = nibbles.pack(numbers, step=0.25, zero=-7.5)
    assert torch.equal(nibbles.unpack_by_shifts(packed, count), -7.5 + 0.25 * numbers.float())
    if rows:
        assert torch.equal(nibbles.unpack(packed, count), nibbles.unpack_by_shifts(packed, count))


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_state_unpacks_alike_in_runs_and_as_a_gpu_unpacks_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    codec = get_codec(name)
    packed = codec.pack(*torch.randn(2, 4, 2, 150, 16, generator=draw))
    monkeypatch.setattr(integers, "RUN", 2 * 149 * 16)  # layer by layer
    in_runs = codec.unpack(packed)
    monkeypatch.setattr(integers, "RUN", 10**9)
    monkeypatch.setattr(nibbles, "unpack", nibbles.unpack_by_shifts)
    monkeypatch.setattr(int4, "add_one_by_one", int4.add_at_once)
    at_once = codec.unpack(packed)
    for one, other in zip(in_runs, at_once, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
