"""Claims about the real 135M model: what it answers from states is what it answers from text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gritrag import RAG, GritModel, Hit, Index
from gritrag.corpus import documents, questions
from gritrag.model.context import Context
from gritrag.model.names import BUILT_IN, locate
from gritrag.model.sampling import Sampling

COUNT = 6


@pytest.fixture(scope="module")
def index(real_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index.create(tmp_path_factory.mktemp("real") / "index", model=real_model, states="float32") as index:
        index.add(documents()[:COUNT])
        yield index


def test_its_probes_pass(real_model: GritModel) -> None:
    assert [probe.outcome for probe in real_model.probes] == ["works"] * 4


def test_one_document_is_answered_token_for_token_as_uncached(real_model: GritModel, index: Index) -> None:
    for question in questions()[:COUNT]:
        hits = [Hit(document, 1.0, 1) for document in index.get([question.document_id])]
        cached, uncached = (
            RAG(index, mode=mode).ask(question.question, hits=hits, max_new_tokens=16)
            for mode in ("doc-cache", "doc-query")
        )
        assert cached.text == uncached.text
        assert cached.exact
        assert cached.usage.prompt_tokens == uncached.usage.prompt_tokens
        assert cached.usage.cached_tokens == len(real_model.document_token_ids(hits[0].document))


def test_padding_and_company_change_no_vector(real_model: GritModel) -> None:
    texts = [document.content for document in documents()[:4]] + ["One short line."]
    together = real_model.encode_document(texts)
    alone = np.concatenate([real_model.encode_document([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_greedy_text_is_that_of_transformers(real_model: GritModel) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = real_model.prompts.prompt_ids(chat)
    rendered = real_model.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == rendered
    generated = real_model.lm.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    text = real_model.tokenizer.decode(generated, skip_special_tokens=True)
    assert real_model.generate(chat, max_new_tokens=12) == text
    assert "Paris" in text


@pytest.mark.parametrize("chat", ["Say 'one two three four five' four times.", "Tell me about bridges.", "2 + 2 ="])
def test_guessed_tokens_are_those_of_transformers(real_model: GritModel, chat: str) -> None:
    ids = real_model.prompts.prompt_ids([{"role": "user", "content": chat}])
    expected = real_model.lm.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    for lookup in (True, False):
        (completion,) = real_model.decoder.complete([ids], Sampling(max_new_tokens=24, lookup=lookup))
        assert completion.token_ids == expected


def test_gguf_file_package_and_built_in_name_are_the_same_model(real_model: GritModel) -> None:
    file = locate("smollm2-135m")
    assert file == locate(BUILT_IN["smollm2-135m"].package)
    assert file.suffix == ".gguf"
    model = GritModel.from_pretrained(file, dtype="float32")
    assert model.fingerprint == real_model.fingerprint


def test_words_find_their_documents(index: Index) -> None:
    found = [index.search(q.question, 1, mode="hybrid")[0].document.id == q.document_id for q in questions()[:COUNT]]
    assert sum(found) >= COUNT - 2


@pytest.fixture(scope="module")
def bf16_model() -> GritModel:
    return GritModel.from_pretrained(dtype="bfloat16", device="cpu")


def test_the_step_is_used_in_bfloat16(bf16_model: GritModel) -> None:
    """Its activations reach 23,000: whole forwards in bfloat16 differ by more than a wrong layer does."""
    assert bf16_model.probes[3].outcome == "works", bf16_model.probes[3].detail
    assert bf16_model.step is not None
    assert bf16_model.step.guesses_freely


def test_lookup_changes_no_token_in_bfloat16(bf16_model: GritModel) -> None:
    """Six contexts: with states and without, going on with what stands in the context and in words of the model's.

    More would take minutes where bfloat16 is computed without instructions for it.
    """
    pool, asked = documents(), questions()
    states = [reading.state for reading in bf16_model.read_documents(pool[:COUNT])]
    own, quoted = "Once upon a time, in a village that no road led to,", pool[0].content[: len(pool[0].content) // 2]
    ids = [bf16_model.prompts.encoder.content_ids(text) for text in (own, quoted)]
    ids.append(bf16_model.prompts.question_ids(asked[0].question, has_documents=True))
    contexts = [context for each in ids for context in (Context.of(each), Context.of(*states, each))]
    saved = 0
    for context in contexts:
        runs = []
        for lookup in (False, None):
            decoding = bf16_model.decoder.decode([context], Sampling(max_new_tokens=12, lookup=lookup))
            saved += sum(1 for _ in decoding) * (1 if lookup is False else -1)
            runs.append(decoding.completions)
        assert runs[0] == runs[1]
    assert saved > 0, "no guess was right, so nothing was shown"


has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bf16 = pytest.mark.skipif(not has_bf16, reason="no bfloat16 instructions: minutes of reading")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bf16)])
def test_a_question_that_needs_two_documents_is_seen_while_it_is_read(dtype: str, tmp_path: Path) -> None:
    """Questions that need one are left alone. By the checkpoint that is shipped."""
    asked = list(questions())
    with Index.create(tmp_path / "index", model=GritModel.from_pretrained(dtype=dtype)) as index:
        index.add(documents())
        rag = RAG(index)
        for one, other in ((asked[number], asked[number + 1]) for number in (18, 24)):
            answer = rag.ask(f"{one.question.rstrip('?')}? And {other.question}", max_new_tokens=2)
            assert answer.hits[0].document.id == one.document_id
            assert [hit.document.id for hit in answer.hits if hit.is_complement] == [other.document_id]
        for question in asked[:10]:
            answer = rag.ask(question.question, max_new_tokens=2)
            assert not any(hit.is_complement for hit in answer.hits)
