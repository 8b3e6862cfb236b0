"""Everything that takes an index takes its path too, and all that name one path hold one index and one model."""

import gc
from pathlib import Path

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from gritrag import Document, GritModel, Index
from gritrag.langchain import (
    ChatGritRAG,
    GritEmbeddings,
    GritRAGChain,
    GritRecordManager,
    GritRetriever,
    GritTextSplitter,
    GritVectorStore,
)
from gritrag.langchain.indexes import opened

DOCUMENTS = [
    Document("The Vellamar Strait is nine kilometres wide.", id="strait"),
    Document("Mount Harrowick erupted in 1644.", id="mount"),
]
PROMPT = ChatPromptTemplate.from_template("Context:\n\n{context}\n\nQuestion: {question}")


@pytest.fixture
def folder(tiny_model: GritModel, tmp_path: Path) -> Path:
    """A model on disk."""
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def path(folder: Path, tmp_path: Path) -> str:
    """An index of two passages that was built with it."""
    with Index.create(tmp_path / "index", model=folder) as index:
        index.add(DOCUMENTS)
    return str(tmp_path / "index")


def test_a_chain_made_of_paths_reuses_states(path: str) -> None:
    context = GritRetriever(index=path, k=2) | (lambda found: "\n\n".join(each.page_content for each in found))
    chat = ChatGritRAG(index=path, max_tokens=4)
    answer = ({"context": context, "question": RunnablePassthrough()} | PROMPT | chat).invoke("Which strait?")
    used, model = answer.usage_metadata["input_token_details"]["cache_read"], chat.model
    assert used == sum(len(model.document_token_ids(document)) for document in DOCUMENTS)


def test_states_are_reused_by_one_who_has_opened_the_index_otherwise(path: str, folder: Path) -> None:
    """The retriever reads; what answers holds the index that a store has opened later to write."""
    retriever = GritRetriever(index=path, k=2)
    store = GritVectorStore(path, mode="rw")
    store.add_texts(["The Orne Bridge has three arches."], ids=["bridge"])
    for chat in (ChatGritRAG(index=path, max_tokens=4), ChatGritRAG(index=Index.open(path, model=store.index.model))):
        assert chat.index is not retriever.index
        context = retriever | (lambda found: "\n\n".join(each.page_content for each in found))
        chain = {"context": context, "question": RunnablePassthrough()} | PROMPT | chat
        answer = chain.invoke("How many arches has the bridge?", max_tokens=4)
        found = retriever.invoke("How many arches has the bridge?")
        used = answer.usage_metadata["input_token_details"]["cache_read"]
        assert used == sum(len(chat.model.document_token_ids(each.page_content)) for each in found) > 0
    store.index.close()


def test_all_that_name_a_path_hold_one_index_and_one_model(path: str) -> None:
    retriever, chat = GritRetriever(index=path), ChatGritRAG(index=Path(path))
    store, embeddings, chain = GritVectorStore(path), GritEmbeddings(index=path), GritRAGChain(index=path)
    assert retriever.index is chat.index is store.index is chain.index
    assert chat.model is embeddings.model is store.embeddings.model is retriever.index.model
    assert not store.index.writable
    assert embeddings.embed_query("strait") == pytest.approx(store.embeddings.embed_query("strait"))


def test_a_store_is_written_if_that_is_asked_for(path: str) -> None:
    store = GritVectorStore(path, mode="rw")
    assert store.add_texts(["A new passage."], ids=["new"]) == ["new"]
    assert GritRetriever(index=path, k=1).invoke("new passage")[0].id == "new"
    records = GritRecordManager(path)
    records.update(["new"])
    assert records.exists(["new", "other"]) == [True, False]
    records.close()
    store.index.close()
    with pytest.raises(ValueError, match="mode='rw'"):
        GritVectorStore(path).add_texts(["More."])


def test_an_index_is_let_go_with_the_last_that_holds_it(path: str) -> None:
    store = GritVectorStore(path, mode="rw")
    del store
    gc.collect()
    Index.open(path, mode="rw").close()


def test_what_was_closed_is_opened_again(path: str) -> None:
    retriever = GritRetriever(index=path)
    retriever.index.close()
    assert GritRetriever(index=path, k=1).invoke("strait")


def test_an_open_index_stays_what_it_is(path: str) -> None:
    with Index.open(path) as index:
        assert opened(index) is index
        assert GritRetriever(index=index).index is index


def test_a_path_without_an_index_is_told(tmp_path: Path) -> None:
    for make in (GritRetriever, ChatGritRAG, GritRAGChain, GritEmbeddings):
        with pytest.raises(ValueError, match="no index at"):
            make(index=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no index at"):
        GritVectorStore(tmp_path / "nowhere")


def test_a_model_is_loaded_once_by_its_name(folder: Path) -> None:
    splitter = GritTextSplitter(str(folder), chunk_size=10)
    assert len(splitter.split_text("One sentence here. Another sentence there.")) > 1
    one, other = GritEmbeddings(model=str(folder)), GritEmbeddings(model=str(folder))
    assert one.model is other.model
