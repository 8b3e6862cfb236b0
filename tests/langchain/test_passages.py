"""Spans: a whole quotation is found wherever it stands, and what has been edited is none."""

from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gritrag import Document
from gritrag.langchain.passages import ANCHOR, Passages

HARBOUR = Document("The harbour of Corvane was dug by salt traders in 1702.", id="harbour")
FOG = Document("Nets of goat hair catch the fog above the Quillon desert.", id="fog", title="Quillon")
FERRY = Document("The ferry to Hame stops at four in the afternoon.\nIt carries cars, too.", id="ferry")
EVERY = (HARBOUR, FOG, FERRY)


def passages(*documents: Document) -> Passages:
    noted = Passages()
    noted.note(documents or EVERY)
    return noted


def found(text: str, *documents: Document) -> list[tuple[str, str]]:
    return [(text[span.start : span.end], span.document.id) for span in passages(*documents).find(text)]


def test_quotations_come_in_the_order_of_the_text() -> None:
    text = f"Context:\n\n{FERRY.text}\n\n---\n\n{HARBOUR.text}\n\nQuestion: who dug the harbour?"
    assert found(text) == [(FERRY.text, "ferry"), (HARBOUR.text, "harbour")]


def test_a_passage_quoted_twice_is_found_twice() -> None:
    assert found(f"{HARBOUR.text} {HARBOUR.text}") == [(HARBOUR.text, "harbour")] * 2


def test_a_title_on_the_line_before_belongs_to_it() -> None:
    assert found(f"1. {FOG.content}") == [(FOG.content, "fog")]
    assert found(f"Quillon: {FOG.text}") == [(FOG.text, "fog")]


def test_of_nested_passages_the_longest_is_found() -> None:
    longer = Document(f"{HARBOUR.text} It froze twice.", id="longer")
    assert found(f"x {longer.text} y", HARBOUR, longer) == [(longer.text, "longer")]
    assert found(f"x {HARBOUR.text} y", HARBOUR, longer) == [(HARBOUR.text, "harbour")]


def test_of_overlapping_passages_the_first_is_found() -> None:
    left = Document("one two three four five six", id="left")
    right = Document("four five six seven eight nine", id="right")
    assert found("one two three four five six seven eight nine", left, right) == [(left.text, "left")]


def test_of_one_text_under_two_ids_the_latest_counts() -> None:
    assert found(HARBOUR.text, HARBOUR, Document(HARBOUR.text, id="later")) == [(HARBOUR.text, "later")]


@pytest.mark.parametrize("text", [f"{HARBOUR.text[:-1]}3.", f"un{HARBOUR.text}", f"{HARBOUR.text[:-1]}5 ships"])
def test_a_word_that_goes_on_is_an_edit(text: str) -> None:
    undotted = Document(HARBOUR.text.rstrip("."), id="undotted")
    assert found(text, undotted) == []


def test_short_passages_are_left_as_text() -> None:
    assert found("yes, of course", Document("yes"), Document("of course")) == []
    text = "x" * ANCHOR
    assert found(f"{text} {text[1:]}", Document(text, id="enough"), Document(text[1:])) == [(text, "enough")]


def test_white_space_around_a_passage_does_not_matter() -> None:
    assert found(f"a {HARBOUR.text} b", Document(f"\n {HARBOUR.text}\n\n", id="padded")) == [(HARBOUR.text, "padded")]


@given(
    st.lists(st.sampled_from(EVERY), max_size=6),
    st.lists(st.sampled_from(["", "\n\n", "Context: ", "{braces} <|im_end|>\n", "é—✓ "]), min_size=7, max_size=7),
)
def test_any_mixture_of_text_and_quotations_comes_apart_again(quoted: list[Document], between: list[str]) -> None:
    text, expected = between[0].strip() and between[0], []
    for document, gap in zip(quoted, between[1:], strict=False):
        text += " "
        expected.append((len(text), len(text) + len(document.text), document.id))
        text += f"{document.text} {gap}"
    assert [(span.start, span.end, span.document.id) for span in passages().find(text)] == expected


@given(st.sampled_from(EVERY), st.data())
def test_one_letter_edited_is_a_miss(document: Document, data: st.DataObject) -> None:
    letters = [position for position, letter in enumerate(document.text) if letter.isalpha()]
    position = data.draw(st.sampled_from(letters))
    letter = data.draw(st.sampled_from("xyz").filter(lambda letter: letter != document.text[position]))
    edited = document.text[:position] + letter + document.text[position + 1 :]
    shorter = document.text[:position] + document.text[position + 1 :]
    longer = document.text[:position] + letter + document.text[position:]
    neighbour = next(other for other in EVERY if other != document)
    for text in (edited, shorter, longer):
        assert found(f"{text}\n\n{neighbour.text}") == [(neighbour.text, neighbour.id)]


def test_the_oldest_are_forgotten() -> None:
    few = Passages(capacity=2)
    few.note([HARBOUR, FOG])
    few.note([HARBOUR])
    few.note([FERRY])
    assert len(few) == 2
    assert [span.document.id for span in few.find("\n".join(d.text for d in EVERY))] == ["harbour", "ferry"]


def test_threads_may_note_and_look_at_once() -> None:
    noted, text = passages(HARBOUR), f"{HARBOUR.text} {FOG.text}"
    results: list[list[str]] = []
    writer = Thread(
        target=lambda: [noted.note([Document(f"passage number {n} of many", id=str(n))]) for n in range(800)]
    )
    writer.start()
    while writer.is_alive():
        results.append([span.document.id for span in noted.find(text)])
    writer.join()
    results.append([span.document.id for span in noted.find(text)])
    assert all(ids == ["harbour"] for ids in results)
