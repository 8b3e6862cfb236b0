"""Hidden states that a forward keeps: those of the last token, whichever forward it is and however it is cut."""

from collections.abc import Sequence

import pytest
import torch
from architectures import VOCABULARY, make_lm
from transformers import PreTrainedModel

from gritrag.model.cache_names import cache_name
from gritrag.model.caches import CacheShape, PlacedCache
from gritrag.model.context import Context, Part
from gritrag.model.inputs import inputs
from gritrag.model.module_forward import ModuleForward
from gritrag.model.native_forward import NativeCache, NativeForward
from gritrag.model.placing import place
from gritrag.model.probes import probe
from gritrag.model.ragged import Row, ragged
from gritrag.model.state import DocumentState
from gritrag.model.step import SPARE_COLUMNS, Step
from gritrag.model.watched import Watched

LAYERS = (2, 1)
"""In the order in which they are asked for."""

CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.15, "rtol": 0.05}}
both_dtypes = pytest.mark.parametrize("dtype", list(CLOSE), ids=str)


def state_of(tokens: int, draw: torch.Generator) -> DocumentState:
    keys, values = (torch.randn(3, 2, tokens, 8, generator=draw) for _ in range(2))
    return DocumentState(keys, values, torch.randint(3, VOCABULARY, (tokens,), generator=draw), "causal")


def contexts() -> list[Context]:
    """States of different lengths, one with a relevance bias, and questions of different lengths."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(9, 0.0, 5), (4, 0.7, 8), (12, 0.0, 1)]
    asked = [(n, bias, torch.randint(3, VOCABULARY, (tokens,), generator=draw)) for n, bias, tokens in sizes]
    return [
        Context((Part(state_of(n, draw), relevance_bias=bias), Part(tuple(ids.tolist())))) for n, bias, ids in asked
    ]


def placed(lm: PreTrainedModel, own: Sequence[Context]) -> PlacedCache:
    shape = CacheShape(3, 2, 8, lm.dtype, torch.device("cpu"))
    cache = place(own, shape, probe(lm).rotation, 16 + SPARE_COLUMNS)
    cache.watched = Watched(LAYERS)
    return cache


def hidden_of(cache: PlacedCache) -> torch.Tensor:
    found = cache.end_watch()
    assert found is not None
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_they_are_those_of_transformers(architecture: str) -> None:
    """Of a whole text in its own forward."""
    lm = make_lm(architecture)
    forwards = [ModuleForward(lm), *([Step(lm)] if architecture == "llama" else [])]
    ids = torch.randint(3, VOCABULARY, (1, 11))
    with torch.inference_mode():
        own = lm(input_ids=ids, output_hidden_states=True).hidden_states
        for forward in forwards:
            heads = 2 if architecture != "gpt2" else own[0].shape[-1] // 8
            cache = PlacedCache(*(torch.zeros(len(own) - 1, 1, heads, 32, 8) for _ in range(2)), 0)
            cache.watched = Watched(LAYERS)
            forward.logits(ids, torch.arange(11)[None], None, cache)
            expected = torch.cat([own[passed][:, -1] for passed in LAYERS], dim=-1)
            torch.testing.assert_close(hidden_of(cache), expected, atol=1e-5, rtol=1e-4)


@both_dtypes
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_forwards_agree_in_a_batch_and_alone(architecture: str, dtype: torch.dtype) -> None:
    lm = make_lm(architecture).to(dtype)
    step, modules = Step(lm), ModuleForward(lm)
    with torch.inference_mode():
        found = []
        for forward in (modules, step):
            cache = placed(lm, contexts())
            given = inputs(contexts(), lm.device)
            forward.logits(given.ids, given.positions, given.mask, cache)
            found.append(hidden_of(cache))
            for row, context in enumerate(contexts()):
                cache = placed(lm, [context])
                given = inputs([context], lm.device)
                forward.logits(given.ids, given.positions, given.mask, cache, given.ids.shape[1])
                torch.testing.assert_close(hidden_of(cache)[0], found[-1][row], **CLOSE[dtype])
    torch.testing.assert_close(*found, **CLOSE[dtype])
    assert (found[0][0] - found[0][1]).abs().mean() > 0.3, "rows differ"


@both_dtypes
def test_a_ragged_forward_keeps_them_of_each_row(dtype: torch.dtype) -> None:
    """Of rows that end, of one that is cut, and beside rows that nothing is kept of."""
    lm = make_lm("llama").to(dtype)
    step, caches = Step(lm), [placed(lm, [context]) for context in contexts()]
    given = [inputs([context], lm.device) for context in contexts()]
    with torch.inference_mode():
        expected = []
        for context, each in zip(contexts(), given, strict=True):
            cache = placed(lm, [context])
            step.logits(each.ids, each.positions, each.mask, cache)
            expected.append(hidden_of(cache)[0])
        unwatched = placed(lm, [contexts()[0]])
        unwatched.watched = None
        first = Row(given[0].ids, given[0].positions, unwatched, 1)
        text = Row(torch.randint(3, VOCABULARY, (1, 6)), torch.arange(6)[None], None, 6)
        cut = [
            Row(given[1].ids[:, p], given[1].positions[:, p], caches[1], k)
            for p, k in ((slice(5), 0), (slice(5, 8), 1))
        ]
        ends = [Row(given[n].ids, given[n].positions, caches[n], 1) for n in (0, 2)]
        ragged(step, [first, cut[0], ends[0], text])
        ragged(step, [text, cut[1], ends[1]])
    assert unwatched.end_watch() is None
    for cache, own in zip(caches, expected, strict=True):
        torch.testing.assert_close(hidden_of(cache)[0], own, **CLOSE[dtype])


@pytest.mark.parametrize("kept_as", [cache_name(make_lm("llama")), ""])
def test_a_model_without_states_gives_them_too(kept_as: str) -> None:
    lm, ids = make_lm("llama"), torch.randint(3, VOCABULARY, (1, 7))
    cache = NativeCache()
    cache.watched = Watched(LAYERS)
    with torch.inference_mode():
        own = lm(input_ids=ids, output_hidden_states=True).hidden_states
        NativeForward(lm, kept_as, True).logits(ids, torch.arange(7)[None], None, cache)
    expected = torch.cat([own[passed][:, -1] for passed in LAYERS], dim=-1)
    torch.testing.assert_close(hidden_of(cache), expected, atol=1e-5, rtol=1e-4)


def test_a_forward_that_gives_none_leaves_none() -> None:
    cache = PlacedCache(*(torch.zeros(3, 1, 2, 4, 8) for _ in range(2)), 0)
    assert cache.end_watch() is None
    cache.watched = Watched((1, 2))
    cache.watched.see(1, torch.zeros(1, 1, 8))
    assert cache.end_watch() is None
    assert cache.watched is None


def test_what_is_kept_owns_its_memory() -> None:
    watched, hidden_BTD = Watched((1,)), torch.zeros(1, 1000, 8)
    watched.see(1, hidden_BTD)
    hidden_BTD += 1
    assert watched.hidden is not None
    assert watched.hidden.sum() == 0


@both_dtypes
def test_all_tokens_are_kept_however_a_question_is_cut(dtype: torch.dtype) -> None:
    """And those only that are still in the cache, where a forward has to be repeated."""
    lm = make_lm("llama").to(dtype)
    step, own = Step(lm), contexts()[:1]
    given = inputs(own, torch.device("cpu"))
    whole, cut = placed(lm, own), placed(lm, own)
    for cache in (whole, cut):
        cache.watched = Watched((), (1, 2), cache.length)
    with torch.inference_mode():
        step.logits(given.ids, given.positions, None, whole)
        for part, is_repeated in ((slice(0, 2), False), (slice(2, 5), True)):
            length = cut.length
            for _ in range(1 + is_repeated):
                cut.cut(length)
                row = Row(given.ids[:, part], given.positions[:, part], cut, 1)
                ragged(step, [Row(given.ids[:, 1:3], given.positions[:, 1:3], placed(lm, own), 1), row])
    assert whole.watched is not None
    assert cut.watched is not None
    expected, found = whole.watched.read(0, 5), cut.watched.read(0, 5)
    assert expected is not None
    assert found is not None
    assert cut.watched.hidden is None, "the last token was not asked for"
    for passed in (1, 2):
        torch.testing.assert_close(found[passed].float(), expected[passed].float(), **CLOSE[dtype])
    last = cut.watched.read(0, 3)
    assert last is not None
    assert all(torch.equal(last[passed], found[passed][2:]) for passed in (1, 2))
    assert cut.watched.read(0, 6) is None
    assert Watched((), (1,)).read(0, 0) is None, "no forward has been there"
