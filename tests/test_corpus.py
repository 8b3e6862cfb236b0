"""The corpus: sixty passages, one question each, and every answer literally in its passage."""

from pathlib import Path

import pytest

from gritrag import Document, GritModel, Index, demo
from gritrag.corpus import LONG, documents, long_documents, long_questions, questions
from gritrag.demo import ask_others, is_right

CORPUS = documents()
QUESTIONS = questions()
LONG_CORPUS = long_documents()


def test_sixty_documents_with_unique_ids_titles_and_texts() -> None:
    assert len(CORPUS) == 60
    for values in ([d.id for d in CORPUS], [d.title for d in CORPUS], [d.text for d in CORPUS]):
        assert len(set(values)) == 60
        assert all(values)


def test_every_passage_is_short_and_has_a_domain() -> None:
    assert all(60 <= len(document.text.split()) <= 160 for document in CORPUS)
    assert len({document.metadata["domain"] for document in CORPUS}) >= 10


def test_twelve_passages_are_long_and_in_a_domain_of_their_own() -> None:
    assert len({document.id for document in (*CORPUS, *LONG_CORPUS)}) == 72
    assert all(200 <= len(document.text.split()) <= 260 for document in LONG_CORPUS)
    assert {document.metadata["domain"] for document in LONG_CORPUS} == {LONG}
    assert LONG not in {document.metadata["domain"] for document in CORPUS}


def test_each_document_has_exactly_one_question() -> None:
    assert [question.document_id for question in long_questions()] == [document.id for document in LONG_CORPUS]
    assert sorted(question.document_id for question in QUESTIONS) == sorted(document.id for document in CORPUS)
    assert len({question.question for question in QUESTIONS}) == 60


def test_every_answer_is_a_short_span_of_its_passage_and_not_given_away_by_the_question() -> None:
    texts = {document.id: document.text for document in (*CORPUS, *LONG_CORPUS)}
    for question in (*QUESTIONS, *long_questions()):
        assert question.question.endswith("?")
        assert question.answers
        for answer in question.answers:
            assert answer in texts[question.document_id], question
            assert 1 <= len(answer.split()) <= 5, question
            assert f" {answer.lower()}" not in question.question.lower(), question


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Copper dust.", True),
        ("It is the fine COPPER-DUST of the cliffs", True),
        ("copper dusts", False),
        ("dust of copper", False),
        ("", False),
    ],
)
def test_an_answer_is_right_if_it_holds_the_words_in_order(text: str, right: bool) -> None:
    assert is_right(text, ["the copper dust"]) is right


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("19 days", "nineteen days", True),
        ("It lives for Twenty-Two years.", "22 years", True),
        ("twenty two", "22", True),
        ("22", "twenty-two", True),
        ("three hundred", "3 hundred", True),
        ("twenty and two", "22", False),
        ("twenty two thirty", "22 30", True),
        ("one two", "3", False),
        ("nine days", "nineteen days", False),
        ("thirty-zero", "30", True),
        ("someone", "1", False),
    ],
)
def test_a_number_is_the_same_in_words_and_in_digits(text: str, answer: str, right: bool) -> None:
    assert is_right(text, [answer]) is right


def test_questions_that_are_not_shown_are_answered_and_counted(
    tiny_model: GritModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def right_but_once(text: str, answers: list[str]) -> bool:
        seen.append(answers)
        return len(seen) > 1

    monkeypatch.setattr(demo, "is_right", right_but_once)
    shown = questions(56)
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add([Document("The ferry sails at four.")])
        others = ask_others(index, shown, k=1, relevance_bias=8.0)
        assert (others.questions, others.right_cached) == (4, 3)
        assert others.seconds > 0
        assert seen == [question.answers for question in questions() if question not in shown]
        assert ask_others(index, questions(), k=1, relevance_bias=8.0)[:2] == (0, 0)
