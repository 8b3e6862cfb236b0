"""Lifting: what a question needs beside the best document is found while it is read, and weighed nearly like that."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import make_lm
from ferry import DOCUMENTS, QUESTION
from transformers import PreTrainedTokenizerFast

from gritrag import RAG, GritModel, Hit, Index
from gritrag.complements import complements
from gritrag.model.answerability import Answerability
from gritrag.model.context import Context, Part
from gritrag.model.lifting import LIFTED, Lifter
from gritrag.model.retrieval_heads import RETRIEVAL_HEADS_FILE, SINK, HeadScores, RetrievalHeads
from gritrag.modes import MODES
from gritrag.plan import Retrieved, plan_context
from gritrag.prompts import NOT_FOUND

HEADS = RetrievalHeads(((1, 3), (2, 0)), 1e-6)
"""Of the tiny model, which has three layers of four heads; random ones always find something."""

QUESTIONS = [QUESTION, "What is the bridge made of?", "What do goats eat?", "Who is the king of Osk?"]


@pytest.fixture(params=["llama", "qwen3"])
def lifting(
    request: pytest.FixtureRequest, make_model: Callable[..., GritModel], monkeypatch: pytest.MonkeyPatch
) -> GritModel:
    model = make_model(request.param)
    assert model.rotation is not None
    monkeypatch.setattr(model.decoder, "lifter", Lifter(model.lm, HEADS, model.rotation))
    return model


@pytest.fixture
def index(lifting: GritModel, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=lifting, states="float32") as index:
        index.add(DOCUMENTS)
        yield index


def spread(index: Index, question: str, k: int = 4) -> list[Hit]:
    """What a search finds, with scores so far apart that all but the best may be lifted."""
    return [replace(hit, score=1 - 0.25 * n) for n, hit in enumerate(index.search(question, k=k))]


def test_scores_are_the_greatest_products_with_un_rotated_keys(lifting: GritModel) -> None:
    """Those of the model's own attention, were all tokens of a text at one place."""
    lm, text = lifting.lm, "a ferry sails at four and the other one an hour later"
    (reading,) = lifting.read_documents([text])
    ids = torch.tensor([lifting.prompts.queries([QUESTION])[0].ids])
    with torch.inference_mode():
        hidden = lm(ids, output_hidden_states=True).hidden_states
        heads = HeadScores(lm, HEADS)
        found_NS = heads.scores(
            heads.queries({layer: hidden[layer][0] for layer in (1, 2)}),
            {(layer, head): reading.state.keys[layer, head] for layer, head in heads.keys},
            [len(reading.state)],
        )
        expected = []
        for layer, head in HEADS.heads:
            module = lm.model.layers[layer]
            query_SK = module.self_attn.q_proj(module.input_layernorm(hidden[layer]))[0].unflatten(-1, (4, -1))[:, head]
            if hasattr(module.self_attn, "q_norm"):
                query_SK = module.self_attn.q_norm(query_SK)
            key_TK = reading.state.keys[layer, head // 2, SINK:]
            expected.append((query_SK @ key_TK.T).amax(-1) / key_TK.shape[-1] ** 0.5)
    torch.testing.assert_close(found_NS, torch.stack(expected).mean(0)[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_an_answer_is_that_from_documents_that_had_the_bias_from_the_start(
    architecture: str,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = GritModel(make_lm(architecture).to(dtype), tokenizer, retrieval_heads=HEADS)
    with Index.create(tmp_path / "index", model=model) as index:
        index.add(DOCUMENTS)
        check_bias_from_the_start(index, model, monkeypatch)


def check_bias_from_the_start(index: Index, lifting: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 0
    for question in QUESTIONS:
        hits = spread(index, question)
        answer = RAG(index).ask(question, hits=hits, max_new_tokens=16)
        found = [hit.is_complement for hit in answer.hits]
        assert not found[0]
        assert any(found), "random heads find something in other documents"
        assert [replace(hit, is_complement=False) for hit in answer.hits] == hits
        best = RAG(index).relevance_bias
        raised = [replace(hit, score=1 + LIFTED / best) if own else hit for hit, own in zip(hits, found, strict=True)]
        with monkeypatch.context() as patch:
            patch.setattr(lifting.decoder, "lifter", None)
            expected = RAG(index).ask(question, hits=raised, max_new_tokens=16)
            plain = RAG(index).ask(question, hits=hits, max_new_tokens=16)
        assert answer.text == expected.text
        assert answer.usage == plain.usage
        changed += answer.text != plain.text
    assert changed, "else nothing was tried"


def test_what_is_lifted_are_the_complements_of_the_best(index: Index, lifting: GritModel) -> None:
    """As the scores of a forward say that nobody lifts in."""
    hits = spread(index, QUESTION)
    states = index.states_of([hit.document for hit in hits])[0]
    plan = plan_context(
        lifting, MODES["doc-cache"], Retrieved(QUESTION, hits, states, is_best_last=True), relevance_bias=8.0
    )
    heads = HeadScores(lifting.lm, HEADS)
    ids = torch.tensor([lifting.prompts.question_ids(QUESTION, has_documents=True)])
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        lifting.lm.model.layers[layer].register_forward_pre_hook(
            lambda module, args, layer=layer: seen.__setitem__(layer, args[0][0])
        )
        for layer in (1, 2)
    ]
    cache = lifting.decoder.place([plan.context], RAG(index)._options({"max_new_tokens": 4}))
    start = plan.context.end - ids.shape[1]
    with torch.inference_mode():
        lifting.forwards._modules.logits(ids, start + torch.arange(ids.shape[1])[None], None, cache)
        keys = torch.cat([state.keys for state in states], dim=2)
        own = {place: keys[place] for place in heads.keys}
        scores_NS = heads.scores(heads.queries(seen), own, list(map(len, states)))
    for hook in hooks:
        hook.remove()
    expected = set(complements(scores_NS.numpy(), 0, HEADS.least_gain))
    answer = RAG(index).ask(QUESTION, hits=hits, max_new_tokens=4)
    assert {n for n, hit in enumerate(answer.hits) if hit.is_complement} == expected


def test_where_nothing_is_found_nothing_changes(
    index: Index, lifting: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lifting.rotation is not None
    hits = spread(index, QUESTION)
    demanding = Lifter(lifting.lm, replace(HEADS, least_gain=1e6), lifting.rotation)
    answers = []
    for lifter in (demanding, None):
        monkeypatch.setattr(lifting.decoder, "lifter", lifter)
        answers.append(RAG(index).ask(QUESTION, hits=hits, max_new_tokens=16))
    assert replace(answers[0], timings=answers[1].timings) == answers[1]


def test_questions_in_a_batch_are_lifted_as_alone(index: Index) -> None:
    rag = RAG(index)
    given = [spread(index, question, k) for question, k in zip(QUESTIONS, (4, 1, 2, 3), strict=True)]
    alone = [rag.ask(question, hits=hits, max_new_tokens=12) for question, hits in zip(QUESTIONS, given, strict=True)]
    batch = rag.ask_many(QUESTIONS, hits=given, max_new_tokens=12)
    assert [answer.hits for answer in batch] == [answer.hits for answer in alone]
    assert [answer.text for answer in batch] == [answer.text for answer in alone]
    assert [any(hit.is_complement for hit in answer.hits) for answer in alone] == [True, False, True, True]


@pytest.mark.parametrize("mode", list(MODES))
def test_only_questions_behind_states_with_a_bias_are_looked_at(mode: str, index: Index) -> None:
    hits = spread(index, QUESTION)
    answer = RAG(index, mode=mode).ask(QUESTION, hits=hits, max_new_tokens=4)
    assert any(hit.is_complement for hit in answer.hits) == (mode == "doc-cache")
    for other in (RAG(index, mode=mode, relevance_bias=0), RAG(index, mode=mode, recompute=0.3)):
        assert not any(hit.is_complement for hit in other.ask(QUESTION, hits=hits, max_new_tokens=4).hits)


def test_documents_near_the_best_need_no_lift(index: Index) -> None:
    """Nor do those that ranking has put a tenth below a best score of 0.7, the least that there is."""
    near = [replace(hit, score=1 - 0.02 * n) for n, hit in enumerate(spread(index, QUESTION))]
    assert not any(hit.is_complement for hit in RAG(index).ask(QUESTION, hits=near, max_new_tokens=4).hits)
    mixed = [near[0], replace(near[1], score=1 - 0.1 / 0.7), *spread(index, QUESTION)[2:]]
    answer = RAG(index).ask(QUESTION, hits=mixed, max_new_tokens=4)
    assert not answer.hits[1].is_complement, "it counts more already"


def test_a_reply_that_documents_hold_nothing_is_judged_after_lifting(
    index: Index, lifting: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = (2, 1), tuple(((number * 37) % 64 - 31.5) / 100 for number in range(64))
    monkeypatch.setattr(lifting, "answerability", Answerability(0.9, -1.3, 5.0, 1.0, "none", *probe))
    hits = [replace(hit, similarity=0.5) for hit in spread(index, QUESTION)]
    lifted = RAG(index).ask(QUESTION, hits=hits, max_new_tokens=4)
    raised = [
        replace(h, score=1 + LIFTED / 8) if own.is_complement else h for h, own in zip(hits, lifted.hits, strict=True)
    ]
    monkeypatch.setattr(lifting.decoder, "lifter", None)
    expected = RAG(index).ask(QUESTION, hits=raised, max_new_tokens=4)
    assert lifted.unanswerable == pytest.approx(expected.unanswerable, abs=1e-6)
    assert lifted.unanswerable != pytest.approx(
        RAG(index).ask(QUESTION, hits=hits, max_new_tokens=4).unanswerable, abs=1e-6
    )
    assert RAG(index, unanswerable_above=0.0).ask(QUESTION, hits=hits, max_new_tokens=32).text == NOT_FOUND


def test_heads_travel_with_a_checkpoint(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    source = make_model()
    model = GritModel(source.lm, source.tokenizer, source.config, retrieval_heads=HEADS)
    model.save_pretrained(tmp_path)
    again = GritModel.from_pretrained(tmp_path, dtype="float32")
    assert again.retrieval_heads == HEADS
    assert again.decoder.lifter is not None
    source.save_pretrained(tmp_path)
    assert GritModel.from_pretrained(tmp_path, dtype="float32").retrieval_heads is None


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        '{"format": "gritrag-retrieval-heads-2", "heads": [[1, 0]], "least_gain": 1}',
        '{"format": "gritrag-retrieval-heads-1", "heads": [], "least_gain": 1}',
        '{"format": "gritrag-retrieval-heads-1", "heads": [[1]], "least_gain": 1}',
        '{"format": "gritrag-retrieval-heads-1", "heads": [[1, 0]], "least_gain": 0}',
        '{"format": "gritrag-retrieval-heads-1", "heads": [[1, 0]], "least_gain": NaN}',
        '{"format": "gritrag-retrieval-heads-1", "heads": [[1, 0]]}',
    ],
)
def test_a_broken_file_is_named(wrong: str, tmp_path: Path) -> None:
    (tmp_path / RETRIEVAL_HEADS_FILE).write_text(wrong)
    with pytest.raises(ValueError, match=RETRIEVAL_HEADS_FILE):
        RetrievalHeads.load(tmp_path / RETRIEVAL_HEADS_FILE)


@pytest.mark.parametrize(
    ("head", "told"), [((3, 0), "has 3"), ((0, 4), "has 4"), ((-1, 0), "layer -1"), ((0, -1), "-1 of layer 0")]
)
def test_heads_that_a_model_lacks_are_refused(head: tuple[int, int], told: str, tiny_model: GritModel) -> None:
    with pytest.raises(ValueError, match=told):
        HeadScores(tiny_model.lm, RetrievalHeads((head,), 1.0))


def test_layers_of_another_kind_are_refused(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="like those of Llama"):
        HeadScores(make_model("gpt2").lm, HEADS)


def test_a_context_says_what_stands_behind_its_documents(index: Index) -> None:
    states = index.states_of([hit.document for hit in spread(index, QUESTION)])[0]
    shared = tuple(Part(state, relevance_bias=-float(n), shares_positions=True) for n, state in enumerate(states))
    context = Context((Part((1, 2)), *shared, Part((3, 4, 5))), seeks_complements=True)
    assert context.behind_documents == 3
    assert Lifter.is_due(context)
    assert not Lifter.is_due(replace(context, seeks_complements=False))
    assert not Lifter.is_due(Context((shared[0], Part((3,))), seeks_complements=True))
    assert not Lifter.is_due(context.read_again([True] * len(context.parts))), "they share no positions any more"


def test_models_with_angles_by_layer_are_refused(make_model: Callable[..., GritModel]) -> None:
    model = make_model("gemma3")
    assert model.rotation is not None
    assert model.rotation.is_per_type
    with pytest.raises(ValueError, match="alike in all layers"):
        Lifter(model.lm, HEADS, model.rotation)
