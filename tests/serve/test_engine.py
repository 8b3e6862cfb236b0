"""Laws of the engine: what is computed together is what is computed alone."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from architectures import VOCABULARY, make_lm
from serving import QUESTIONS, Running

from gritrag import RAG, GritModel, Index
from gritrag.corpus import documents, questions
from gritrag.model.answerability import Answerability, Refusal
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context, Part
from gritrag.model.lifting import Lifter
from gritrag.model.ragged import Row, ragged
from gritrag.model.retrieval_heads import RetrievalHeads
from gritrag.model.sampling import Sampling
from gritrag.model.step import Step
from gritrag.model.watched import Watched
from gritrag.prompts import NOT_FOUND
from gritrag.serve.engine import Engine
from gritrag.serve.generation import Generation
from gritrag.serve.jobs import Event, Finished
from gritrag.serve.limits import Limits
from gritrag.serve.memory import Memory
from gritrag.serve.reading import ReadingJob
from gritrag.serve.threads import in_thread

HELLO = [{"role": "user", "content": "hello"}]


def cache_of(capacity: int) -> PlacedCache:
    return PlacedCache(*(torch.full((3, 1, 2, capacity, 8), torch.nan) for _ in range(2)), 0)


@pytest.mark.parametrize("architecture", ["llama", "llama-yarn", "qwen2", "qwen3"])
def test_a_ragged_forward_equals_each_row_alone(architecture: str) -> None:
    """Rows begin, go on in chunks and keep different numbers of tokens in the same forwards."""
    step, draw = Step(make_lm(architecture)), random.Random(0)
    lengths = [1, 5, 12, 20, 7]
    texts = [torch.randint(3, VOCABULARY, (1, length)) for length in lengths]
    caches = [cache_of(length) for length in lengths]
    done, found = [0] * len(texts), [[] for _ in texts]
    with torch.inference_mode():
        while any(d < length for d, length in zip(done, lengths, strict=True)):
            rows, numbers = [], []
            for number, text in enumerate(texts):
                count = min(draw.randint(0, 6), lengths[number] - done[number])
                if count:
                    part = slice(done[number], done[number] + count)
                    keep = draw.choice([0, 1, count])
                    rows.append(Row(text[:, part], torch.arange(part.start, part.stop)[None], caches[number], keep))
                    numbers.append((number, part.stop, keep))
                    done[number] += count
            if not rows:
                continue
            logits = step.words(ragged(step, rows)).split([row.keep for row in rows])
            for (number, stop, keep), part in zip(numbers, logits, strict=True):
                found[number].append((stop, keep, part))
        for text, parts in zip(texts, found, strict=True):
            positions = torch.arange(text.shape[1])[None]
            whole = step.logits(text, positions, None, cache_of(text.shape[1]), text.shape[1])[0]
            for stop, keep, part in parts:
                torch.testing.assert_close(part, whole[stop - keep : stop], atol=1e-4, rtol=0)


needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 instructions: sums are those of other kernels"
)


def run_at_once(model: GritModel, generations: Sequence[Generation], readings: Sequence[ReadingJob]) -> list[Any]:
    """All jobs in an engine's first step, as far as they fit: what was told of each."""
    told: list[list[Event]] = [[] for _ in generations]
    engine = Engine(model, Limits(), Memory(1 << 20))
    for generation, events in zip(generations, told, strict=True):
        generation.sink = events.append
        engine.submit(generation)
    for reading in readings:
        engine.submit(reading)
    engine.start()
    engine.stop()
    ends = [events[-1] for events in told]
    assert all(isinstance(end, Finished) for end in ends)
    outcomes = [outcome for reading in readings for outcome in reading.future.result()]
    return [(end.completion, end.logprobs) for end in ends] + [outcome.vector.tolist() for outcome in outcomes]  # type: ignore[union-attr]


@needs_bf16
def test_in_bfloat16_nothing_depends_on_who_is_beside_it(real_model_bf16: GritModel) -> None:
    """To the last bit of every probability: states, questions and long prompts, and texts to embed, more than fit a
    step, so that some are cut."""
    model, end = real_model_bf16, time.monotonic() + 600
    asked = [question.question for question in questions()][:20]
    states = [reading.state for reading in model.read_documents([document.text for document in documents()[:8]])]
    long = model.prompts.prompt_ids(documents()[0].text * 3)
    assert len(long) > 256
    probe = (12, 18), (0.001, -0.002) * 576
    refusal = Refusal(Answerability(0.9, -0.5, 1.0, 1.0, "", *probe), 0.5, 1.0, (1, 2))
    contexts = [
        Context.of(*states[number % 5 : number % 5 + 2 + number % 3], model.prompts.question_ids(text, True))
        for number, text in enumerate(asked[:6])
    ] + [Context.of(long), Context.of(long[:40])]
    prompts = [*model.prompts.queries(asked), *model.prompts.documents(documents()[:3])]
    assert sum(len(prompt.ids) for prompt in prompts[:20]) > 256

    def generations() -> list[Generation]:
        sampling = Sampling(max_new_tokens=6)
        return [Generation(each, sampling, "a", end, top_logprobs=1, refusal=refusal) for each in contexts]

    def readings() -> list[ReadingJob]:
        return [ReadingJob([prompt], "a", end, True, number % 2 == 0) for number, prompt in enumerate(prompts)]

    alone = [run_at_once(model, [each], [])[0] for each in generations()]
    alone += [run_at_once(model, [], [each])[0] for each in readings()]
    assert run_at_once(model, [], readings()) == alone[len(contexts) :]
    assert run_at_once(model, generations(), readings()) == alone


def together(server: Running, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """All requests at once, their answers in order."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            return await asyncio.gather(*(client.post(path, json=body) for path, body in bodies))

    responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200] * len(bodies), responses[0].text
    return [response.json() for response in responses]


@pytest.mark.parametrize("mode", ["doc-cache", "doc-query", "query-doc-cache", "doc-query-cache", "no-retrieval"])
def test_answers_together_are_those_of_one_after_the_other(
    mode: str, server: Running, tiny_model: GritModel, tmp_path: Path
) -> None:
    server.service.indexes["docs"].export(tmp_path / "copy")
    with Index.open(tmp_path / "copy", model=tiny_model, mode="r") as index:
        rag = RAG(index, mode=mode, k=3)
        expected = [rag.ask(question, max_new_tokens=12) for question in QUESTIONS]
    bodies = [("/v1/rag", {"question": q, "mode": mode, "k": 3, "max_new_tokens": 12}) for q in QUESTIONS] * 3
    for answer, alone in zip(together(server, bodies), expected * 3, strict=True):
        assert answer["text"] == alone.text
        assert [hit["id"] for hit in answer["hits"]] == [hit.document.id for hit in alone.hits]
        assert [tuple(c.values()) for c in answer["citations"]] == [tuple(c) for c in alone.citations]
        assert answer["exact"] == alone.exact
        assert answer["usage"]["prompt_tokens"] == alone.usage.prompt_tokens
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == alone.usage.cached_tokens


@pytest.mark.parametrize("mode", ["doc-cache", "doc-query", "query-doc-cache"])
def test_ranking_from_states_is_that_of_rag(mode: str, server: Running, tiny_model: GritModel, tmp_path: Path) -> None:
    """In `/v1/rag`, chat and responses alike, and in batches of a few states."""
    server.service.indexes["docs"].export(tmp_path / "copy")
    with Index.open(tmp_path / "copy", model=tiny_model, mode="r") as index:
        expected = [RAG(index, mode=mode, k=2, rerank=5).ask(question, max_new_tokens=8) for question in QUESTIONS]
        plain = [[hit.document.id for hit in index.search(question, k=2)] for question in QUESTIONS]
    assert [[hit.document.id for hit in answer.hits] for answer in expected] != plain, "ranking changes nothing here"
    options = {"mode": mode, "k": 2, "rerank": 5}
    found = together(server, [("/v1/rag", {"question": q, "max_new_tokens": 8, **options}) for q in QUESTIONS])
    chats = together(
        server,
        [
            (
                "/v1/chat/completions",
                {
                    "model": "rag/docs",
                    "messages": [{"role": "user", "content": q}],
                    "max_tokens": 8,
                    "gritrag": options,
                },
            )
            for q in QUESTIONS
        ],
    )
    for answer, alone in zip(found + [chat["gritrag"] for chat in chats], expected * 2, strict=True):
        assert [hit["id"] for hit in answer["hits"]] == [hit.document.id for hit in alone.hits]
        np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [h.score for h in alone.hits], atol=1e-4)
        assert answer["text"] == alone.text
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == alone.usage.cached_tokens


def test_a_ranking_reads_missing_states_once_and_goes_on_in_batches(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    folder = make_index(tiny_model, states="none")
    with Index.open(folder, model=tiny_model, mode="r") as index:
        expected = index.search(QUESTIONS[0], k=3, rerank=6)
    server = start(tiny_model, {"docs": folder}, step_tokens=40)
    rows: list[int] = []
    server.service.engine.on_step = lambda count, seconds: rows.append(count)
    body = {"question": QUESTIONS[0], "k": 3, "rerank": 6, "max_new_tokens": 1}
    (answer,) = together(server, [("/v1/rag", body)])
    assert [hit["id"] for hit in answer["hits"]] == [hit.document.id for hit in expected]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len(rows) > 6, "the ranking took one step"


@pytest.mark.parametrize(
    "wrong",
    [{"k": 5, "rerank": 4}, {"rerank": 0}, {"rerank": 65}, {"rerank": "many"}, {"rerank": 5, "documents": ["x"]}],
)
def test_a_ranking_that_makes_no_sense_is_refused_by_name(wrong: dict[str, Any], server: Running) -> None:
    with server.client() as client:
        for path, body in (
            ("/v1/rag", {"question": "x", **wrong}),
            (
                "/v1/chat/completions",
                {"model": "gritrag", "messages": [{"role": "user", "content": "x"}], "gritrag": wrong},
            ),
        ):
            response = client.post(path, json=body)
            assert response.status_code == 400
            assert "rerank" in response.json()["error"]["message"]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_tokens_are_read_again_as_alone(share: float, server: Running, tiny_model: GritModel, tmp_path: Path) -> None:
    server.service.indexes["docs"].export(tmp_path / "copy")
    with Index.open(tmp_path / "copy", model=tiny_model, mode="r") as index:
        expected = [RAG(index, k=3, recompute=share).ask(question, max_new_tokens=12) for question in QUESTIONS]
    bodies = [("/v1/rag", {"question": q, "k": 3, "max_new_tokens": 12, "recompute": share}) for q in QUESTIONS]
    for answer, alone in zip(together(server, bodies), expected, strict=True):
        assert (answer["text"], answer["exact"]) == (alone.text, alone.exact)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == alone.usage.cached_tokens


@pytest.mark.parametrize("limits", [{}, {"step_tokens": 3, "rows": 2}], ids=["", "in pieces"])
def test_documents_are_lifted_as_alone(
    limits: dict[str, int],
    tiny_model: GritModel,
    make_index: Callable[..., Path],
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a question is read in several pieces."""
    assert tiny_model.rotation is not None
    lifter = Lifter(tiny_model.lm, RetrievalHeads(((1, 3), (2, 0)), 1e-6), tiny_model.rotation)
    folder = make_index(tiny_model)
    with Index.open(folder, model=tiny_model, mode="r") as index:
        plain = [RAG(index, k=3).ask(question, max_new_tokens=12).text for question in QUESTIONS]
        monkeypatch.setattr(tiny_model.decoder, "lifter", lifter)
        expected = [RAG(index, k=3).ask(question, max_new_tokens=12) for question in QUESTIONS]
    assert [answer.text for answer in expected] != plain
    server = start(tiny_model, {"docs": folder}, **limits)
    bodies = [("/v1/rag", {"question": q, "k": 3, "max_new_tokens": 12}) for q in QUESTIONS]
    for answer, alone in zip(together(server, bodies * 2), expected * 2, strict=True):
        assert answer["text"] == alone.text
        assert answer["usage"]["prompt_tokens"] == alone.usage.prompt_tokens


@pytest.mark.parametrize("least_gain", [1e-6, 1e6], ids=["lifted", "not lifted"])
def test_nothing_is_kept_of_what_is_said(
    least_gain: float, tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states are kept while a question is read, and no longer."""
    assert tiny_model.rotation is not None
    lifter = Lifter(tiny_model.lm, RetrievalHeads(((1, 3),), least_gain), tiny_model.rotation)
    monkeypatch.setattr(tiny_model.decoder, "lifter", lifter)
    states = [reading.state for reading in tiny_model.read_documents(["goats eat red moss", "a ferry sails at noon"])]
    parts = [Part(state, -5.0 * number, shares_positions=True) for number, state in enumerate(states)]
    question = Part(tuple(tiny_model.prompts.question_ids(QUESTIONS[0], has_documents=True)))
    context = Context((*parts, question), seeks_complements=True)
    seen: list[int] = []
    hidden_TD = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Watched, "see", lambda watched, passed, hidden_BTD: seen.append(hidden_BTD.shape[1]))
    monkeypatch.setattr(Watched, "read", lambda watched, row, tokens: {1: hidden_TD[:tokens]})
    generation = Generation(context, Sampling(max_new_tokens=6), "a", time.monotonic() + 600)
    ((completion, _),) = run_at_once(tiny_model, [generation], [])
    assert len(completion.token_ids) > 1
    assert bool(completion.complements) == (least_gain < 1)
    assert seen == [len(question)] * len(tiny_model.lm.model.layers)


@pytest.mark.parametrize("probe", [(), ((2, 1), (0.31, -0.29) * 32)], ids=["", "probe"])
def test_documents_that_hold_no_answer_are_told_as_alone(
    probe: tuple[Any, ...],
    tiny_model: GritModel,
    make_index: Callable[..., Path],
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_model, "answerability", Answerability(0.9, -1.3, 5.0, 1.0, "none", *probe))
    folder = make_index(tiny_model)
    with Index.open(folder, model=tiny_model, mode="r") as index:
        found = [RAG(index, k=3).ask(question, max_new_tokens=2).unanswerable for question in QUESTIONS]
        above = float(np.median(found))
        expected = [RAG(index, k=3, unanswerable_above=above).ask(q, max_new_tokens=32) for q in QUESTIONS]
    assert [answer.text == NOT_FOUND for answer in expected].count(True) == len(QUESTIONS) // 2
    options = {"k": 3, "unanswerable_above": above}
    server = start(tiny_model, {"docs": folder})
    bodies = [("/v1/rag", {"question": q, "max_new_tokens": 32, **options}) for q in QUESTIONS]
    for answer, alone in zip(together(server, bodies * 2), expected * 2, strict=True):
        assert (answer["text"], answer["finish_reason"]) == (alone.text, alone.finish_reason)
        assert answer["usage"]["completion_tokens"] == alone.usage.generated_tokens
        assert answer["unanswerable"] == pytest.approx(alone.unanswerable, abs=1e-4)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    chats = [[*before, {"role": "user", "content": QUESTIONS[0]}] for before in ([], turns)]
    body = {"model": "rag/docs", "max_tokens": 8, "gritrag": {"k": 3, "unanswerable_above": 0.0}}
    asked = [("/v1/chat/completions", {**body, "messages": messages}) for messages in chats]
    first, later = (chat["gritrag"] for chat in together(server, asked))
    assert first["unanswerable"] == pytest.approx(expected[0].unanswerable, abs=1e-4)
    assert later["unanswerable"] is None, "that is calibrated for questions without earlier turns"


@pytest.mark.parametrize(
    ("architecture", "reading"),
    [("llama", "bidirectional"), ("qwen3", "causal"), ("gemma3", "causal"), ("gpt2", "causal"), ("mistral", "causal")],
)
def test_models_of_every_kind_are_served(
    architecture: str,
    reading: str,
    make_model: Callable[..., GritModel],
    make_index: Callable[..., Path],
    start: Callable[..., Running],
) -> None:
    """Those that read in whole batches, that have windows, and whose keys cannot be moved, answer as they do alone."""
    model = make_model(architecture, reading=reading)
    folder = make_index(model)
    with Index.open(folder, model=model, mode="r") as index:
        expected = [RAG(index, k=2).ask(question, max_new_tokens=8).text for question in QUESTIONS]
        vectors = model.encode_document(QUESTIONS)
    server = start(model, {"docs": folder}, step_tokens=16)
    bodies = [("/v1/rag", {"question": q, "k": 2, "max_new_tokens": 8}) for q in QUESTIONS]
    bodies.append(("/v1/embeddings", {"input": QUESTIONS}))
    *answers, embedded = together(server, bodies)
    assert [answer["text"] for answer in answers] == expected
    found = np.array([row["embedding"] for row in embedded["data"]])
    np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_chats_together_are_those_of_generate(server: Running, tiny_model: GritModel) -> None:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    expected = [tiny_model.generate(chat, max_new_tokens=16) for chat in chats]
    bodies = [("/v1/chat/completions", {"model": "tiny", "messages": chat, "max_tokens": 16}) for chat in chats]
    answers = together(server, bodies * 2)
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == expected * 2
    raw = [("/v1/completions", {"model": "tiny", "prompt": question, "max_tokens": 9}) for question in QUESTIONS]
    texts = [answer["choices"][0]["text"] for answer in together(server, raw)]
    assert texts == [tiny_model.generate(question, max_new_tokens=9) for question in QUESTIONS]


def test_small_steps_change_nothing(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    """A budget of a few tokens cuts every text and every prompt into chunks."""
    server = start(tiny_model, {"docs": make_index(tiny_model)}, step_tokens=3, rows=2)
    embedded, chat, *_ = together(
        server,
        [
            ("/v1/embeddings", {"input": QUESTIONS}),
            (
                "/v1/chat/completions",
                {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
            ),
            *[("/v1/rag", {"question": question, "max_new_tokens": 4}) for question in QUESTIONS],
        ],
    )
    found = np.array([row["embedding"] for row in embedded["data"]])
    np.testing.assert_allclose(found, tiny_model.encode_document(QUESTIONS), atol=1e-5)
    expected = tiny_model.generate(HELLO, max_new_tokens=8)
    assert chat["choices"][0]["message"]["content"] == expected


def test_the_engine_computes_with_all_threads_and_workers_with_one(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    """Whoever begins first: workers that set their number before the engine computes do not set the engine's."""
    before, seen = torch.get_num_threads(), set[int]()
    torch.set_num_threads(3)
    try:
        server = start(tiny_model, {"docs": make_index(tiny_model)})
        server.service.engine.on_step = lambda rows, seconds: seen.add(torch.get_num_threads())
        bodies = [("/v1/rag", {"question": question, "max_new_tokens": 2}) for question in QUESTIONS]
        together(server, bodies)
        workers = [asyncio.run(in_thread(torch.get_num_threads)) for _ in range(8)]
    finally:
        torch.set_num_threads(before)
    assert seen == {3}
    assert set(workers) == {1}


def test_when_the_engine_itself_fails_everybody_is_told_and_the_server_can_stop(
    tiny_model: GritModel,
    make_index: Callable[..., Path],
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)})

    def fail(is_busy: bool) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(server.service.engine, "_plan", fail)
    with server.client() as client:
        asked = [
            client.post("/v1/rag", json={"question": "x"}),
            client.post("/v1/embeddings", json={"model": "tiny", "input": "x"}),
            client.get("/ready"),
        ]
    assert [response.status_code for response in asked] == [503, 503, 503]
    server.service.engine.stop()  # returns, rather than waiting for a thread that is gone


def test_the_real_model_answers_sixteen_at_once_token_for_token(
    real_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    folder = make_index(real_model)
    with Index.open(folder, model=real_model, mode="r") as index:
        expected = [RAG(index, k=3).ask(question, max_new_tokens=12).text for question in QUESTIONS]
    server = start(real_model, {"docs": folder})
    bodies = [("/v1/rag", {"question": q, "k": 3, "max_new_tokens": 12}) for q in (QUESTIONS * 3)[:16]]
    assert [answer["text"] for answer in together(server, bodies)] == (expected * 3)[:16]


@needs_bf16
def test_in_bfloat16_too_sixteen_texts_are_the_same_at_once(
    real_model_bf16: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(real_model_bf16, {"docs": make_index(real_model_bf16, documents()[:24], states="bf16")})
    asked = [question.question for question in questions()][:16]
    bodies = [("/v1/rag", {"question": text, "k": 4, "max_new_tokens": 12}) for text in asked]
    alone = [together(server, [body])[0] for body in bodies]
    for one, other in zip(alone, together(server, bodies), strict=True):
        assert (one["text"], one["hits"]) == (other["text"], other["hits"])
