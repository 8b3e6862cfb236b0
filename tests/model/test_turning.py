"""LongRoPE: a text that grows beyond the turning point is read as a long one from its first token on."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ROTARY, make_tokenizer
from causal_lms import here, tiny_config
from likelihoods import check_as_read_in_full
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig

from gritrag import RAG, Document, Index
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.module_forward import MOST_TOKENS
from gritrag.model.probes import probe
from gritrag.model.sampling import Sampling
from gritrag.model.turning import choose_in_turn, turning_point

TURN = 60
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 6.0, 9.0],
    "original_max_position_embeddings": TURN,
}
NEW_TOKENS = 12
BEFORE = {"ends before": TURN - NEW_TOKENS - 1, "turns at the end": TURN - 1, "turns at once": TURN}
LENGTHS = {**BEFORE, "turns within": TURN - 5, "in the question": TURN + 6, "far behind": TURN + 40}


def longrope_config(architecture: str) -> PreTrainedConfig:
    if architecture == "minicpm3":  # keeps no states
        config = tiny_config("minicpm3")
        config.rope_parameters = {**LONG_ROPE, "partial_rotary_factor": 1.0, "factor": 8.0}
        return config
    made = {"phi3": Phi3Config, "llama": LlamaConfig}[architecture]
    return made(**ROTARY, rope_parameters=dict(LONG_ROPE), original_max_position_embeddings=TURN)


def longrope(architecture: str) -> GritModel:
    torch.manual_seed(0)
    return GritModel(AutoModelForCausalLM.from_config(longrope_config(architecture)).eval(), make_tokenizer())


def ids_of(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def reread(model: GritModel, ids: list[int], count: int = NEW_TOKENS) -> list[int]:
    """What comes next, all of the text read again for every token."""
    read = list(ids)
    for _ in range(count):
        read.append(int(model.lm(input_ids=torch.tensor([read])).logits[0, -1].argmax()))
    return read[len(ids) :]


def said(model: GritModel, *contexts: Context, lookup: bool = False) -> list[list[int]]:
    decoding = model.decoder.decode(contexts, Sampling(max_new_tokens=NEW_TOKENS, lookup=lookup))
    list(decoding)
    return [completion.token_ids for completion in decoding.completions]


def agrees(tokens: list[int], again: list[int]) -> bool:
    return bool(tokens) and tokens == again[: len(tokens)]


def test_the_turning_point_is_that_of_the_config() -> None:
    assert turning_point(AutoModelForCausalLM.from_config(longrope_config("phi3"))) == TURN
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**ROTARY))
    assert turning_point(plain) is None


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("architecture", here("phi3", "llama", "minicpm3"))
def test_text_goes_on_as_if_it_were_read_again(architecture: str, length: int, lookup: bool) -> None:
    model = longrope(architecture)
    ids = ids_of(6) * (length // 6) + ids_of(length % 6)
    assert agrees(*said(model, Context.of(ids), lookup=lookup), reread(model, ids))


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_a_state_is_of_use_only_in_a_text_of_its_kind(architecture: str, length: int) -> None:
    model = longrope(architecture)
    (reading,) = model.read_documents(["the old bridge over the river"])
    assert len(reading.state) < TURN - NEW_TOKENS - 1
    question = ids_of(length - len(reading.state))
    context = model.decoder.usable(Context.of(reading.state, question))
    assert context.cached_tokens == (len(reading.state) if length <= TURN else 0)
    (tokens,) = said(model, context)
    assert agrees(tokens, reread(model, context.token_ids))
    (long,) = model.read_documents(["the old bridge over the river " * 3])
    assert len(long.state) > TURN
    context = model.decoder.usable(Context.of(long.state, ids_of(9)))
    assert context.cached_tokens == len(long.state)
    assert agrees(*said(model, context), reread(model, context.token_ids))


def test_texts_of_a_batch_are_as_they_are_alone() -> None:
    model = longrope("phi3")
    (reading,) = model.read_documents(["the old bridge"])
    contexts = [Context.of(ids_of(length, length)) for length in LENGTHS.values()]
    contexts += [Context.of(reading.state, ids_of(length - len(reading.state))) for length in LENGTHS.values()]
    for context, tokens in zip(contexts, said(model, *contexts), strict=True):
        assert agrees(tokens, reread(model, context.token_ids))


def test_a_document_is_read_as_it_is_alone() -> None:
    """In a batch in which one is long, transformers gives all of them the angles of long texts."""
    model = longrope("phi3")
    texts = ["the old bridge over the river", "seven boats lie at the landing stage of the old mill, and nobody knows"]
    assert [len(each.ids) > TURN for each in model.prompts.documents(texts)] == [False, True]
    for text, vector, reading in zip(texts, model.encode_document(texts), model.read_documents(texts), strict=True):
        (alone,) = model.read_documents([text])
        np.testing.assert_allclose(vector, alone.vector, atol=1e-5)
        torch.testing.assert_close(reading.state.keys, alone.state.keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("words", [1, 5, 30])
def test_a_question_is_as_probable_as_behind_the_text(words: int) -> None:
    texts = ["the old bridge " * words, "a mill"]
    check_as_read_in_full(longrope("phi3"), texts, "where do the seven boats lie in the winter?")


@pytest.mark.parametrize("architecture", here("phi3", "llama", "minicpm3"))
def test_a_prompt_read_in_pieces_is_the_same_prompt(architecture: str) -> None:
    """As a server reads it."""
    model = longrope(architecture)
    ids = ids_of(TURN + 30)
    cache = model.decoder.place([Context.of(ids)], Sampling(max_new_tokens=1))
    forward = probe(model.lm).native or model.forwards.best
    with torch.inference_mode():
        for start in range(0, len(ids), 25):
            piece = torch.tensor([ids[start : start + 25]])
            positions = torch.arange(start, start + piece.shape[1])[None]
            logits = forward.logits(piece, positions, None, cache)
        want = model.lm(input_ids=torch.tensor([ids])).logits[0, -1:]
        torch.testing.assert_close(logits[0], want, atol=1e-4, rtol=1e-4)


def test_no_step_reaches_over_the_turning_point() -> None:
    """Else its first tokens would come out otherwise than one by one."""
    model = longrope("phi3")
    found = []
    for length in (TURN - MOST_TOKENS, TURN - 3, TURN, TURN + 9):
        cache = model.decoder.place([Context.of(ids_of(length))], Sampling(max_new_tokens=1))
        cache.cut(0)
        cache.advance(length)
        found.append(model.forwards.best.most_tokens(cache))
    assert found == [MOST_TOKENS, 3, MOST_TOKENS, MOST_TOKENS]


def test_an_exact_answer_is_that_from_text(tmp_path: Path) -> None:
    model = longrope("phi3")
    document = Document("the old bridge", id="bridge")
    question = "who crosses it? " * 3
    with Index.create(tmp_path / "index", model=model) as index:
        index.add([document])
        answers = [
            RAG(index, mode=mode).ask(question, documents=[document], max_new_tokens=NEW_TOKENS)
            for mode in ("doc-cache", "doc-query")
        ]
    assert answers[0].exact
    assert answers[0].text == answers[1].text
    assert answers[0].usage.cached_tokens == 0, "the question is longer than the turning point"


def test_threads_do_not_change_the_angles_of_each_other() -> None:
    """The module of transformers holds what it chose last, here until another thread has chosen too."""

    class Rotary(torch.nn.Module):
        rope_type = "longrope"

        def forward(self, chosen: int) -> int:
            self.chosen = chosen
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.5)
            return self.chosen

    both = threading.Barrier(2)
    lm = torch.nn.Sequential(Rotary())
    for _ in range(2):
        choose_in_turn(lm)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lm[0], [1, 2])) == [1, 2]
    assert copy.deepcopy(lm)[0](3) == 3


def test_a_model_chooses_its_angles_in_turn() -> None:
    rotary = longrope("phi3").lm.model.rotary_emb
    assert type(rotary).chooses_in_turn
