"""Reading again: all of it is an ordinary forward; some of it changes those tokens only, and nothing that is stored."""

import math
from collections.abc import Callable

import pytest
import torch
from architectures import MOVABLE

from gritrag.model.cache_names import given_cache
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.module_forward import ModuleForward
from gritrag.model.recompute import FIRST_TOKENS, choosing_layers
from gritrag.model.reread_modules import AttentionObserver, attention_of
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState

TEXTS = ["the river", "a much longer text about a bridge over the river", "short", "nobody crosses it in the winter"]
FULL = [name for name in MOVABLE if name not in ("mistral", "gemma3")]
SAMPLING = Sampling(max_new_tokens=12)


def context_of(model: GritModel, texts: list[str]) -> Context:
    states = [reading.state for reading in model.read_documents(texts)]
    return Context.of(*states, model.prompts.question_ids("who crosses the bridge?", has_documents=True))


def whole_keys(model: GritModel, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all cached tokens from one ordinary forward."""
    ids = torch.tensor([context.token_ids[: context.cached_tokens]])
    cache = model.decoder.place([Context.of(ids[0].tolist())], SAMPLING)
    with torch.inference_mode():
        ModuleForward(model.lm).logits(ids, torch.arange(ids.shape[1])[None], None, cache)
    keys, values = cache.buffers
    return keys[:, 0, :, : context.cached_tokens], values[:, 0, :, : context.cached_tokens]


def placed(cache: PlacedCache, row: int, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    gap = cache.length - context.cached_tokens
    keys, values = cache.buffers
    return keys[:, row, :, gap : cache.length], values[:, row, :, gap : cache.length]


@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
@pytest.mark.parametrize("architecture", FULL)
def test_everything_read_again_is_an_ordinary_forward(
    architecture: str, reading: str, make_model: Callable[..., GritModel]
) -> None:
    """Of every row of a batch, whatever its length."""
    model = make_model(architecture, reading=reading)
    contexts = [context_of(model, TEXTS[:3]), context_of(model, TEXTS[1:2]), context_of(model, TEXTS[::-1])]
    cache = model.decoder.place(contexts, SAMPLING)
    assert model.decoder.recompute(cache, contexts, 1.0) == [context.cached_tokens for context in contexts]
    for row, context in enumerate(contexts):
        for got, want in zip(placed(cache, row, context), whole_keys(model, context), strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    decoding = model.decoder.decode_placed(cache, contexts, SAMPLING)
    list(decoding)
    for context, completion in zip(contexts, decoding.completions, strict=True):
        assert completion.token_ids == model.decoder.complete([context.token_ids], SAMPLING)[0].token_ids


@pytest.mark.parametrize("architecture", ["llama", "phi"])
def test_some_read_again_are_those_that_the_question_attends_to_and_no_others_change(
    architecture: str, make_model: Callable[..., GritModel]
) -> None:
    model = make_model(architecture)
    context = context_of(model, TEXTS)
    stored = [(placed.state.keys.clone(), placed.state.values.clone()) for placed in context.states]
    before, cache = (model.decoder.place([context], SAMPLING) for _ in range(2))
    (count,) = model.decoder.recompute(cache, [context], 0.25)
    assert count == -(-context.cached_tokens // 4)
    values, old = (placed(each, 0, context)[1] for each in (cache, before))
    is_changed_C = (values - old).abs().sum(dim=(0, 1, 3)) > 0
    assert 0 < is_changed_C.sum() <= count
    first = len(context.states[0].state)
    assert not is_changed_C[:first].any(), "the first document has seen all that it could"
    weights_C = attention_by_hand(model, context)
    weights_C[firsts_of(context)] = math.inf
    weights_C[:first] = -1
    assert set(is_changed_C.nonzero().flatten().tolist()) <= set(weights_C.topk(count).indices.tolist())
    for state, (keys, held) in zip((placed.state for placed in context.states), stored, strict=True):
        assert torch.equal(state.keys, keys)
        assert torch.equal(state.values, held)


def firsts_of(context: Context) -> torch.Tensor:
    """Whether a column holds one of the first tokens of its document."""
    return torch.cat([torch.arange(len(placed.state)) < FIRST_TOKENS for placed in context.states])


@pytest.mark.parametrize("each", [1, 2, FIRST_TOKENS])
def test_the_first_tokens_of_every_document_come_before_all_others(each: int, tiny_model: GritModel) -> None:
    """Of few, the very first of each; the question need not be read for that."""
    context = context_of(tiny_model, TEXTS)
    before, cache = (tiny_model.decoder.place([context], SAMPLING) for _ in range(2))
    count = each * (len(TEXTS) - 1)
    assert tiny_model.decoder.recompute(cache, [context], (count - 0.5) / context.cached_tokens) == [count]
    changed_C = (placed(cache, 0, context)[1] - placed(before, 0, context)[1]).abs().sum(dim=(0, 1, 3)) > 0
    places_C = torch.cat([torch.arange(len(placed.state)) for placed in context.states])
    chosen_C = places_C < each
    chosen_C[: len(context.states[0].state)] = False
    assert 0 < changed_C.sum() <= count
    assert not changed_C[~chosen_C].any()


def attention_by_hand(model: GritModel, context: Context) -> torch.Tensor:
    """What eager attention of transformers gives away in the middle layers, summed over everything but columns."""
    cache = model.decoder.place([context], SAMPLING)
    lm = model.lm
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            output = lm(
                input_ids=torch.tensor([context.fresh_ids]),
                position_ids=torch.tensor([context.fresh_positions]),
                **given_cache(lm, cache),
                use_cache=True,
                output_attentions=True,
            )
    finally:
        lm.set_attn_implementation(before)
    counted = (output.attentions[number] for number in choosing_layers(len(output.attentions)))
    return sum(layer.float().sum(dim=(0, 1, 2)) for layer in counted)[: context.cached_tokens]


def test_nothing_to_choose_from_changes_nothing(tiny_model: GritModel) -> None:
    contexts = [Context.of([1, 2, 3]), context_of(tiny_model, TEXTS[:2])]
    cache = tiny_model.decoder.place(contexts, SAMPLING)
    assert tiny_model.decoder.recompute(cache, contexts, 0.5)[0] == 0


@pytest.mark.parametrize("is_grouped", [True, False])
@pytest.mark.parametrize("mask", ["causal", "none", "bool", "float"])
def test_observed_attention_is_what_values_are_weighed_by(is_grouped: bool, mask: str) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = 7 if mask == "causal" else 3
    query = torch.randn(2, 4, tokens, 8, generator=draw)
    key, value = (torch.randn(2, 2 if is_grouped else 4, 7, 8, generator=draw) for _ in "kv")
    hidden = torch.rand(2, 1, tokens, 7, generator=draw) > 0.3
    hidden[..., 0] = True
    masks = {"bool": hidden, "float": torch.randn(2, 1, tokens, 7, generator=draw)}
    told = {"attn_mask": masks.get(mask), "is_causal": mask == "causal", "scale": 0.3, "enable_gqa": is_grouped}
    with AttentionObserver(5) as observer:
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, **told)
    attention = attention_of(query, key, value, **told)
    torch.testing.assert_close(attention @ value.repeat_interleave(4 // value.shape[1], dim=1), mixed)
    torch.testing.assert_close(observer.calls, [attention[..., :5].sum(dim=(0, 1, 2))])


def test_a_first_document_that_lost_bits_may_be_read_again(tiny_model: GritModel) -> None:
    """What a codec has rounded is as it was computed, once it is read again."""
    context = context_of(tiny_model, TEXTS[:1])
    rough = DocumentState(
        *(t.round(decimals=1) for t in (context.states[0].state.keys, context.states[0].state.values)),
        context.states[0].state.token_ids,
        "causal",
        is_lossless=False,
    )
    contexts = [Context.of(rough, context.fresh_ids)]
    cache = tiny_model.decoder.place(contexts, SAMPLING)
    off = (placed(cache, 0, contexts[0])[1] - whole_keys(tiny_model, contexts[0])[1]).abs().max()
    tiny_model.decoder.recompute(cache, contexts, 1.0)
    torch.testing.assert_close(
        placed(cache, 0, contexts[0])[1], whole_keys(tiny_model, contexts[0])[1], atol=1e-5, rtol=1e-4
    )
    assert off > 1e-3
