"""RAG and its index: states that are missing, documents that change, others that write, and another reader."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from ferry import DOCUMENTS, QUESTION

from gritrag import RAG, Answer, Document, GritModel, Index
from gritrag.index.storage.states import StateFileWarning
from gritrag.model.state import DocumentState, Reading
from gritrag.records import as_hits


@pytest.fixture
def index(tiny_model: GritModel, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as index:
        index.add(DOCUMENTS)
        yield index


def test_a_missing_state_is_read_used_and_stored(tiny_model: GritModel, index: Index, tmp_path: Path) -> None:
    expected = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    for file in (tmp_path / "index" / "states").glob("*/*.safetensors"):
        file.unlink()
    with pytest.warns(UserWarning, match="read anew"):
        again = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    assert again.text == expected.text
    assert len(list((tmp_path / "index" / "states").glob("*/*.safetensors"))) == 3
    assert RAG(index, k=3).ask(QUESTION, max_new_tokens=8).text == expected.text


def test_answers_that_see_one_commit_are_given_though_states_are_missing(index: Index) -> None:
    """Inside of a snapshot nothing can be stored; behind it, it is."""
    expected = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    for file in index.path.glob("states/*/*.safetensors"):
        file.unlink()
    with pytest.warns(UserWarning, match="read anew"), index.snapshot():
        assert RAG(index, k=3).ask(QUESTION, max_new_tokens=8).text == expected.text
    assert list(index.path.glob("states/*/*.safetensors")) == []
    with pytest.warns(UserWarning, match="read anew"):
        assert RAG(index, k=3).ask(QUESTION, max_new_tokens=8).text == expected.text
    assert len(list(index.path.glob("states/*/*.safetensors"))) == 3


def test_an_answer_needs_no_room_on_the_disk(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a state that it misses and that cannot be kept there is a warning; `store_state` itself fails."""
    expected = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    (state,) = index.load_states(index.get(["a"]))
    assert state is not None
    monkeypatch.setattr(index._parts.quota, "load", lambda entries: [None for _ in entries])

    def fails(key: str, state: DocumentState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index._parts.quota, "put", fails)
    with pytest.warns(StateFileWarning, match="No space left on device.*make room"):
        assert RAG(index, k=3).ask(QUESTION, max_new_tokens=8).text == expected.text
    with pytest.raises(OSError, match="No space left"):
        index.store_state(DOCUMENTS[0], state)


def test_an_index_without_states_and_a_read_only_one_answer_alike(tiny_model: GritModel, tmp_path: Path) -> None:
    answers = []
    for codec in ("none", "float32"):
        with Index.create(tmp_path / codec, model=tiny_model, states=codec) as index:
            index.add(DOCUMENTS)
        with Index.open(tmp_path / codec, model=tiny_model, mode="r") as index:
            answers.append(RAG(index, k=3).ask(QUESTION, max_new_tokens=8))
    assert answers[0].text == answers[1].text
    assert [answer.usage.cached_tokens for answer in answers] == [0, sum(c.end - c.start for c in answers[1].citations)]
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


def test_a_document_that_goes_while_it_is_answered_from_is_no_error(
    index: Index, tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    (state,) = index.load_states(index.get(["a"]))
    monkeypatch.setattr(index, "load_states", lambda documents: [None for _ in documents])
    read = tiny_model.read_documents

    def read_while_another_deletes(texts: Sequence[Document]) -> list[Reading]:
        index.delete(ids=["a"])
        return read(texts)

    monkeypatch.setattr(tiny_model, "read_documents", read_while_another_deletes)
    assert RAG(index, k=3).ask(QUESTION, hits=expected.hits, max_new_tokens=8).text == expected.text
    index.store_state(DOCUMENTS[0], state)
    assert "a" not in index
    assert index.verify() == ([], [])


def test_an_answer_waits_for_no_writer(index: Index) -> None:
    expected = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    for file in index.path.glob("states/*/*.safetensors"):
        file.unlink()
    answers: list[Answer] = []

    def answer() -> None:
        answers.append(RAG(index, k=3).ask(QUESTION, max_new_tokens=8))

    def documents_that_come_after_an_answer() -> Iterator[Document]:
        asking = threading.Thread(target=answer, daemon=True)
        asking.start()
        asking.join(timeout=60)
        yield Document("A late one.", id="late")

    with pytest.warns(UserWarning, match="read anew"):
        index.add(documents_that_come_after_an_answer())
    assert [(each.text, each.usage.cached_tokens) for each in answers] == [(expected.text, 0)]
    assert len(list(index.path.glob("states/*/*.safetensors"))) == 1  # the late one's
    with pytest.warns(UserWarning, match="read anew"):  # of the same hits: a search might now find the late one
        RAG(index, k=3).ask(QUESTION, hits=expected.hits, max_new_tokens=8)
    assert index.load_states(index.get(["a", "b", "c"])).count(None) == 0


@pytest.mark.parametrize("mode", ["doc-query", "doc-cache", "query-doc-cache"])
def test_the_best_hit_stands_last_whether_it_was_searched_or_given(index: Index, mode: str) -> None:
    rag = RAG(index, mode=mode, k=3)
    answer = rag.ask(QUESTION, max_new_tokens=8)
    ends = [citation.end for citation in answer.citations]
    assert [citation.id for citation in answer.citations] == [hit.document.id for hit in answer.hits]
    assert [hit.rank for hit in answer.hits] == [1, 2, 3]
    assert ends == sorted(ends, reverse=True)
    given = rag.ask(QUESTION, hits=index.search(QUESTION, 3, mode="hybrid"), max_new_tokens=8)
    (batched,) = rag.ask_many([QUESTION], max_new_tokens=8)
    for again in (given, batched):
        assert (again.text, again.citations, again.usage) == (answer.text, answer.citations, answer.usage)


def test_documents_and_strings_are_answered_from_in_their_order(index: Index) -> None:
    rag = RAG(index)
    expected = rag.ask(QUESTION, hits=as_hits(DOCUMENTS[1::-1]), max_new_tokens=8)  # the best of hits stands last
    answer = rag.ask(QUESTION, documents=DOCUMENTS[:2], max_new_tokens=8)
    assert (answer.text, answer.citations[::-1], answer.usage) == (expected.text, expected.citations, expected.usage)
    assert answer.citations[0].start == 0
    assert [(hit.document, hit.rank) for hit in answer.hits] == [(DOCUMENTS[0], 1), (DOCUMENTS[1], 2)]
    text = DOCUMENTS[1].text
    named, bare = (rag.ask(QUESTION, documents=[given], max_new_tokens=8) for given in (Document(text), text))
    assert (bare.text, bare.citations) == (named.text, named.citations)
    (batched,) = rag.ask_many([QUESTION], documents=[[text]], max_new_tokens=8)
    assert batched.text == bare.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"documents": "a text"}, "documents must be a list.*not one str"),
        ({"documents": DOCUMENTS[0]}, "documents must be a list.*not one Document"),
        ({"documents": [DOCUMENTS[0], None]}, "document 1 is a NoneType: give a string or a Document"),
        ({"documents": [{"text": "a text"}]}, "document 0 is a dict"),
        ({"documents": [Document("text", id="\ud800")]}, r"'\\ud800' holds a lone surrogate"),
        ({"documents": as_hits(DOCUMENTS)}, "document 0 is a Hit"),
        ({"hits": as_hits(DOCUMENTS)[0]}, "hits must be a list.*not one Hit"),
        ({"hits": [*as_hits(DOCUMENTS[:1]), "a text"]}, "hit 1 is a str: .*use documents="),
    ],
)
def test_what_is_no_document_and_no_hit_is_refused(index: Index, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RAG(index).ask(QUESTION, **given)


def test_a_hit_that_is_no_longer_what_the_index_holds_is_read_again(index: Index, tiny_model: GritModel) -> None:
    for document in (Document("Another text entirely.", id="a"), Document("Never indexed.", id="new")):
        cached, uncached = (
            RAG(index, mode=mode).ask(QUESTION, hits=as_hits([document]), max_new_tokens=8)
            for mode in ("doc-cache", "doc-query")
        )
        assert cached.text == uncached.text
        assert cached.usage.prompt_tokens == uncached.usage.prompt_tokens
    assert index.load_states(index.get(["a"]))[0].token_ids.tolist() == tiny_model.document_token_ids(DOCUMENTS[0])
    stream = RAG(index, k=3).stream(QUESTION, max_new_tokens=2)
    next(stream)
    index.delete(ids=["a"])
    assert [*stream][-1].answer.usage.generated_tokens == 2


def test_a_state_of_another_reading_is_not_stored(index: Index, make_model: Callable[..., GritModel]) -> None:
    (reading,) = make_model(reading="bidirectional").read_documents([DOCUMENTS[0]])
    with pytest.raises(ValueError, match="was read bidirectional, documents of this index are read causal"):
        index.store_state(index["a"], reading.state)


def test_an_index_of_another_reader_is_refused_by_the_name_of_the_field(
    index: Index, make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    index.close()
    others = {
        "weights": make_model("qwen2"),
        "pooling": make_model(pooling="last"),
        "template": make_model(template="plain"),
        "reading": make_model(reading="bidirectional"),
    }
    for field, model in others.items():
        with pytest.raises(ValueError, match=f"{field}: ") as raised:
            Index.open(tmp_path / "index", model=model, mode="rw")
        assert raised.value.fields == (field,)


def test_a_model_that_is_none_destroys_nothing(index: Index, tiny_model: GritModel, tmp_path: Path) -> None:
    index.close()
    with pytest.raises(ValueError, match="no model 'nobody'"):
        Index.create(tmp_path / "index", model="nobody", overwrite=True)
    with pytest.raises(ValueError, match="loaded GritModel"):
        Index.create(tmp_path / "index", model=None, overwrite=True)
    with Index.open(tmp_path / "index", model=tiny_model, mode="rw") as again:
        assert len(again) == 3
