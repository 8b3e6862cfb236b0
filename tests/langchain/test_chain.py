"""The chain from a question to an answer is `RAG`, in LangChain's words."""

from collections.abc import Callable

import pytest
from langchain_core.runnables import RunnableLambda

from gritrag import RAG, Document, Index
from gritrag.langchain import GritRAGChain, to_langchain

TEXTS = ["a mill of red stone", "a bridge of oak", "a ferry of iron", "a tower of glass"]
QUESTION = "What is made of oak?"


@pytest.fixture
def index(make_index: Callable[..., Index]) -> Index:
    filled = make_index(states="float32")
    filled.add(
        [
            Document(text, id=f"d{n}", title="Bridge" if n == 1 else "", metadata={"n": n})
            for n, text in enumerate(TEXTS)
        ]
    )
    return filled


@pytest.fixture
def chain(index: Index) -> GritRAGChain:
    return GritRAGChain(index=index, k=3, max_tokens=8)


def test_it_answers_as_rag_does(index: Index, chain: GritRAGChain) -> None:
    answer, result = RAG(index, k=3).ask(QUESTION, max_new_tokens=8), chain.invoke(QUESTION)
    assert result["answer"].strip() == answer.text
    assert result["documents"] == [to_langchain(hit.document) for hit in answer.hits]
    assert [tuple(citation.values()) for citation in result["citations"]] == [tuple(c) for c in answer.citations]
    assert set(result["citations"][0]) == {"id", "title", "start", "end"}
    assert result["usage"] == {
        "input_tokens": answer.usage.prompt_tokens,
        "output_tokens": answer.usage.generated_tokens,
        "total_tokens": answer.usage.prompt_tokens + answer.usage.generated_tokens,
        "input_token_details": {"cache_read": answer.usage.cached_tokens},
    }
    assert answer.usage.cached_tokens > 0


def test_a_stream_gives_documents_first_and_citations_last_and_adds_up(chain: GritRAGChain) -> None:
    parts = list(chain.stream(QUESTION))
    assert [set(part) for part in parts] == [
        {"documents", "answer"},
        *[{"answer"}] * (len(parts) - 2),
        {"citations", "usage", "unanswerable"},
    ]
    assert len(parts) > 3
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole == chain.invoke(QUESTION)


async def test_async_and_batches_give_the_same(chain: GritRAGChain) -> None:
    expected = chain.invoke(QUESTION)
    assert await chain.ainvoke(QUESTION) == expected
    assert [part async for part in chain.astream(QUESTION)] == list(chain.stream(QUESTION))
    assert chain.batch([QUESTION, "What is red?"]) == [expected, chain.invoke("What is red?")]


def test_it_takes_a_filter_or_documents(chain: GritRAGChain) -> None:
    filtered = chain.invoke({"question": QUESTION, "filter": {"n": 3}})
    assert [document.id for document in filtered["documents"]] == ["d3"]
    given = filtered["documents"]
    assert chain.invoke({"question": QUESTION, "documents": given})["documents"] == given
    assert chain.invoke({"question": QUESTION, "documents": []})["citations"] == []
    (bare,) = chain.invoke({"question": QUESTION, "documents": [TEXTS[0]]})["documents"]
    assert bare.page_content == TEXTS[0]
    with pytest.raises(ValueError, match=r"list.*not one str"):
        chain.invoke({"question": QUESTION, "documents": TEXTS[0]})


def test_a_filter_beside_documents_is_no_silent_success(chain: GritRAGChain) -> None:
    with pytest.raises(ValueError, match="leave the filter out"):
        chain.invoke({"question": QUESTION, "documents": TEXTS, "filter": {"n": 1}})


def test_it_is_a_runnable_among_others(chain: GritRAGChain) -> None:
    longer = RunnableLambda(str.strip) | chain | (lambda result: result["answer"])
    assert longer.invoke(f" {QUESTION} ") == chain.invoke(QUESTION)["answer"]
    assert len(chain.bind(max_new_tokens=2).invoke(QUESTION)["answer"]) <= len(chain.invoke(QUESTION)["answer"])
    pieces = list((RunnableLambda(str.strip) | chain).stream(QUESTION))
    assert pieces == list(chain.stream(QUESTION))


def test_scores_weigh_as_much_as_the_chain_says(index: Index) -> None:
    """A bias that leaves only the best document to be seen, against none: answers differ, each that of `RAG`."""
    said = set()
    for bias in (0.0, 1e6):
        answer = GritRAGChain(index=index, k=3, max_tokens=8, relevance_bias=bias).invoke(QUESTION)["answer"]
        assert answer.strip() == RAG(index, k=3, relevance_bias=bias).ask(QUESTION, max_new_tokens=8).text
        said.add(answer)
    assert len(said) == 2


@pytest.mark.parametrize("options", [{"recompute": 1.0}, {"rerank": 4}, {"recompute": 0.5, "rerank": 3}])
def test_the_dial_and_the_ranking_are_those_of_rag(index: Index, options: dict[str, float]) -> None:
    answer = RAG(index, k=3, **options).ask(QUESTION, max_new_tokens=8)
    result = GritRAGChain(index=index, k=3, max_tokens=8, **options).invoke(QUESTION)
    assert result["answer"].strip() == answer.text
    assert [document.id for document in result["documents"]] == [hit.document.id for hit in answer.hits]
    assert result["usage"]["input_token_details"]["cache_read"] == answer.usage.cached_tokens
    assert answer.usage.cached_tokens < sum(c.end - c.start for c in answer.citations) or "recompute" not in options


def test_errors_say_what_to_do(index: Index, chain: GritRAGChain) -> None:
    with pytest.raises(ValueError, match="relevance_bias must be from 0"):
        GritRAGChain(index=index, relevance_bias=-1)
    with pytest.raises(ValueError, match="no mode 'fast'"):
        GritRAGChain(index=index, mode="fast")
    with pytest.raises(ValueError, match="question with filter or documents"):
        chain.invoke({"input": QUESTION})
    for nothing in (None, 5):
        with pytest.raises(ValueError, match=f"got {nothing}"):
            chain.invoke(nothing)
    assert chain.invoke(QUESTION, max_tokens=1)["usage"]["output_tokens"] == 1
    with pytest.raises(ValueError, match="no option max_token"):
        chain.invoke(QUESTION, max_token=3)
