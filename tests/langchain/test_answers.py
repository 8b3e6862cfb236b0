"""Claims about the default checkpoint: an ordinary chain answers from states, rightly, and several threads at once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from gritrag import GritModel, Index
from gritrag.corpus import questions
from gritrag.demo import is_right
from gritrag.langchain import ChatGritRAG, GritEmbeddings, GritRAGChain, GritRetriever, to_langchain
from gritrag.prompts import NOT_FOUND

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the following context only.\n\n{context}\n\nQuestion: {question}"
)
QUESTION = questions()[7]  # What nickname did the reliable borer of the Harrowick road tunnel have?


def joined(documents: list[LangChainDocument]) -> str:
    return "\n\n".join(document.page_content for document in documents)


@pytest.fixture
def make_chain(corpus_index: Index) -> Callable[..., Runnable]:
    """`make_chain(edit=str.upper)`: retriever, format, prompt and chat model, with an edit of the formatted text."""

    def make(edit: Callable[[str], str] = str, **options: object) -> Runnable:
        chat = ChatGritRAG(index=corpus_index, max_tokens=16, **options)
        context = GritRetriever(index=corpus_index, k=4) | joined | edit
        return {"context": context, "question": RunnablePassthrough()} | PROMPT | chat

    return make


def cached_share(index: Index, chain: Runnable, question: str) -> tuple[str, float]:
    """The answer, and the share of document tokens that were not read again."""
    answer = chain.invoke(question)
    found = GritRetriever(index=index, k=4).invoke(question)
    lengths = [len(index.model.document_token_ids(document)) for document in index.get([str(d.id) for d in found])]
    return answer.text, answer.usage_metadata["input_token_details"]["cache_read"] / sum(lengths)


def test_an_unchanged_chain_reads_hardly_any_document_again(
    corpus_index: Index, make_chain: Callable[..., Runnable]
) -> None:
    text, share = cached_share(corpus_index, make_chain(), QUESTION.question)
    assert share >= 0.95
    assert is_right(text, QUESTION.answers)
    text, share = cached_share(corpus_index, make_chain(mode="doc-query"), QUESTION.question)
    assert share == 0
    assert is_right(text, QUESTION.answers)


def test_with_one_letter_edited_that_passage_is_read_again_and_the_answer_still_right(
    corpus_index: Index, make_chain: Callable[..., Runnable]
) -> None:
    (document,) = corpus_index.get([QUESTION.document_id])
    first = re.search(r"[a-z]{6}", document.text)
    assert first is not None
    edited = document.text[: first.start()] + "q" + document.text[first.start() + 1 :]
    text, share = cached_share(
        corpus_index, make_chain(lambda text: text.replace(document.text, edited)), QUESTION.question
    )
    found = GritRetriever(index=corpus_index, k=4).invoke(QUESTION.question)
    lengths = {str(d.id): len(corpus_index.model.document_token_ids(*corpus_index.get([str(d.id)]))) for d in found}
    assert share == pytest.approx(1 - lengths[document.id] / sum(lengths.values()))
    assert is_right(text, QUESTION.answers)


def test_what_the_documents_do_not_hold_is_told_and_what_they_hold_is_answered(corpus_index: Index) -> None:
    asked = "Which year did Apollo 11 land on the moon?"
    plain = GritRAGChain(index=corpus_index, max_tokens=16).invoke(asked)
    chain = GritRAGChain(index=corpus_index, unanswerable_above=0.8, max_tokens=16)
    told, answered = chain.invoke(asked), chain.invoke(QUESTION.question)
    assert told["answer"] == NOT_FOUND
    assert plain["answer"] != NOT_FOUND, "it does so where it is asked to"
    assert told["unanswerable"] == plain["unanswerable"] > 0.8
    assert is_right(answered["answer"], QUESTION.answers)
    assert answered["unanswerable"] < 0.5


def test_threads_get_what_each_gets_alone(grit: GritModel, corpus_index: Index) -> None:
    embeddings, chat = GritEmbeddings(model=grit), ChatGritRAG(index=corpus_index, max_tokens=3)
    asked = questions()[:3]
    documents = [to_langchain(*corpus_index.get([question.document_id])) for question in asked]

    def embed(number: int) -> list[float]:
        return embeddings.embed_query(asked[number].question)

    def answer(number: int) -> str:
        return chat.invoke(asked[number].question, documents=documents[number : number + 2]).text

    alone = [embed(n) for n in range(3)], [answer(n) for n in range(3)]
    with ThreadPoolExecutor(4) as pool:
        vectors, texts = [pool.submit(embed, n) for n in range(3)], [pool.submit(answer, n) for n in range(3)]
    np.testing.assert_allclose([vector.result() for vector in vectors], alone[0], atol=1e-5)
    assert [text.result() for text in texts] == alone[1]
