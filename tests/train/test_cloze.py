"""Questions that are made from documents, distractors from nearby, and an order by words."""

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.cloze import ask
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.order import by_words
from gritrag.train.data.sentences import sentence_ends
from gritrag.train.data.steps import RetrievalStep

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]

TEXT = (
    "The old ferry between Port Dreyl and Hame stops sailing at four in the afternoon. "
    "A second bridge was once proposed in 1931, and the ferry families of Hame voted against the costly plan. "
    "Some 412 metres below the surface lies a valley that pilots call the Kettle."
)


def test_sentences_end_behind_their_quotes_and_white_space() -> None:
    text = "He left at 3.30 p.m!  \u201cWhy?\u201d she asked. (So late.)\nNobody knew"
    ends = sentence_ends(text)
    assert [text[start:end] for start, end in pairwise([0, *ends, len(text)])] == [
        "He left at 3.30 p.m!  ",
        "\u201cWhy?\u201d ",
        "she asked. ",
        "(So late.)\n",
        "Nobody knew",
    ]
    assert sentence_ends("") == sentence_ends("One alone.") == []


def test_an_answer_stands_in_the_text_and_not_in_its_question() -> None:
    answers = set()
    for seed in range(200):
        for question in ask(TEXT, 3, random.Random(seed)):
            assert question.answer in TEXT
            assert question.answer.lower() not in question.text.lower()
            assert question.text.endswith("?")
            assert question.is_made
            strange = set(re.findall(r"\w+", question.text.lower())) - set(re.findall(r"\w+", TEXT.lower()))
            assert strange <= set("who what which where name when year how many much number".split())  # noqa: SIM905
            answers.add(question.answer)
    assert {"Kettle", "1931", "412 metres", "Port Dreyl"} <= answers


def test_made_questions_differ_in_their_answers_and_come_again_by_the_same_seed() -> None:
    for seed in range(50):
        made = ask(TEXT, 5, random.Random(seed))
        assert len({question.answer.lower() for question in made}) == len(made)
        assert made == ask(TEXT, 5, random.Random(seed))
    assert ask(TEXT, 5, random.Random(1)) != ask(TEXT, 5, random.Random(2))


@pytest.mark.parametrize(
    "text", ["", "?", "...", "Too short.", "a b c d e f g h.", "\u201c\u201d - ( ) 1 2 3 . ! ?", "x" * 9000]
)
def test_texts_without_sentences_that_do_give_nothing_or_little(text: str) -> None:
    assert len(ask(text, 4, random.Random(0))) <= 4
    assert ask(text, 0, random.Random(0)) == []


def test_made_questions_are_answered_and_never_queries(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    """They fill what the file's own leave free, on a file without answers too, and are others in the next epoch."""
    rows = [
        {"id": str(n), "question": f"own question {n}?", "passage": f"{TEXT} Number {n} ends it.", "answers": []}
        for n in range(4)
    ]
    source = {"path": str(write(tmp_path / "bare.jsonl", rows)), "cloze_questions": 3}
    config = recipe(data={"sources": [source], "chat": [], "questions_per_document": 3, "tokens_per_step": 9000})
    mixture = Mixture(config, tiny_model)
    (held,) = mixture.sources
    assert held.has_answers
    steps = [mixture.step(number) for number in range(2)]
    asked = []
    for step in steps:
        assert isinstance(step, RetrievalStep)
        assert len(step.queries) == len(step.positives) == 4
        assert len(step.answers) == 8, "three questions a document, one of which has no answer"
        asked.append([answer.question_ids for answer in step.answers])
    assert asked[0] != asked[1]
    assert Mixture(config, tiny_model).step(1) == steps[1]


def test_made_ones_are_left_out_first(tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel) -> None:
    rows = [{"id": str(n), "question": f"own {n}?", "passage": f"{TEXT} {n}", "answers": ["Kettle"]} for n in range(4)]
    source = {"path": str(write(tmp_path / "own.jsonl", rows)), "cloze_questions": 3}
    data = {"sources": [source], "chat": [], "questions_per_document": 4, "tokens_per_step": 9000}
    for most, made in ((4, 0), (6, 2)):
        step = Mixture(recipe(data={**data, "answers_per_step": most}), tiny_model).step(0)
        assert isinstance(step, RetrievalStep)
        own = {f"own {n}?" for n in range(4)}
        told = [tiny_model.tokenizer.decode(answer.question_ids) for answer in step.answers]
        assert len(told) == most
        assert sum(not any(question in text for question in own) for text in told) == made


def test_distractors_from_nearby(recipe: Recipe, tiny_model: GritModel) -> None:
    data = {"sources": [{"path": "questions.jsonl"}], "chat": [], "tokens_per_step": 2000, "answers_per_step": 30}

    def spread(p_near: float) -> float:
        config = recipe(data=data, generative={"documents_per_context": [3], "p_near": p_near, "p_unanswerable": 0})
        step = Mixture(config, tiny_model).step(0)
        assert isinstance(step, RetrievalStep)
        assert len(step.documents) > 4
        return max(max(answer.context) - min(answer.context) for answer in step.answers)

    assert spread(1.0) == 2
    assert spread(0.0) > 2


def test_texts_that_share_rare_words_follow_each_other(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    topics = ["amber river ferry", "basalt crater volcano", "comet telescope nurse"]
    texts = [f"{topics[n % 3]} text number {n}" for n in range(9)]
    order = by_words(texts)
    assert sorted(order) == list(range(9))
    assert [row % 3 for row in order] in ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 2, 2, 2, 1, 1, 1])
    assert by_words([]) == []
    assert by_words(["one"]) == [0]
    rows = [{"id": str(n), "question": "who?", "passage": text, "answers": []} for n, text in enumerate(texts)]
    path = str(write(tmp_path / "mixed.jsonl", rows))
    by_file, by_word = (
        Mixture(recipe(data={"sources": [{"path": path, "order": order}], "chat": []}), tiny_model).sources[0]
        for order in ("file", "similar")
    )
    assert [passage.text for passage in by_file.passages] == texts
    assert [passage.text for passage in by_word.passages] == [texts[row] for row in order]


def test_chats_have_neither(recipe: Recipe, tiny_model: GritModel) -> None:
    for wrong in ({"order": "similar"}, {"cloze_questions": 2}):
        config = recipe(data={"sources": [{"path": "questions.jsonl"}], "chat": [{"path": "chat.jsonl", **wrong}]})
        with pytest.raises(ValueError, match="order and cloze_questions are for questions"):
            Mixture(config, tiny_model)
