"""Laws of decoding: guessing changes no token and leaves no trace, and our own step is the model's forward."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCABULARY, WITH_STATES, make_lm
from peft import LoraConfig, inject_adapter_in_model
from transformers import PreTrainedTokenizerFast

from gritrag.config import CheckpointConfig
from gritrag.model import layers
from gritrag.model import step as step_module
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.decode import Decoding
from gritrag.model.grit import GritModel
from gritrag.model.lookup import FEW, Lookup
from gritrag.model.module_forward import ModuleForward
from gritrag.model.probes import probe
from gritrag.model.sampling import Sampling
from gritrag.model.step import Step

LLAMA_LIKE = ["llama", "llama-yarn", "llama-dynamic", "qwen2", "qwen3"]
TEXTS = ["the river", "a much longer text about a bridge over the river", "seven ferries cross at noon"]


def cache_of(rows: int, capacity: int) -> PlacedCache:
    return PlacedCache(*(torch.full((3, rows, 2, capacity, 8), torch.nan) for _ in range(2)), 0)


def random_prompt(seed: int) -> list[int]:
    """Some are noise, some repeat themselves, some are one token over and over."""
    draw = random.Random(seed)
    phrase = [draw.randrange(3, VOCABULARY) for _ in range(draw.choice([1, 3, 7, 40]))]
    return (phrase * 20)[: draw.randrange(8, 60)]


def run(model: GritModel, contexts: list[Context], **sampling: object) -> tuple[Decoding, PlacedCache, list[str]]:
    """A finished run, its cache and its pieces."""
    options = Sampling.of(sampling)
    cache = model.decoder.place(contexts, options)
    decoding = model.decoder.decode_placed(cache, contexts, options)
    pieces = [pieces[0] for pieces in decoding]
    return decoding, cache, pieces


# --- the step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", LLAMA_LIKE)
@pytest.mark.parametrize("cuts", [(12,), (1, 12), (5, 6, 12), (11, 12)])
def test_the_step_equals_the_forward_wherever_it_goes_on(architecture: str, cuts: tuple[int, ...]) -> None:
    lm = make_lm(architecture)
    ids, positions = torch.randint(3, VOCABULARY, (2, 12)), torch.arange(12).expand(2, -1)
    cache, logits = cache_of(2, 12), []
    with torch.inference_mode():
        for start, end in zip((0, *cuts), cuts, strict=False):
            part = slice(start, end)
            logits.append(Step(lm).logits(ids[:, part], positions[:, part], None, cache, end - start))
        expected = lm(input_ids=ids).logits
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-4, rtol=0)
    assert cache.length == 12


@pytest.mark.parametrize("keep", [1, 2, 5])
@pytest.mark.parametrize("rows", [layers.GROUPED_ROWS, 0])
def test_masks_and_fewer_kept_positions(keep: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rows`: with query heads grouped, and without."""
    monkeypatch.setattr(layers, "GROUPED_ROWS", rows)
    lm = make_lm("qwen3")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 10), generator=generator)
    padded = torch.ones(3, 10, dtype=torch.bool)
    padded[1, :3] = padded[2, :1] = False
    whole = torch.ones_like(padded)
    arbitrary = torch.rand(3, 1, 5, 10, generator=generator) < 0.5
    arbitrary |= torch.eye(10, dtype=torch.bool)[5:]
    for is_real, mask in ((whole, None), (padded, padded), (whole, arbitrary)):
        positions, found = (is_real.cumsum(1) - 1).clamp_min(0), []
        with torch.inference_mode():
            for forward in (Step(lm), ModuleForward(lm)):
                cache = cache_of(3, 10)
                forward.logits(ids[:, :5], positions[:, :5], is_real[:, :5], cache)
                found.append(forward.logits(ids[:, 5:], positions[:, 5:], mask, cache, keep))
        assert found[0].shape == (3, keep, VOCABULARY)
        torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_what_is_read_by_the_step_is_what_the_modules_read(make_model: Callable[..., GritModel]) -> None:
    model = make_model("qwen3")
    by_step = model.read_documents(TEXTS)
    assert model.step is not None
    model.forwards.drop_step()
    for own, modules in zip(by_step, model.read_documents(TEXTS), strict=True):
        torch.testing.assert_close(torch.tensor(own.vector), torch.tensor(modules.vector), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.state.keys, modules.state.keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_step_is_used_where_it_is_proved_and_nowhere_else(architecture: str) -> None:
    assert (probe(make_lm(architecture)).step is not None) == (architecture in LLAMA_LIKE)


def test_a_model_that_only_looks_like_llama_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama")
    forward = type(lm.model.layers[0].self_attn).forward
    monkeypatch.setattr(
        type(lm.model.layers[0].self_attn),
        "forward",
        lambda self, *args, **kwargs: (forward(self, *args, **kwargs)[0] * 1.01, None),
    )
    found = probe(lm)
    assert found.step is None
    assert found.probes[3].outcome == "falls back"
    assert "off by" in found.probes[3].detail


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [2, step_module.STEP_TOKENS])
def test_a_token_comes_out_the_same_alone_and_among_others(dtype: torch.dtype, size: int) -> None:
    """To the bit, on both sides of where steps begin to see more columns, and whatever was rejected before."""
    lm = make_lm("qwen3").to(dtype)
    step, tokens, capacity = Step(lm), 90, 90 + step_module.SPARE_COLUMNS
    ids = torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(3))
    logits = []
    with torch.inference_mode():
        for most in (1, size):
            cache, found = PlacedCache(*(torch.zeros(3, 1, 2, capacity, 8, dtype=dtype) for _ in range(2)), 0), []
            step.logits(ids[:, :41], torch.arange(41)[None], None, cache)
            while (start := cache.length) < tokens:
                if most > 1:  # what is rejected is forgotten
                    step.next_logits(ids[:, :1], torch.tensor([[start]]), None, cache)
                    cache.cut(start)
                run = slice(start, start + min(most, step.most_tokens(cache), tokens - start))
                found.append(step.next_logits(ids[:, run], torch.arange(tokens)[None, run], None, cache))
            logits.append(torch.cat(found, dim=1))
        expected = lm(input_ids=ids).logits[:, 41:].float()
    assert torch.equal(*logits)
    assert float((logits[0] - expected).norm() / expected.norm()) < 0.05


def test_an_adapter_put_in_later_is_heard(
    make_model: Callable[..., GritModel], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama")
    before = model.generate("the river", max_new_tokens=8)
    model.lm.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), model.lm)
    assert model.step is None
    assert model.step is None
    assert [record.message for record in caplog.records if "slow forward" in record.message] == caplog.messages[-1:]
    ids = model.prompts.prompt_ids("the river")
    expected = model.lm.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert model.generate("the river", max_new_tokens=8) == model.tokenizer.decode(expected) != before


def test_weights_that_change_in_place_are_the_weights_that_are_used(make_model: Callable[..., GritModel]) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm.model.layers[1].mlp.up_proj.weight.mul_(-3)
    ids = model.prompts.prompt_ids("the river")
    expected = model.lm.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert model.step is not None
    assert model.decoder.complete([ids], Sampling(max_new_tokens=8))[0].token_ids == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_answer_does_not_depend_on_how_long_it_may_become(
    dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 attention is given whole caches, and sums over more columns may be rounded otherwise."""
    model = GritModel(make_lm("llama").to(dtype), tokenizer, CheckpointConfig())
    seen: list[tuple[int, int]] = []
    update = PlacedCache.update

    def watched(self: PlacedCache, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = update(self, *args, **kwargs)
        seen.append((key.shape[2], self.capacity))
        return key, value

    monkeypatch.setattr(PlacedCache, "update", watched)
    state = model.read_documents(["the river runs past the old mill"])[0].state
    context = Context.of(state, [7, 8, 9, 10, 11] * 38)  # with 100 more it would not fit into as many columns
    answers, sizes = [], set[int]()
    for most in (4, 8, 100):
        seen.clear()
        answers.append(run(model, [context], max_new_tokens=most, lookup=False)[0].completions[0].token_ids)
        sizes |= {capacity for _, capacity in seen}
        assert dtype == torch.float32 or {columns for columns, _ in seen} >= {capacity for _, capacity in seen}
    assert len(sizes) == (1 if dtype == torch.bfloat16 else 3)
    assert answers[2][:8] == answers[1]
    assert answers[1][:4] == answers[0]


# --- guessing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITH_STATES)
def test_guessing_changes_no_token_and_no_text(architecture: str, make_model: Callable[..., GritModel]) -> None:
    model = make_model(architecture)
    for seed in range(8):
        contexts = [Context.of(random_prompt(seed))]
        plain, _, _ = run(model, contexts, max_new_tokens=40, lookup=False)
        guessed, _, pieces = run(model, contexts, max_new_tokens=40, lookup=True)
        assert guessed.completions == plain.completions
        assert "".join(pieces) == plain.completions[0].text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", LLAMA_LIKE)
def test_guessing_changes_no_token_in_16_bits_either(
    architecture: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it is the default as well."""
    learnt: list[int] = []
    learn = Lookup.learn
    monkeypatch.setattr(Lookup, "learn", lambda self, *counts: (learnt.append(counts[1]), learn(self, *counts))[1])
    model = GritModel(make_lm(architecture).to(dtype), tokenizer, CheckpointConfig())
    states = [reading.state for reading in model.read_documents(TEXTS)] if model.rotation else []
    for seed in range(6):
        contexts = [Context.of(*states, random_prompt(seed))]
        plain, _, _ = run(model, contexts, max_new_tokens=40, lookup=False)
        guessed, _, _ = run(model, contexts, max_new_tokens=40)
        assert guessed.completions == plain.completions
    assert any(learnt)


def test_guesses_are_made_and_come_true(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above would be empty without right guesses and wrong ones, so there must be both."""
    learnt: list[tuple[int, int]] = []
    learn = Lookup.learn
    monkeypatch.setattr(Lookup, "learn", lambda self, *counts: (learnt.append(counts), learn(self, *counts))[1])
    for seed in range(8):
        run(tiny_model, [Context.of(random_prompt(seed))], max_new_tokens=40)
    assert any(right > 0 for _, right in learnt)
    assert any(right < guessed for guessed, right in learnt)


def wrong_half_the_time(answer: list[int], seed: int) -> Callable[[Lookup, int], list[int]]:
    """Guesses that begin right and go wrong somewhere, or not at all."""
    draw = random.Random(seed)

    def guess(lookup: Lookup, most: int) -> list[int]:
        done = next(n for n in range(len(answer), -1, -1) if lookup._ids[len(lookup._ids) - n :] == answer[:n])
        found = answer[done : done + min(most, 6)]
        if found and draw.random() < 0.5:
            found[draw.randrange(len(found))] = draw.randrange(3, VOCABULARY)
        return found

    return guess


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_rejected_tokens_leave_no_trace(
    architecture: str, make_model: Callable[..., GritModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(architecture)
    contexts = [Context.of(model.prompts.prompt_ids(TEXTS[1]))]
    plain, expected, _ = run(model, contexts, max_new_tokens=24, lookup=False)
    for seed in range(6):
        monkeypatch.setattr(Lookup, "guess", wrong_half_the_time(plain.completions[0].token_ids, seed))
        guessed, cache, _ = run(model, contexts, max_new_tokens=24, lookup=True)
        assert guessed.completions == plain.completions
        assert cache.length == expected.length
        for own, other in zip(cache.buffers, expected.buffers, strict=True):
            torch.testing.assert_close(
                own[:, :, :, : cache.length], other[:, :, :, : cache.length], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("length", range(1, 12))
def test_a_stop_inside_a_right_guess_ends_the_text_there(
    length: int, tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [Context.of(tiny_model.prompts.prompt_ids(TEXTS[1]))]
    whole, _, _ = run(tiny_model, contexts, max_new_tokens=24, lookup=False)
    answer, text = whole.completions[0].token_ids, whole.completions[0].text
    stop = text[length : length + 3]
    plain, expected, _ = run(tiny_model, contexts, max_new_tokens=24, stop=stop, lookup=False)
    monkeypatch.setattr(Lookup, "guess", lambda self, most: answer[len(self._ids) - len(contexts[0]) :][:most])
    guessed, cache, pieces = run(tiny_model, contexts, max_new_tokens=24, stop=stop)
    assert guessed.completions == plain.completions
    assert "".join(pieces) == plain.completions[0].text == text[: text.index(stop)]
    assert cache.length == expected.length


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_never_more_tokens_than_asked_for(most: int, tiny_model: GritModel) -> None:
    prompt = [[7, 8, 9] * 12]
    (completion,) = tiny_model.decoder.complete(prompt, Sampling(max_new_tokens=most))
    assert completion == tiny_model.decoder.complete(prompt, Sampling(max_new_tokens=most, lookup=False))[0]
    assert len(completion.token_ids) <= most


def test_only_one_greedy_text_is_guessed(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Lookup, most: int) -> list[int]:
        raise AssertionError("nothing may be guessed here")

    monkeypatch.setattr(Lookup, "guess", refuse)
    prompt = [7, 8, 9] * 6
    tiny_model.decoder.complete([prompt, prompt], Sampling(max_new_tokens=4))
    tiny_model.decoder.complete([prompt], Sampling(max_new_tokens=4, temperature=1.0, seed=1))
    tiny_model.decoder.complete([prompt], Sampling(max_new_tokens=4, repetition_penalty=1.2))
    with pytest.raises(AssertionError, match="nothing may be guessed"):
        tiny_model.decoder.complete([prompt], Sampling(max_new_tokens=4))


def test_after_states_too(make_model: Callable[..., GritModel]) -> None:
    model = make_model("qwen3")
    states = [reading.state for reading in model.read_documents(TEXTS)]
    contexts = [Context.of(*states, states[1].token_ids.tolist()[:12])]
    plain, _, _ = run(model, contexts, max_new_tokens=32, lookup=False)
    guessed, _, _ = run(model, contexts, max_new_tokens=32, lookup=True)
    model.forwards.drop_step()
    by_modules, _, _ = run(model, contexts, max_new_tokens=32, lookup=False)
    assert guessed.completions == plain.completions == by_modules.completions


def test_a_guess_is_what_followed_the_same_tokens_last() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 8], words=9)
    assert lookup.guess(5) == []
    lookup.extend([1, 2, 3])
    assert lookup.guess(5) == [7, 8, 1, 2, 3]
    assert lookup.guess(1) == [7]
    lookup.extend([4])  # not what followed last, but the longer run decides
    assert lookup.guess(2) == [5, 6]


def test_a_soft_token_is_never_guessed() -> None:
    lookup = Lookup([1, 2, 3, 9, 4, 5, 6, 1, 2], words=9)
    assert lookup.guess(5) == [3]
    lookup.extend([3])
    assert lookup.guess(5) == []


def test_wrong_guesses_make_careful() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], words=10)
    bold = len(lookup.guess(10))
    lookup.learn(bold, 0)
    assert bold > FEW == len(lookup.guess(10))  # a run of three is no longer enough for more
    lookup.learn(FEW, 0)  # what costs hardly anything need not be right
    assert len(lookup.guess(10)) == FEW
    lookup.learn(FEW, FEW)
    assert FEW < len(lookup.guess(10)) <= bold
