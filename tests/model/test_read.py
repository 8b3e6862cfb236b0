"""The read pass by our own step: prompts of many tokens are padded to few shapes, and nobody sees it."""

import pytest
import torch
from architectures import VOCABULARY, make_lm

from gritrag.model import step as module
from gritrag.model.caches import RecordingCache
from gritrag.model.probes import probe
from gritrag.model.step import READ_BLOCK, Step


@pytest.mark.parametrize("shape", [(3, 90), (1, 96), (2, 7)], ids=str)
def test_padding_changes_neither_vectors_nor_states(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_TOKENS", 64)
    lm = make_lm("llama").to(torch.bfloat16)
    step, rotation = Step(lm), probe(lm).rotation
    ids_BT = torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    widths: list[int] = []
    embed = step.embed
    monkeypatch.setattr(step, "embed", lambda ids: widths.append(ids.shape[1]) or embed(ids))
    with torch.inference_mode():
        padded, bare = RecordingCache(), RecordingCache()
        found = step.read(ids_BT, padded)
        positions_BT = torch.arange(shape[1]).expand(shape)
        expected = step.hidden(ids_BT, positions_BT, None, bare, shape[1])
    assert widths[0] == (-(-shape[1] // READ_BLOCK) * READ_BLOCK if shape[0] * shape[1] >= 64 else shape[1])
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    rows = ids_BT.tolist()
    for one, other in zip(padded.states(rotation, rows, "causal"), bare.states(rotation, rows, "causal"), strict=True):
        assert len(one) == len(other) == shape[1]
        torch.testing.assert_close(one.keys, other.keys, atol=0.05, rtol=0.05)
        torch.testing.assert_close(one.values, other.values, atol=0.05, rtol=0.05)
