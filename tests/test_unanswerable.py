"""Whether documents hold the answer: a probability from the first token's logits, and the reply that goes with it."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ferry import DOCUMENTS, QUESTION

from gritrag import RAG, Answer, Document, GritModel, Hit, Index
from gritrag.model.answerability import ANSWERABILITY_FILE, FORMAT, Answerability
from gritrag.model.caches import PlacedCache
from gritrag.modes import MODES
from gritrag.plan import Retrieved, plan_context
from gritrag.prompts import NOT_FOUND

QUESTIONS = [QUESTION, "What is the bridge made of?", "What do goats eat?", "Who is the king of Osk?"]


LAYERS = (2, 1)
PROBE = tuple(((number * 37) % 64 - 31.5) / 100 for number in range(64))
"""Weights for the hidden states, of 32 numbers, behind these two layers of the tiny model, which has three."""


@pytest.fixture(params=[False, True], ids=["", "probe"])
def calibrated(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> GritModel:
    """The tiny model with numbers that find some questions more answerable than others."""
    probe = (LAYERS, PROBE) if request.param else ()
    monkeypatch.setattr(tiny_model, "answerability", Answerability(0.9, -1.3, 5.0, 1.0, "none", *probe))
    return tiny_model


@pytest.fixture
def index(calibrated: GritModel, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=calibrated, states="float32") as index:
        index.add(DOCUMENTS)
        yield index


def probability(answer: Answer) -> float:
    assert answer.unanswerable is not None
    return answer.unanswerable


def between(answers: list[Answer]) -> float:
    """A threshold that some of the answers are above."""
    found = sorted(map(probability, answers))
    assert found[1] < found[2]
    return (found[1] + found[2]) / 2


def test_the_probability_is_a_logistic_regression_on_what_the_whole_text_says(index: Index) -> None:
    """One document that stands first: its state is exact."""
    model = index.model
    assert isinstance(model, GritModel)
    hits = index.search(QUESTION, k=1)
    plan = plan_context(model, MODES["doc-query"], Retrieved(QUESTION, hits))
    with torch.no_grad():
        told = model.lm(torch.tensor([plan.context.token_ids]), output_hidden_states=True)
    p = float(told.logits[0, -1].float().softmax(-1)[model.prompts.answer_ids(NOT_FOUND)[0]])
    nearest = float((model.encode_document([hits[0].document]) @ model.encode_query([QUESTION])[0]).max())
    score = 0.9 * math.log(p / (1 - p)) - 1.3 * nearest + 5.0
    assert model.answerability is not None
    if model.answerability.layers:
        hidden_D = torch.cat([told.hidden_states[passed][0, -1] for passed in LAYERS])
        score += float(hidden_D @ torch.tensor(PROBE))
    expected = 1 / (1 + math.exp(-score))
    assert 0.01 < expected < 0.99
    found = RAG(index, k=1).ask(QUESTION, max_new_tokens=2)
    assert probability(found) == pytest.approx(expected, abs=1e-4)


def test_it_changes_no_answer_below_the_threshold(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    told = RAG(index, k=2, unanswerable_above=1.0).ask(QUESTION, max_new_tokens=12)
    monkeypatch.setattr(index.model, "answerability", None)
    plain = RAG(index, k=2, unanswerable_above=0.0).ask(QUESTION, max_new_tokens=12)
    assert plain.unanswerable is None
    assert 0 < probability(told) < 1
    assert (told.text, told.usage, told.finish_reason) == (plain.text, plain.usage, plain.finish_reason)


def test_above_it_nothing_else_is_sent(index: Index) -> None:
    rag = RAG(index, k=2, unanswerable_above=0.0)
    first, *pieces, last = rag.stream(QUESTION, max_new_tokens=64)
    assert first.hits
    assert "".join(piece.text or "" for piece in pieces) == NOT_FOUND
    assert last.answer is not None
    assert (last.answer.text, last.answer.finish_reason) == (NOT_FOUND, "stop")
    assert last.answer.usage.generated_tokens == len(rag.model.prompts.answer_ids(NOT_FOUND))
    cut = rag.ask(QUESTION, max_new_tokens=3)
    assert (cut.text, cut.finish_reason, cut.usage.generated_tokens) == (NOT_FOUND[:3], "length", 3)


def test_the_threshold_is_that_of_the_checkpoint_unless_one_is_given(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RAG(index, k=2).ask(QUESTION, max_new_tokens=32).text != NOT_FOUND
    assert isinstance(index.model, GritModel)
    assert index.model.answerability is not None
    monkeypatch.setattr(index.model, "answerability", replace(index.model.answerability, above=0.0))
    assert RAG(index, k=2).ask(QUESTION, max_new_tokens=32).text == NOT_FOUND
    assert RAG(index, k=2, unanswerable_above=1.0).ask(QUESTION, max_new_tokens=32).text != NOT_FOUND


def test_what_the_threshold_says_is_not_called_exact(index: Index) -> None:
    """The uncached run is not judged, and may say something else."""
    exact = [RAG(index, k=1, unanswerable_above=above).ask(QUESTION, max_new_tokens=4).exact for above in (0.0, 1.0)]
    assert exact == [False, True]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_a_batch_each_question_is_judged_as_alone(index: Index, temperature: float) -> None:
    options = {"max_new_tokens": 32, "temperature": temperature}
    above = between([RAG(index, k=2).ask(question, **options) for question in QUESTIONS])
    rag = RAG(index, k=2, unanswerable_above=above)
    alone = [rag.ask(question, **options) for question in QUESTIONS]
    together = rag.ask_many(QUESTIONS, batch_size=4, **options)
    assert [each.text == NOT_FOUND for each in alone].count(True) == 2
    for one, other in zip(alone, together, strict=True):
        assert probability(one) == pytest.approx(probability(other), abs=1e-4)
        assert (one.text == NOT_FOUND) == (other.text == NOT_FOUND) == (probability(one) > above)
        if temperature == 0:
            assert (one.text, one.usage.generated_tokens) == (other.text, other.usage.generated_tokens)


@pytest.mark.parametrize("mode", list(MODES))
def test_only_answers_from_states_of_documents_are_judged(index: Index, mode: str) -> None:
    answer = RAG(index, mode=mode, k=2, unanswerable_above=0.0).ask(QUESTION, max_new_tokens=24)
    assert (answer.unanswerable is not None) == (mode == "doc-cache") == (answer.text == NOT_FOUND)


def test_found_given_and_ranked_documents_are_judged_alike(index: Index) -> None:
    rag = RAG(index, k=3)
    found = rag.ask(QUESTION, max_new_tokens=2)
    given = rag.ask(QUESTION, hits=index.search(QUESTION, k=3), max_new_tokens=2)
    assert probability(given) == pytest.approx(probability(found), abs=1e-6)
    similar = (
        index.model.encode_document([hit.document for hit in found.hits]) @ index.model.encode_query([QUESTION])[0]
    )
    assert [hit.similarity for hit in found.hits] == pytest.approx(similar.tolist(), abs=1e-5)
    for options in ({"search_mode": "dense"}, {"rerank": 3}):
        assert RAG(index, k=3, **options).ask(QUESTION, max_new_tokens=2).unanswerable is not None
    assert rag.ask(QUESTION, documents=["A new one.", "Another."], max_new_tokens=2).unanswerable is not None
    for options in ({"search_mode": "sparse"}, {"recompute": 0.5}):
        assert RAG(index, k=3, **options).ask(QUESTION, max_new_tokens=2).unanswerable is None


def test_without_documents_nothing_is_judged(index: Index) -> None:
    rag = RAG(index, k=2, unanswerable_above=0.0)
    assert rag.ask(QUESTION, where={"year": 99}, max_new_tokens=2).unanswerable is None
    assert rag.model.generate("x", max_new_tokens=2) is not None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(index: Index, value: float) -> None:
    with pytest.raises(ValueError, match="unanswerable_above"):
        RAG(index, unanswerable_above=value)


def test_it_is_kept_with_the_checkpoint_and_belongs_to_its_weights(
    calibrated: GritModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = calibrated.answerability
    assert own is not None
    calibrated.save_pretrained(tmp_path)
    again = GritModel.from_pretrained(tmp_path, dtype="float32")
    assert again.answerability is not None
    assert again.answerability == own
    assert again.fingerprint == calibrated.fingerprint, "an index needs no reading for that"
    replace(own, adapter="of another adapter").save(tmp_path / ANSWERABILITY_FILE)
    with caplog.at_level(logging.WARNING):
        assert GritModel.from_pretrained(tmp_path, dtype="float32").answerability is None
    assert "fitted to another adapter" in caplog.text
    again.answerability = None
    again.save_pretrained(tmp_path)
    assert not (tmp_path / ANSWERABILITY_FILE).exists()


@pytest.mark.parametrize(
    ("layers", "weights", "reason"),
    [
        ((1,), 31, "has 31 weights .* behind 1 layers, this model needs 32 for each"),
        ((1, 2), 32, "has 32 weights .* behind 2 layers"),
        ((), 32, "has 32 weights .* behind 0 layers"),
        ((3,), 32, r"probes behind layers \[3\], this model has 3"),
        ((0,), 32, r"probes behind layers \[0\]"),
    ],
)
def test_a_probe_of_another_model_is_refused(
    layers: tuple[int, ...], weights: int, reason: str, tiny_model: GritModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / ANSWERABILITY_FILE
    Answerability(0.9, -1.3, 5.0, 1.0, "none", layers, (0.1,) * weights).save(path)
    with pytest.raises(ValueError, match=f"{path} {reason}"):
        GritModel.from_pretrained(tmp_path, dtype="float32")


def test_files_without_a_probe_are_read(tmp_path: Path) -> None:
    fields = {"log_odds": 0.9, "similarity": -1.3, "bias": 5, "above": 1, "adapter": "a"}
    (tmp_path / "x").write_text(json.dumps({"format": "gritrag-answerability-1", **fields}))
    assert Answerability.load(tmp_path / "x") == Answerability(0.9, -1.3, 5.0, 1.0, "a")


def test_without_what_is_probed_nothing_is_told(calibrated: GritModel) -> None:
    """The other weights would mean something else."""
    own, logits_V = calibrated.answerability, torch.zeros(300)
    refusal = calibrated.refusal(0.5, 0.0)
    assert own is not None
    assert refusal is not None
    found, said = refusal.judge(logits_V, None, 9)
    if own.layers:
        assert refusal.layers == LAYERS
        assert (found, said) == (None, ())
    else:
        assert refusal.layers == ()
        assert said


def test_later_tokens_are_not_watched(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the forward that gives the first token keeps hidden states, and only where they are probed."""
    model = index.model
    assert isinstance(model, GritModel)
    assert model.answerability is not None
    watched: list[bool] = []
    forward = type(model.forwards.best)
    own = forward.hidden  # type: ignore[attr-defined]

    def hidden(*given: Any, **named: Any) -> Any:
        caches = [each for each in (*given, *named.values()) if isinstance(each, PlacedCache)]
        watched.extend(cache.watched is not None for cache in caches)
        return own(*given, **named)

    monkeypatch.setattr(forward, "hidden", hidden)
    RAG(index, k=2).ask(QUESTION, max_new_tokens=4, lookup=False)
    assert watched == [bool(model.answerability.layers), False, False, False]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    whole = {"log_odds": 0, "similarity": 0, "bias": 0, "above": 1, "adapter": "", "format": FORMAT}
    texts = ["no JSON", "[]", '{"format": "other"}', '{"format": "gritrag-answerability-1", "bias": "x"}']
    texts += [json.dumps(whole), json.dumps({**whole, "layers": [1], "hidden": ["x"]})]
    for broken in map(str.encode, texts):
        (tmp_path / "x").write_bytes(broken)
        with pytest.raises(ValueError, match=str(tmp_path / "x")):
            Answerability.load(tmp_path / "x")


def test_a_document_that_is_left_out_says_nothing_about_the_answer(index: Index) -> None:
    """It is too long on its own, and very like the question."""
    rag, hits = RAG(index, k=2), index.search(QUESTION, k=2)
    huge = Hit(Document("moss " * 90, id="huge"), 1.0, 0, similarity=1.0)
    with_it = rag.ask(QUESTION, hits=[huge, *hits], max_new_tokens=2)
    assert probability(with_it) == pytest.approx(probability(rag.ask(QUESTION, hits=hits, max_new_tokens=2)), abs=1e-6)
