"""Passages that have lost a sentence: with the answer the question has none, with another it still has."""

import random
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.cut_out import cut_out
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.rows import Question, read_source
from gritrag.train.data.steps import RetrievalStep

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]
NOT_FOUND = "not in the documents"
TEXT = "Osk has a harbour. The lighthouse was built in 1871 by Ann Reed. Gulls nest there. Dogs may stay at the inn."
BUILT = Question("When was it built?", "1871", None, ())


def cut(*questions: Question, takes_answer: bool = True, text: str = TEXT, title: str = "") -> Any:
    return cut_out(text, title, questions, takes_answer, random.Random(0))


def test_the_sentence_with_the_answer_goes_and_the_rest_stays() -> None:
    assert cut(BUILT) == ("Osk has a harbour. Gulls nest there. Dogs may stay at the inn.", [gone(BUILT)])
    last = Question("Where may dogs stay?", "the inn", None, ())
    assert cut(last) == (
        "Osk has a harbour. The lighthouse was built in 1871 by Ann Reed. Gulls nest there.",
        [gone(last)],
    )


def gone(question: Question) -> Question:
    return question._replace(is_unanswerable=True)


def test_a_sentence_that_does_not_matter_goes_and_the_answer_stays() -> None:
    text, questions = cut(BUILT, takes_answer=False)
    assert text == "Osk has a harbour. The lighthouse was built in 1871 by Ann Reed. Gulls nest there.", (
        "nearest in length"
    )
    assert questions == [BUILT]


def test_other_questions_of_the_passage_are_told_apart() -> None:
    builder = Question("Who built it?", "Ann Reed", None, ())
    guests = Question("Who may stay?", "dogs", None, ())
    search = Question("lighthouse of Osk", "", None, ())
    known = Question("Who owns it?", "", None, (), is_unanswerable=True)
    every, left = (BUILT, builder, search, known, guests), []
    for seed in range(20):
        found = cut_out(TEXT, "", every, True, random.Random(seed))
        assert found is not None
        left.append(found[1])
    of_tower, of_inn = [gone(BUILT), gone(builder), search, known, guests], [*every[:4], gone(guests)]
    assert of_tower in left
    assert of_inn in left
    assert all(each in (of_tower, of_inn) for each in left)


@pytest.mark.parametrize(
    ("text", "title", "answer"),
    [
        ("Osk is old. It was built in 1871. In 1871 Ann came. Gulls nest.", "", "1871"),  # told twice
        ("Osk is old. Ann Reed built it. Reed was from Varn. Gulls nest.", "", "Ann Reed"),  # half of it told twice
        ("Osk is old. Ann Reed built it. Gulls nest.", "The houses of Ann Reed", "Ann Reed"),  # told by the title
        ("Osk is old. It is no village. Gulls nest.", "", "no"),  # stands there by chance
        ("Osk is old. It was built early. Gulls nest.", "", "1871"),  # in words of its own
        ("Osk is old. It was built in 18715. Gulls nest.", "", "1871"),  # part of a word
        ("Osk is old. It was built in 1871.", "", "1871"),  # nothing would be left
    ],
)
@pytest.mark.parametrize("takes_answer", [True, False])
def test_a_passage_is_left_alone_where_it_would_still_tell_or_never_told(
    text: str, title: str, answer: str, takes_answer: bool
) -> None:
    assert cut(Question("when?", answer, None, ()), takes_answer=takes_answer, text=text, title=title) is None


def test_a_passage_with_an_answer_in_words_of_its_own_is_left_alone() -> None:
    assert cut(BUILT, Question("Is it old?", "yes", None, ())) is None
    assert cut(BUILT, Question("What is it like?", "rather old", None, ())) is None


def test_passages_with_further_passages_are_left_alone() -> None:
    assert cut(BUILT._replace(negatives=("It was built in 1871.",))) is None
    assert cut(BUILT._replace(evidence=("Ann Reed lived long.",))) is None


def test_an_answer_of_other_places_too_is_not_asked_for_once_one_is_gone() -> None:
    text = "Osk has a harbour. Ann Reed built the lighthouse of Osk. Gulls nest there. Dogs may stay at the inn."
    builder, village = Question("Who built it?", "Ann Reed", None, ()), Question("Where is it?", "Osk", None, ())
    assert cut(builder, village, text=text)[1] == [gone(builder)]


# --- in a draw --------------------------------------------------------------------------------------------------------


def rows(count: int = 60) -> list[dict[str, Any]]:
    """Passages of several sentences, and one of them answers; of neighbours, some share an answer."""
    rng, found = random.Random(1), []
    for number in range(count):
        about = [
            f"Place {number} has {' '.join(rng.choices(['red', 'wide', 'old', 'cold'], k=rng.randint(1, 12)))} x{n}."
            for n in range(4)
        ]
        about.insert(
            rng.randrange(5), f"Its {' '.join(['tall'] * rng.randint(1, 5))} tower is from {1700 + number // 2}."
        )
        row = {
            "question": f"When was tower {number} built?",
            "passage": " ".join(about),
            "answers": [f"{1700 + number // 2}"],
        }
        found.append(row)
    return found


@pytest.fixture
def mixture(tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write) -> Callable[[float], Mixture]:
    path = write(tmp_path / "towers.jsonl", rows())

    def make(share: float) -> Mixture:
        data = {"sources": [{"path": str(path), "neighbours": 4}], "chat": [], "p_title": 0, "tokens_per_step": 1500}
        generative = {
            "p_chat": 0,
            "p_full": 0,
            "p_unanswerable": 0,
            "p_answer_cut_out": share,
            "max_context_tokens": 3000,
        }
        return Mixture(recipe(data=data, generative=generative), tiny_model)

    return make


def test_half_of_what_lost_a_sentence_has_no_answer_and_lengths_do_not_tell(
    mixture: Callable[[float], Mixture], tiny_model: GritModel, tmp_path: Path
) -> None:
    passages, _ = read_source(tmp_path / "towers.jsonl", SourceConfig(path="towers.jsonl"))
    whole = {passage.questions[0].text: passage.text for passage in passages}

    def text(ids: list[int]) -> str:
        return tiny_model.tokenizer.decode(ids)

    drawn = mixture(0.25)
    lost: dict[bool, list[int]] = {True: [], False: []}
    untouched = 0
    for step in map(drawn.step, range(80)):
        assert isinstance(step, RetrievalStep)
        documents = [text(document.ids) for document in step.documents]
        queries = [text(query.ids) for query in step.queries]
        for answer in step.answers:
            (question,) = [known for known in whole if known in text(answer.question_ids)]
            known = whole[question]
            is_missing = NOT_FOUND in text(answer.answer_ids)
            year = f"{1700 + int(question.split()[3]) // 2}"
            assert any(year in documents[row] for row in answer.context) != is_missing, "nor do others of the context"
            assert any(question in query for query in queries) != is_missing, "what has no answer is not searched for"
            kept = [row for row in answer.context if f"Place {question.split()[3]} " in documents[row]]
            assert len(kept) == 1, "the rest of its passage is there"
            if known in documents[kept[0]]:
                untouched += 1
                assert not is_missing
            else:
                lost[is_missing].append(len(documents[kept[0]]) - len(known))
    missing, other = map(len, (lost[True], lost[False]))
    total = missing + other + untouched
    assert 0.18 < missing / total < 0.32
    assert 0.18 < other / total < 0.32
    assert abs(mean(lost[True]) - mean(lost[False])) < 3, "characters"


def test_questions_that_are_made_of_a_passage_lose_their_answers_too(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    path = write(tmp_path / "towers.jsonl", [{**row, "answers": []} for row in rows()])
    source = {"path": str(path), "cloze_questions": 2}
    data = {"sources": [source], "chat": [], "questions_per_document": 3, "tokens_per_step": 1500}
    generative = {"p_full": 0, "p_unanswerable": 0, "p_answer_cut_out": 0.5, "max_context_tokens": 3000}
    mixture = Mixture(recipe(data=data, generative=generative), tiny_model)
    answers = [answer for step in map(mixture.step, range(20)) for answer in step.answers]
    missing = [NOT_FOUND in tiny_model.tokenizer.decode(answer.answer_ids) for answer in answers]
    assert 0.1 < mean(missing) < 0.6


def test_a_recipe_without_it_draws_as_before(mixture: Callable[[float], Mixture], tiny_model: GritModel) -> None:
    steps = [mixture(0.0).step(number) for number in range(10)]
    assert not any(NOT_FOUND in tiny_model.tokenizer.decode(a.answer_ids) for step in steps for a in step.answers)
