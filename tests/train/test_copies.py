"""A document that stands in a step more than once: the copy is no negative of the document's own questions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]
TEXTS = ["Ann sings at noon.", "Bob left for Osk.", "Cem has three boats.", "Dee sleeps."]
ANSWERS = ["someone", "away", "a few", "no"]
"""In words of their own: that a text does not hold one says nothing."""


@pytest.fixture
def mined(tmp_path: Path, write: Write, recipe: Recipe) -> Callable[..., TrainConfig]:
    """A recipe over questions whose negatives are each other's passages, as mining finds them."""
    documents = [{"text": text, "title": "Osk"} for text in TEXTS]
    rows = [
        {"question": f"q{n}?", "documents": [documents[n], documents[n - 1]], "answers": [ANSWERS[n]]} for n in range(4)
    ]
    write(tmp_path / "mined.jsonl", rows)

    def make(in_batch: bool = True, **changes: Any) -> TrainConfig:
        source = {"path": str(tmp_path / "mined.jsonl"), "in_batch_negatives": in_batch}
        return recipe(data={"sources": [source], "chat": [], "tokens_per_step": 2000, "p_title": 0.5}, **changes)

    return make


@pytest.mark.parametrize("memory", [0, 50])
@pytest.mark.parametrize("in_batch", [True, False])
def test_the_loss_is_over_documents_that_are_others(
    mined: Callable[..., TrainConfig], in_batch: bool, memory: int
) -> None:
    settings = {"false_negative_margin": None, "cross_batch_memory": memory, "temperature": 0.5}
    config = mined(in_batch, contrastive=settings, generative={"weight": 0})
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    step = Mixture(config, model).step(0)
    assert isinstance(step, RetrievalStep)
    assert len(step.documents) == 8
    read_once = ReadOnce(model, config)
    with torch.no_grad():
        documents = read_once.read(step.documents, with_states=False).vectors
        queries = read_once.read(step.queries, with_states=False).vectors
    told = [next(n for n, text in enumerate(TEXTS) if text in model.tokenizer.decode(d.ids)) for d in step.documents]
    losses = []
    for query, own in zip(queries, step.positives, strict=True):
        others = [row for row in range(8) if told[row] != told[own] and (in_batch or row == own + 1)]
        logits = torch.stack([query @ documents[row] for row in (own, *others)]) / 0.5
        losses.append(torch.logsumexp(logits, 0) - logits[0])
    assert read_once(step).losses["contrastive"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_views_of_copies_are_no_negatives_of_each_other(mined: Callable[..., TrainConfig]) -> None:
    views = {"weight": 1.0, "dropout": 1e-9, "temperature": 0.5}
    config = mined(contrastive={"weight": 0}, generative={"weight": 0}, views=views)
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    step = Mixture(config, model).step(0)
    assert isinstance(step, RetrievalStep)
    read_once = ReadOnce(model, config)
    with torch.no_grad():
        vectors = read_once.read(step.documents, with_states=False).vectors
    told = [next(n for n, text in enumerate(TEXTS) if text in model.tokenizer.decode(d.ids)) for d in step.documents]
    assert sorted(told) == [0, 0, 1, 1, 2, 2, 3, 3]
    losses = []
    for own in range(8):
        others = [row for row in range(8) if told[row] != told[own]]
        logits = torch.stack([vectors[own] @ vectors[row] for row in (own, *others)]) / 0.5
        losses.append(torch.logsumexp(logits, 0) - logits[0])
    assert read_once(step).losses["views"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_document_is_the_same_in_every_step_whatever_it_stands_there_for(
    mined: Callable[..., TrainConfig], tiny_model: GritModel
) -> None:
    """So memory does not hold a copy of an earlier step against it."""
    mixture = Mixture(mined(generative={"p_full": 0.0}), tiny_model)
    known: dict[str, set[int]] = {}
    for step in map(mixture.step, range(6)):
        for document, identity in zip(step.documents, step.identities, strict=True):
            read = tiny_model.tokenizer.decode(document.ids)
            known.setdefault(next(text for text in TEXTS if text in read), set()).add(identity)
    assert [len(identities) for identities in known.values()] == [1] * len(TEXTS)


def test_what_is_not_in_the_documents_is_in_no_copy_either(
    mined: Callable[..., TrainConfig], tiny_model: GritModel
) -> None:
    config = mined(generative={"p_unanswerable": 1.0, "documents_per_context": (1, 3), "p_full": 0.0})
    mixture = Mixture(config, tiny_model)
    missing = 0
    for step in map(mixture.step, range(10)):
        for answer in step.answers:
            question = tiny_model.tokenizer.decode(answer.question_ids)
            own = next(text for n, text in enumerate(TEXTS) if f"q{n}?" in question)
            if "not in the documents" in tiny_model.tokenizer.decode(answer.answer_ids):
                shown = [tiny_model.tokenizer.decode(step.documents[row].ids) for row in answer.context]
                assert not any(own in text for text in shown)
                missing += 1
    assert missing


def test_no_passage_of_a_row_is_longer_than_the_recipe_allows(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    """Nor does a distractor that is cut fill a step as if it were whole."""
    long = "It rains here. " * 100
    rows: list[dict[str, Any]] = [
        {"question": f"q{n}?", "documents": [f"Fact {n}.", f"{n} {long}"], "answers": ["Fact"]} for n in range(4)
    ]
    rows += [
        {"question": "kept?", "documents": ["Yes.", f"Kept. {long}"], "gold": [0, 1], "answers": ["kept"]},
        {"question": "lost?", "documents": ["No.", f"{long} Lost."], "gold": [0, 1], "answers": ["lost"]},
    ]
    write(tmp_path / "long.jsonl", rows)
    data = {"sources": [{"path": str(tmp_path / "long.jsonl")}], "chat": [], "max_document_tokens": 60}
    mixture = Mixture(recipe(data={**data, "tokens_per_step": 200}, generative={"p_full": 0.0}), tiny_model)
    room = len(tiny_model.document_token_ids("x")) - 1 + 60
    asked = set[str]()
    read = list[str]()
    for step in map(mixture.step, range(12)):
        assert max(len(document.ids) for document in step.documents) <= room
        read += [tiny_model.tokenizer.decode(document.ids) for document in step.documents]
        asked |= {tiny_model.tokenizer.decode(answer.question_ids) for answer in step.answers}
    assert sum("Fact" in text for text in read) == 4 * 4, "three steps are an epoch"
    assert any("kept?" in question for question in asked)
    assert not any("lost?" in question for question in asked)
