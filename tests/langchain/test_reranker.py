"""The document compressor: it keeps those documents behind whose states the question is most probable."""

from collections.abc import Callable

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument

from gritrag import Document, GritModel, Index
from gritrag.langchain import GritReranker, GritRetriever
from gritrag.langchain.passages import passages_of
from gritrag.langchain.reranker import SCORE

TEXTS = ["a mill of red stone", "a bridge of oak", "a ferry of iron", "a tower of glass"]
QUESTION = "What is made of oak?"


@pytest.fixture
def index(make_index: Callable[..., Index]) -> Index:
    filled = make_index(states="float32")
    filled.add([Document(text, id=f"d{n}") for n, text in enumerate(TEXTS)])
    return filled


def test_documents_come_back_in_the_order_of_the_likelihood(index: Index, tiny_model: GritModel) -> None:
    found = GritRetriever(index=index, k=4).invoke(QUESTION)
    kept = GritReranker(index=index, top_n=3).compress_documents(found, QUESTION)
    logs = tiny_model.question_log_likelihoods(QUESTION, [r.state for r in tiny_model.read_documents(TEXTS)])
    assert [document.id for document in kept] == [f"d{n}" for n in np.argsort(-logs)[:3]]
    np.testing.assert_allclose([document.metadata[SCORE] for document in kept], np.sort(-logs)[:3] * -1, atol=1e-5)
    assert all(SCORE not in document.metadata for document in found), "what it was given is not changed"
    assert len(GritReranker(index=index, top_n=None).compress_documents(found, QUESTION)) == len(TEXTS)


def test_what_completes_the_best_document_comes_next(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    found = GritRetriever(index=index, k=4).invoke(QUESTION)
    logs_NS = np.full((4, 40), -4.0, np.float32)
    logs_NS[0, :22], logs_NS[1, :21], logs_NS[2, 22:34] = -1.0, -1.5, -1.0
    monkeypatch.setattr(Index, "question_token_log_likelihoods", lambda self, query, documents: logs_NS)
    kept = GritReranker(index=index, top_n=3).compress_documents(found, QUESTION)
    assert [document.id for document in kept] == [found[row].id for row in (0, 2, 1)]
    assert [document.metadata[SCORE] for document in kept] == pytest.approx(
        [float(logs_NS[n].mean()) for n in (0, 2, 1)]
    )


def test_a_document_without_text_stops_nothing(index: Index) -> None:
    """Other retrievers return such pages of scans."""
    found = GritRetriever(index=index, k=4).invoke(QUESTION)
    blank = [LangChainDocument(""), LangChainDocument(" \n")]
    reranker = GritReranker(index=index, top_n=None)
    assert reranker.compress_documents([blank[0], *found, blank[1]], QUESTION) == reranker.compress_documents(
        found, QUESTION
    )
    assert reranker.compress_documents(blank, QUESTION) == []


def test_nothing_is_read_that_has_a_state(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = GritModel.read_documents

    def read_documents(model: GritModel, texts: list[Document], **options: bool) -> object:
        read.extend(document.text for document in texts)
        return original(model, texts, **options)

    found = GritRetriever(index=index, k=4).invoke(QUESTION)
    monkeypatch.setattr(GritModel, "read_documents", read_documents)
    stray = LangChainDocument("a lamp of brass")
    kept = GritReranker(index=index, top_n=5).compress_documents([*found, stray], QUESTION)
    assert read == [stray.page_content]
    assert {document.page_content for document in kept} == {*TEXTS, stray.page_content}
    assert passages_of(index).with_text(TEXTS[0]) is not None, "a prompt that quotes it is answered from its state"


def test_metadata_are_those_that_a_document_came_with(index: Index) -> None:
    """Another retriever may know more of a text than the index does, such as the page that it is from."""
    found = [LangChainDocument(TEXTS[0], metadata={"page": 7}), LangChainDocument(TEXTS[1], id="own")]
    passages_of(index).note(index.get(["d0"]))
    kept = GritReranker(index=index).compress_documents(found, QUESTION)
    facts = {document.page_content: (document.id, document.metadata) for document in kept}
    assert facts[TEXTS[0]] == ("d0", {"page": 7, SCORE: facts[TEXTS[0]][1][SCORE]})
    assert facts[TEXTS[1]][0] == "own"


def test_the_retriever_ranks_too(index: Index) -> None:
    found = GritRetriever(index=index, k=2, rerank=4).invoke(QUESTION)
    assert [document.id for document in found] == [hit.document.id for hit in index.search(QUESTION, 2, rerank=4)]
    assert GritReranker(index=index).compress_documents([], QUESTION) == []
    with pytest.raises(ValueError, match="two names for the same"):
        GritRetriever(index=index).invoke(QUESTION, filter={"n": 1}, where={"n": 2})
    with pytest.raises(ValueError, match="at least k"):
        GritRetriever(index=index, k=2).invoke(QUESTION, rerank=1)
