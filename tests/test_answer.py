"""RAG: cached and uncached answers from the same segments; misses cost time, never correctness."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import MOVABLE, WITH_STATES
from ferry import DOCUMENTS, QUESTION

from gritrag import RAG, Document, GritModel, Index
from gritrag.index.rerank import ranked
from gritrag.model import decoder
from gritrag.model.cache_names import given_cache
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.inputs import inputs
from gritrag.model.module_forward import ModuleForward
from gritrag.model.placing import column_biases
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState
from gritrag.modes import MODES
from gritrag.plan import ContextPlan, Retrieved, plan_context
from gritrag.records import Hit, as_hits


@pytest.fixture
def index(tiny_model: GritModel, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as index:
        index.add(DOCUMENTS)
        yield index


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """Contexts whose states have been placed."""
    found: list[Context] = []

    def place(contexts: Sequence[Context], *others: Any) -> PlacedCache:
        found.extend(contexts)
        return original(contexts, *others)

    original = decoder.place
    monkeypatch.setattr(decoder, "place", place)
    return found


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that have been embedded for their vectors alone."""
    found: list[str] = []

    def encode_query(model: GritModel, texts: Sequence[str], *others: Any) -> np.ndarray:
        found.extend(texts)
        return original(model, texts, *others)

    original = GritModel.encode_query
    monkeypatch.setattr(GritModel, "encode_query", encode_query)
    return found


@pytest.mark.parametrize("architecture", WITH_STATES)
def test_one_causal_document_is_answered_token_for_token_as_uncached(
    architecture: str, make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    model = make_model(architecture)
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add(DOCUMENTS)
        for document in DOCUMENTS:
            hits, states = as_hits([document]), index.load_states([document])
            plan = plan_context(model, MODES["doc-cache"], Retrieved(QUESTION, hits, states))
            assert plan.context.cached_tokens == len(model.document_token_ids(document))
            cached = list(model_tokens(model, plan))
            uncached = list(model_tokens(model, plan_context(model, MODES["doc-query"], Retrieved(QUESTION, hits))))
            assert cached == uncached
            answers = [
                RAG(index, mode=mode).ask(QUESTION, hits=hits, max_new_tokens=24) for mode in ("doc-cache", "doc-query")
            ]
            assert answers[0].text == answers[1].text
            assert answers[0].exact
            assert answers[1].exact


def model_tokens(model: GritModel, plan: ContextPlan) -> list[int]:
    decoding = model.decoder.decode([plan.context], Sampling(max_new_tokens=24))
    list(decoding)
    return decoding.completions[0].token_ids


def state_biases(context: Context) -> list[float]:
    return [placed.relevance_bias for placed in context.states]


def block_mask(context: Context) -> torch.Tensor:
    """Who sees whom, spelt out: a state sees only itself, tokens see all that stands before them."""
    owner = torch.cat([torch.full((len(p),), -1 if p.state is None else n) for n, p in enumerate(context.parts)])
    causal = torch.ones(len(context), len(context), dtype=torch.bool).tril()
    return causal & ((owner[:, None] == owner[None, :]) | (owner[:, None] == -1))


@pytest.mark.parametrize("architecture", [name for name in MOVABLE if name not in ("mistral", "gemma3")])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_equals_one_long_forward_in_which_states_see_only_themselves(
    mode: str, architecture: str, make_model: Callable[..., GritModel]
) -> None:
    model = make_model(architecture)
    chosen = [DOCUMENTS[i] for i in (2, 0, 1)]
    states = [reading.state for reading in model.read_documents(chosen)] if MODES[mode].reuses_documents else None
    asked = model.read_queries([QUESTION])[0].state if MODES[mode].reuses_question else None
    context = plan_context(model, MODES[mode], Retrieved(QUESTION, as_hits(chosen), states, asked)).context
    assert context.cached_tokens == sum(map(len, states or [])) + (0 if asked is None else len(asked))
    cache = model.decoder.place([context], Sampling(max_new_tokens=1))
    given = inputs([context], model.lm.device)
    with torch.inference_mode():
        cached = model.lm(
            input_ids=given.ids,
            position_ids=given.positions,
            attention_mask=given.mask,
            **given_cache(model.lm, cache),
            use_cache=True,
        ).logits
        ids = torch.tensor([context.token_ids])
        whole = model.lm(input_ids=ids, attention_mask=block_mask(context)[None, None]).logits
    torch.testing.assert_close(cached, whole[:, context.fresh_positions], atol=1e-3, rtol=1e-3)


def shared_positions(context: Context, documents: Sequence[DocumentState]) -> list[int]:
    """Where each token stands, spelt out: the documents end together, all else stands one behind the other."""
    start, room = 0, 0
    positions: list[int] = []
    for part in context.parts:
        piece = part.content
        if any(piece is document for document in documents):
            room = max(map(len, documents))
            positions += range(start + room - len(piece), start + room)
        else:
            start, room = start + room, 0
            positions += range(start, start + len(piece))
            start += len(piece)
    return positions


@pytest.mark.parametrize("architecture", [name for name in MOVABLE if name not in ("mistral", "gemma3")])
@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].reuses_documents])
def test_a_relevance_bias_is_added_to_the_scores_of_attention(
    mode: str, architecture: str, make_model: Callable[..., GritModel]
) -> None:
    """By our own step and by the forward of transformers, in one forward and token by token: what is read behind the
    documents sees each of them with its bias, as if it stood there alone, and the question's state, where there is one,
    without any."""
    model = make_model(architecture)
    hits = [Hit(DOCUMENTS[n], score, rank) for rank, (n, score) in enumerate([(2, 0.8), (0, 0.6), (1, 0.0)], start=1)]
    states = [reading.state for reading in model.read_documents([hit.document for hit in hits])]
    asked = model.read_queries([QUESTION])[0].state if MODES[mode].reuses_question else None
    context = plan_context(model, MODES[mode], Retrieved(QUESTION, hits, states, asked), relevance_bias=2.0).context
    expected = {id(state): bias for state, bias in zip(states, [0.0, -0.5, -2.0], strict=True)}
    biases = [expected.get(id(placed.state), 0.0) for placed in context.states]
    assert state_biases(context) == pytest.approx(biases)
    seen = torch.zeros(len(context), len(context)).masked_fill(~block_mask(context), -1e9)
    lengths = list(map(len, context.parts))
    columns = [range(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]
    fresh_columns = [c for part, own in zip(context.parts, columns, strict=True) if part.state is None for c in own]
    for part, own in zip(context.parts, columns, strict=True):
        seen[fresh_columns, own.start : own.stop] += expected.get(id(part.content), 0.0)
    positions = shared_positions(context, states)
    assert context.fresh_positions == [positions[column] for column in fresh_columns]
    given, fresh = inputs([context], model.lm.device), len(context.fresh_ids)
    with torch.inference_mode():
        whole = model.lm(
            input_ids=torch.tensor([context.token_ids]),
            attention_mask=seen[None, None],
            position_ids=torch.tensor([positions]),
        ).logits
        for forward in (model.step or ModuleForward(model.lm), ModuleForward(model.lm)):
            for cuts in ((0, fresh), (0, fresh - 1, fresh)) if not context.is_interleaved else ((0, fresh),):
                for keep in (fresh, 1):
                    cache = model.decoder.place([context], Sampling(max_new_tokens=1))
                    for start, end in pairwise(cuts):
                        kept = min(keep, end - start)
                        ids, positions = given.ids[:, start:end], given.positions[:, start:end]
                        logits = forward.logits(ids, positions, given.mask, cache, kept)
                        behind = whole[:, fresh_columns[end - kept : end]]
                        torch.testing.assert_close(logits, behind, atol=1e-3, rtol=1e-3)


def test_documents_that_are_weighed_answer_alike_in_any_order(tiny_model: GritModel) -> None:
    """What shares positions has no order; without a bias, the order is seen."""
    states = [reading.state for reading in tiny_model.read_documents(DOCUMENTS)]
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(DOCUMENTS, start=1)]

    def logits(rows: list[int], bias: float) -> torch.Tensor:
        given = Retrieved(QUESTION, [hits[row] for row in rows], [states[row] for row in rows])
        context = plan_context(tiny_model, MODES["doc-cache"], given, relevance_bias=bias).context
        cache = tiny_model.decoder.place([context], Sampling(max_new_tokens=1))
        ids, positions, mask, _ = inputs([context], tiny_model.lm.device)
        with torch.inference_mode():
            return ModuleForward(tiny_model.lm).logits(ids, positions, mask, cache, 1)

    forward, backward = list(range(len(DOCUMENTS))), list(reversed(range(len(DOCUMENTS))))
    torch.testing.assert_close(logits(forward, 4.0), logits(backward, 4.0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(forward, 0.0), logits(backward, 0.0), atol=1e-3)


def test_scores_that_say_nothing_give_no_bias(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    def biases(model: GritModel, given: list[Any]) -> list[float]:
        hits = as_hits(given)
        states = [reading.state for reading in model.read_documents([hit.document for hit in hits])]
        plan = plan_context(model, MODES["doc-cache"], Retrieved(QUESTION, hits, states), relevance_bias=3.0)
        return state_biases(plan.context)

    def scored(*scores: float) -> list[Hit]:
        return [Hit(DOCUMENTS[n], score, n + 1) for n, score in enumerate(scores)]

    model = make_model()
    assert biases(model, DOCUMENTS[:2]) == [0, 0]
    assert biases(model, ["one text", "another"]) == [0, 0]
    assert biases(model, scored(-1.0, -2.0)) == [0, 0]
    assert biases(model, scored(2.0, 1.0)) == pytest.approx([0, -1.5])
    assert biases(model, scored(2.0, -4.0)) == pytest.approx([0, -3])
    assert biases(model, scored(math.inf, 1.0, math.nan)) == pytest.approx([-3, 0, -3])
    assert not any(biases(make_model("mistral"), scored(2.0, 1.0))), "its mask would show more than the window"
    for fixed in sorted(set(WITH_STATES) - set(MOVABLE)):
        assert biases(make_model(fixed), scored(1.0, 2.0)) == [0], "one state, and the others read again: still exact"


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].reuses_documents])
def test_documents_without_scores_are_weighed_by_vectors(
    mode: str, index: Index, tiny_model: GritModel, placed: list[Context], embedded: list[str]
) -> None:
    """Stored vectors, and those of what is read now; alone and in a batch with hits that have scores."""
    given = [DOCUMENTS[1], Document("Nobody has indexed this."), DOCUMENTS[0]]
    scored = [Hit(DOCUMENTS[2], 0.4, 1), Hit(DOCUMENTS[0], 0.1, 2)]
    rag = RAG(index, mode=mode, relevance_bias=3.0)
    answer = rag.ask(QUESTION, documents=given, max_new_tokens=4)
    assert answer.hits == tuple(as_hits(given)), "given back as they came"
    rag.ask_many(
        [QUESTION, "And who else?", QUESTION], hits=[as_hits(given), scored, as_hits(given[:1])], max_new_tokens=4
    )
    unscored = as_hits(given)[::-1]
    rag.ask(QUESTION, hits=unscored, max_new_tokens=4)
    rag.ask_many(["And who else?", QUESTION], documents=[given, given], max_new_tokens=4)
    assert len(embedded) == (0 if MODES[mode].reuses_question else 5), "only where there is something to weigh"
    cosines = tiny_model.encode_document(given) @ tiny_model.read_queries([QUESTION])[0].vector
    expected = pytest.approx(3 * (cosines.clip(0) / cosines.max() - 1), abs=1e-4)
    read_as = [tuple(tiny_model.document_token_ids(document)) for document in given]
    for context in (placed[0], placed[1], placed[4], placed[6]):
        biases = {tuple(each.state.token_ids.tolist()): each.relevance_bias for each in context.states}
        assert [biases[ids] for ids in read_as] == expected
    assert sorted(b for b in state_biases(placed[2]) if b) == pytest.approx([-2.25]), "scores that came are kept"
    assert not any(state_biases(placed[3]))


def test_nothing_is_embedded_where_nothing_is_weighed(
    index: Index, make_model: Callable[..., GritModel], embedded: list[str], tmp_path: Path
) -> None:
    given = DOCUMENTS[:2]
    RAG(index, relevance_bias=0).ask(QUESTION, documents=given, max_new_tokens=2)
    RAG(index, mode="doc-query").ask(QUESTION, documents=given, max_new_tokens=2)
    RAG(index).ask(QUESTION, documents=given[:1], max_new_tokens=2)
    RAG(index).ask(QUESTION, hits=[], max_new_tokens=2)
    with Index.create(tmp_path / "windows", model=make_model("mistral")) as windows:
        RAG(windows).ask(QUESTION, documents=given, max_new_tokens=2)
    assert not embedded
    RAG(index).ask(QUESTION, documents=given, max_new_tokens=2)
    assert embedded == [QUESTION]


def test_a_strong_bias_answers_from_the_best_document(index: Index, tiny_model: GritModel) -> None:
    """As if the others were not seen, though they stand where they stood; without bias the others are heard."""
    hits = index.search(QUESTION, 3, mode="hybrid")
    assert len({hit.score for hit in hits}) == 3
    others = [replace(hits[0], score=1e9), *(replace(hit, score=0.0) for hit in hits[1:])]
    said = [
        RAG(index, relevance_bias=bias).ask(QUESTION, hits=[hits[0], *pair], max_new_tokens=8).text
        for bias in (0.0, 1e6)
        for pair in (others[1:], others[:0:-1])
    ]
    assert said[2] == said[3], "the order of what is not seen changes nothing"
    assert said[0] != said[2]


def test_orders_and_reuse_of_the_modes(tiny_model: GritModel) -> None:
    hits = as_hits(DOCUMENTS[:2])
    states = [reading.state for reading in tiny_model.read_documents(DOCUMENTS[:2])]
    (asked,) = (reading.state for reading in tiny_model.read_queries([QUESTION]))
    documents = [tiny_model.document_token_ids(document) for document in DOCUMENTS[:2]]
    start = tiny_model.prompts.answer_start_ids(question_is_last=False)
    query = asked.token_ids.tolist()
    question = tiny_model.prompts.question_ids(QUESTION, has_documents=True)
    first = tiny_model.prompts.question_first_ids(QUESTION)
    expected = {
        "no-retrieval": ([tiny_model.prompts.question_ids(QUESTION, has_documents=False)], ""),
        "query-doc": ([first, *documents, start], "----"),
        "doc-query": ([*documents, question], "---"),
        "query-cache": ([query, *documents, start], "q---"),
        "doc-cache": ([*documents, question], "dd-"),
        "query-doc-cache": ([query, *documents, start], "qdd-"),
        "doc-query-cache": ([*documents, query, start], "ddq-"),
    }
    assert list(MODES) == list(expected)
    for name, (runs, reused) in expected.items():
        mode = MODES[name]
        plan = plan_context(
            tiny_model,
            mode,
            Retrieved(
                QUESTION,
                hits if mode.has_documents else [],
                states if mode.reuses_documents else None,
                asked if mode.reuses_question else None,
            ),
        )
        assert plan.context.token_ids == [i for run in runs for i in run]
        assert [placed.state is asked for placed in plan.context.states] == [c == "q" for c in reused if c != "-"]
        for citation, document in zip(plan.citations, documents, strict=False):
            assert plan.context.token_ids[citation.start : citation.end] == document
        assert len(plan.citations) == (2 if mode.has_documents else 0)


def test_with_tokens_read_again_half_the_bias_is_left_and_the_first_tokens_have_none(tiny_model: GritModel) -> None:
    """They are the sink of attention then: with a bias on it, a context of several documents is answered by chance."""
    states = [reading.state for reading in tiny_model.read_documents(DOCUMENTS)]
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(DOCUMENTS, start=1)]
    given = Retrieved(QUESTION, hits, states, is_best_last=True)
    plans = [
        plan_context(tiny_model, MODES["doc-cache"], given, relevance_bias=8.0, recompute=share).context
        for share in (0.0, 0.1)
    ]
    whole, less = ([placed.relevance_bias for placed in context.states] for context in plans)
    assert less == pytest.approx([bias * 0.375 for bias in whole])
    assert less[0] < 0
    biases = column_biases(plans[1:])
    assert biases is not None
    worst = len(plans[1].states[0].state)
    assert biases[0, :worst].tolist() == pytest.approx([0.0] * 4 + [less[0]] * (worst - 4))
    assert biases[0, worst] == pytest.approx(less[1]), "other documents have it from their first token on"


@pytest.mark.parametrize(("share", "left"), [(0.02, 0.475), (0.2, 0.25), (0.4, 0.0), (0.9, 0.0)])
def test_the_more_is_read_again_the_less_bias_is_left(share: float, left: float, tiny_model: GritModel) -> None:
    states = [reading.state for reading in tiny_model.read_documents(DOCUMENTS)]
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(DOCUMENTS, start=1)]
    given = Retrieved(QUESTION, hits, states)
    plan = plan_context(tiny_model, MODES["doc-cache"], given, relevance_bias=8.0, recompute=share)
    least = min(placed.relevance_bias for placed in plan.context.states)
    assert least == pytest.approx(left * 8 * (1 / len(DOCUMENTS) - 1))


def test_with_our_template_a_question_is_embedded_in_the_words_in_which_it_is_asked(
    make_model: Callable[..., GritModel],
) -> None:
    model = make_model(template="gritrag")
    (asked,) = model.read_queries([QUESTION])
    start = model.prompts.answer_start_ids(question_is_last=True)
    assert [*asked.state.token_ids.tolist(), *start] == model.prompts.question_ids(QUESTION, has_documents=True)
    assert asked.state.token_ids.tolist() == model.prompts.question_first_ids(QUESTION)
    torch.testing.assert_close(torch.tensor(asked.vector), torch.tensor(model.encode_query([QUESTION])[0]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_of_interleaved_contexts_of_several_lengths_answer_as_one_by_one(
    attention: str, make_model: Callable[..., GritModel]
) -> None:
    tiny_model = make_model()
    tiny_model.lm.set_attn_implementation(attention)
    a, b, c = (reading.state for reading in tiny_model.read_documents(DOCUMENTS))
    word = tiny_model.prompts.encoder.content_ids("moss")
    contexts = [
        Context.of(word, a, word * 3, b, word),
        Context.of(c, word * 2),
        Context.of(word * 5),
        Context.of(b, word, c, a, word * 4),
    ]
    options = Sampling(max_new_tokens=6)
    together = tiny_model.decoder.decode(contexts, options)
    list(together)
    for context, completion in zip(contexts, together.completions, strict=True):
        alone = tiny_model.decoder.decode([context], options)
        list(alone)
        assert completion.token_ids == alone.completions[0].token_ids
    with torch.inference_mode():
        first = tiny_model.lm(
            input_ids=torch.tensor([contexts[0].token_ids]),
            attention_mask=torch.zeros(1, 1, 1, 1).masked_fill(~block_mask(contexts[0])[None, None], -1e9),
        ).logits
    assert together.completions[0].token_ids[0] == first[0, -1].argmax()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "cohere"])
def test_all_modes_answer_with_any_number_of_documents(
    architecture: str, make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    model = make_model(architecture)
    with Index.create(tmp_path / "index", model=model) as index:
        index.add(DOCUMENTS)
        for mode in MODES:
            for k in (1, 2, 50):
                answer = RAG(index, mode=mode, k=k).ask(QUESTION, max_new_tokens=4)
                expected = 0 if mode == "no-retrieval" else min(k, 3)
                assert len(answer.hits) == len(answer.citations) == expected
                assert answer.mode == mode
                assert answer.usage.generated_tokens <= 4
                assert (answer.usage.cached_tokens > 0) == mode.endswith("cache")


def test_cached_and_uncached_runs_hold_the_same_tokens(index: Index, tiny_model: GritModel) -> None:
    hits = index.search(QUESTION, k=3)
    states = index.load_states(index.get([h.document.id for h in hits]))
    cached = plan_context(tiny_model, MODES["doc-cache"], Retrieved(QUESTION, hits, states))
    uncached = plan_context(tiny_model, MODES["doc-query"], Retrieved(QUESTION, hits))
    assert cached.context.token_ids == uncached.context.token_ids == uncached.context.fresh_ids
    assert cached.citations == uncached.citations
    for citation, hit in zip(cached.citations, hits, strict=True):
        span = uncached.context.token_ids[citation.start : citation.end]
        assert list(span) == tiny_model.document_token_ids(hit.document)


def test_reuse_is_called_exact_only_where_it_is(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    def is_exact(codec: str, reading: str, k: int) -> bool:
        model = make_model(reading=reading)
        with Index.create(tmp_path / f"{codec}-{reading}-{k}", model=model, states=codec) as index:
            index.add(DOCUMENTS)
            return RAG(index, k=k).ask(QUESTION, max_new_tokens=2).exact

    assert is_exact("float32", "causal", 1)
    assert not is_exact("float32", "causal", 2)  # the second document was read without the first
    assert not is_exact("bf16", "causal", 1)  # the model computes in float32
    assert not is_exact("float32", "bidirectional", 1)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_is_called_exact_is_that_of_the_uncached_run(index: Index, mode: str) -> None:
    for k in (1, 2):
        rag = RAG(index, mode=mode, k=k)
        answer = rag.ask(QUESTION, max_new_tokens=16)
        if answer.exact:
            (found,) = rag._retrieve([QUESTION], None, None)
            context = rag._plan(found, Sampling(max_new_tokens=16)).context
            again = rag.model.decoder.decode([Context.of(context.token_ids)], Sampling(max_new_tokens=16))
            list(again)
            assert again.completions[0].text.strip() == answer.text
    assert answer.exact == (mode in ("no-retrieval", "query-doc", "doc-query", "query-cache"))


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].reuses_documents])
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_everything_read_again_answers_as_the_uncached_run(
    mode: str, codec: str, tiny_model: GritModel, tmp_path: Path
) -> None:
    """Whatever is stored, whatever the bias, one by one and in a batch; and the next answer finds what was stored."""
    questions = [QUESTION, "Bridge?"]
    with Index.create(tmp_path / "index", model=tiny_model, states=codec) as index:
        index.add(DOCUMENTS)
        plain = RAG(index, mode=mode, k=3).ask(QUESTION, max_new_tokens=12)
        rag = RAG(index, mode=mode, k=3, recompute=1.0)
        answers = rag.ask_many(questions, max_new_tokens=12)
        for question, answer in zip(questions, answers, strict=True):
            (found,) = rag._retrieve([question], None, None)
            context = rag._plan(found, Sampling(max_new_tokens=12)).context
            (expected,) = tiny_model.decoder.complete([context.token_ids], Sampling(max_new_tokens=12))
            assert answer.text == expected.text.strip() == rag.ask(question, max_new_tokens=12).text
            assert answer.exact
            assert answer.usage.cached_tokens == 0
        if mode == "doc-cache":
            uncached = RAG(index, mode="doc-query", k=3).ask_many(questions, max_new_tokens=12)
            assert [answer.text for answer in answers] == [answer.text for answer in uncached]
        again = RAG(index, mode=mode, k=3).ask(QUESTION, max_new_tokens=12)
        assert (again.text, again.usage, again.exact) == (plain.text, plain.usage, plain.exact)


def test_a_share_read_again_costs_that_share_of_the_reuse(index: Index) -> None:
    whole = RAG(index, k=3).ask(QUESTION, max_new_tokens=2)
    some = RAG(index, k=3, recompute=0.25).ask(QUESTION, max_new_tokens=2)
    assert some.usage.cached_tokens == whole.usage.cached_tokens - -(-whole.usage.cached_tokens // 4)
    assert not some.exact
    assert RAG(index, mode="doc-query", k=3, recompute=0.5).ask(QUESTION, max_new_tokens=2).exact


def test_documents_that_do_not_fit_are_no_citations(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    long = [Document("moss " * 40, id=f"long-{n}") for n in range(3)]
    index.add(long)
    answer = RAG(index).ask(QUESTION, hits=as_hits(long), max_new_tokens=4)
    assert len(answer.hits) == 3
    assert [c.id for c in answer.citations] == ["long-0"]
    assert "only the first 1 of 3" in caplog.text
    huge = Document("moss " * 90, id="huge")
    index.add([huge])
    with pytest.raises(ValueError, match="index shorter chunks"):
        RAG(index).ask(QUESTION, hits=as_hits([huge]), max_new_tokens=4)


@pytest.mark.parametrize("mode", ["doc-cache", "doc-query", "query-doc"])
@pytest.mark.parametrize("relevance_bias", [0.0, 8.0])
def test_a_document_that_is_too_long_on_its_own_costs_no_answer(
    index: Index, mode: str, relevance_bias: float, caplog: pytest.LogCaptureFixture
) -> None:
    huge, short = Document("moss " * 90, id="huge"), Document("moss grows on stone", id="short")
    index.add([huge, short])
    rag = RAG(index, mode=mode, relevance_bias=relevance_bias)
    hits = [Hit(huge, 0.9, 1), Hit(short, 0.5, 2), Hit(index.get(["a"])[0], 0.4, 3)]
    answer = rag.ask(QUESTION, hits=hits, max_new_tokens=4)
    assert [hit.document.id for hit in answer.hits] == ["huge", "short", "a"]
    assert sorted(citation.id for citation in answer.citations) == ["a", "short"]
    assert f"document 'huge' is left out: it has {len(index.model.document_token_ids(huge))} tokens" in caplog.text
    assert answer.text == rag.ask(QUESTION, hits=hits[1:], max_new_tokens=4).text


def test_documents_stand_in_a_row_where_only_the_one_left_out_had_another_score(
    index: Index, placed: list[Context]
) -> None:
    """Those of one score have no bias, so they do not share positions, and have to fit together."""
    huge, *long = [Document("moss " * 90, id="huge"), *(Document("moss " * 40, id=f"long-{n}") for n in range(2))]
    index.add([huge, *long])
    hits = [Hit(huge, 0.9, 1), Hit(long[0], 0.5, 2), Hit(long[1], 0.5, 3)]
    answer = RAG(index, relevance_bias=8.0).ask(QUESTION, hits=hits, max_new_tokens=4)
    assert [citation.id for citation in answer.citations] == ["long-0"]
    assert all(len(context) + 4 <= index.model.context_length for context in placed)


def test_the_stream_gives_hits_then_text_then_the_answer(index: Index) -> None:
    events = list(RAG(index, k=2).stream(QUESTION, max_new_tokens=12))
    assert [h.document.id for h in events[0].hits or []] == [
        h.document.id for h in index.search(QUESTION, 2, mode="hybrid")
    ]
    answer = events[-1].answer
    assert answer is not None
    assert "".join(event.text or "" for event in events).strip() == answer.text
    timings = answer.timings
    assert 0 < timings.retrieve <= timings.first_token <= timings.total


def test_many_questions_are_answered_as_one_by_one(index: Index) -> None:
    rag = RAG(index, k=2)
    questions = [QUESTION, "Who eats moss, and where does it grow?", "Bridge?"]
    many = rag.ask_many(questions, batch_size=2, max_new_tokens=10)
    assert [a.text for a in many] == [rag.ask(q, max_new_tokens=10).text for q in questions]
    assert [a.usage for a in many] == [rag.ask(q, max_new_tokens=10).usage for q in questions]
    given = [index.search(q, k, mode="hybrid") for q, k in zip(questions, (3, 1, 2), strict=True)]
    from_hits = rag.ask_many(questions, hits=given, max_new_tokens=10)
    assert [a.text for a in from_hits] == [
        rag.ask(q, hits=hits, max_new_tokens=10).text for q, hits in zip(questions, given, strict=True)
    ]


def test_without_retrieval_no_document_is_in_the_context(index: Index) -> None:
    rag = RAG(index, mode="no-retrieval")
    alone, given = (rag.ask(QUESTION, hits=hits, max_new_tokens=4) for hits in (None, as_hits(DOCUMENTS)))
    assert (given.text, given.usage, given.citations, given.hits) == (alone.text, alone.usage, (), ())


def test_a_filter_limits_the_context(index: Index) -> None:
    answer = RAG(index, k=3).ask(QUESTION, where={"year": {"$gte": 2}}, max_new_tokens=2)
    assert {hit.document.id for hit in answer.hits} == {"b", "c"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda index: RAG(index, mode="doc-cash"), "no mode 'doc-cash'; there are: no-retrieval"),
        (lambda index: RAG(index, k=0), "k must be at least 1"),
        (lambda index: RAG(index, k="2"), "k must be a whole number, not '2'"),
        (lambda index: RAG(str(index.path)), r"RAG\(Index.open\(path\)\)"),
        (lambda index: RAG(index, relevance_bias=-1), "relevance_bias must be from 0.* to 1,000,000, got -1"),
        (lambda index: RAG(index, relevance_bias=math.nan), "relevance_bias must be from 0.*nan"),
        (lambda index: RAG(index, relevance_bias=1e300), r"relevance_bias must be from 0.*1e\+300"),
        (lambda index: RAG(index, recompute=1.5), "recompute must be from 0 .* to 1 .*1.5"),
        (lambda index: RAG(index, recompute=math.nan), "recompute must be from 0"),
        (lambda index: RAG(index).ask(" "), "some text"),
        (lambda index: RAG(index, mode="no-retrieval").ask(" "), "question 0 is empty"),
        (lambda index: RAG(index).ask(QUESTION, beams=2), "beams"),
        (lambda index: RAG(index).ask_many(QUESTION), "put it into a list"),
        (lambda index: RAG(index).ask_many([QUESTION], batch_size=0), "batch_size must be at least 1"),
        (lambda index: RAG(index).ask_many([QUESTION], hits=[[], []]), "1 questions and 2 lists of hits"),
        (lambda index: RAG(index).ask_many([QUESTION], documents=[]), "1 questions and 0 lists of documents"),
        (lambda index: RAG(index).ask(QUESTION, hits=[], documents=["a text"]), "hits .* or documents .*, not both"),
        (lambda index: RAG(index).ask_many([QUESTION], hits=[[]], documents=[["a text"]]), "not both"),
    ],
)
def test_misuse_is_named(index: Index, act: Callable[[Index], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(index)


def test_exactness_is_not_claimed_in_few_bits_nor_of_chance(
    index: Index, make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    assert RAG(index, k=1).ask(QUESTION, max_new_tokens=2).exact
    assert not RAG(index, k=1).ask(QUESTION, max_new_tokens=2, temperature=1.0).exact
    half = make_model()
    half = GritModel(half.lm.to(torch.bfloat16), half.tokenizer, half.config, weights="w")
    with Index.create(tmp_path / "bf16", model=half, states="float32") as built:
        built.add(DOCUMENTS)
        assert built.load_states(built.get(["a"]))[0].keys.dtype == torch.bfloat16  # no more digits than were computed
        assert not RAG(built, k=1).ask(QUESTION, max_new_tokens=2).exact


def test_ranked_answers_come_from_the_documents_behind_which_the_question_is_most_probable(index: Index) -> None:
    """Among the candidates of a search; scores of the ranking are those that documents are weighed by."""
    count = len(index)
    expected = index.search(QUESTION, 2, rerank=count)
    answer = RAG(index, k=2, rerank=count).ask(QUESTION, max_new_tokens=4)
    assert list(answer.hits) == expected
    plain = index.search(QUESTION, count)
    logs = index.question_token_log_likelihoods(QUESTION, [hit.document for hit in plain])
    assert expected == ranked(plain, logs, 2)
    assert [each.hits for each in RAG(index, k=2, rerank=count).ask_many([QUESTION] * 2, max_new_tokens=4)] == [
        tuple(expected),
        tuple(expected),
    ]
    with pytest.raises(ValueError, match="at least k"):
        RAG(index, k=3, rerank=2)
