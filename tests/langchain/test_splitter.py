"""Chunks are counted in the tokens of the model, so what was cut to fit does fit."""

from pathlib import Path

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document as LangChainDocument

from gritrag import GritModel, Index
from gritrag.corpus import documents
from gritrag.langchain import GritTextSplitter, GritVectorStore


class Corpus(BaseLoader):
    """A loader, as any of LangChain's."""

    def lazy_load(self):  # type: ignore[no-untyped-def]
        for document in documents()[:4]:
            yield LangChainDocument(f"{document.text}\n\n" * 3, metadata={"source": Path(document.id)})


@pytest.mark.parametrize("size", [24, 60])
def test_no_chunk_is_longer_than_asked_and_nothing_is_lost(grit: GritModel, size: int) -> None:
    text = "\n\n".join(document.text for document in documents()[:6]) + "\n\nx = f(a)\n" * 20 + "é—✓" * 90
    chunks = GritTextSplitter(grit, size).split_text(text)
    assert max(map(grit.count_tokens, chunks)) <= size
    assert "".join("".join(chunks).split()) == "".join(text.split())


def test_neighbours_share_no_more_than_the_overlap(grit: GritModel) -> None:
    text = " ".join(document.text for document in documents()[:3])
    chunks = GritTextSplitter(grit, 60, 24, add_start_index=True).create_documents([text])
    ends = [chunk.metadata["start_index"] + len(chunk.page_content) for chunk in chunks]
    starts = [chunk.metadata["start_index"] for chunk in chunks]
    shared = [text[start:end] for start, end in zip(starts[1:], ends, strict=False)]
    assert max(map(grit.count_tokens, shared)) <= 24
    assert sum(bool(part) for part in shared) > len(shared) / 2


@pytest.mark.parametrize("overlap", [0, 12])
def test_a_chunk_knows_where_it_stood(grit: GritModel, overlap: int) -> None:
    texts = [documents()[0].text * 2, "short", "  "]
    splitter = GritTextSplitter(grit, 40, overlap, add_start_index=True)
    chunks = splitter.create_documents(texts, [{"n": 0}, {"n": 1}, {"n": 2}])
    starts = [(chunk.metadata["n"], chunk.metadata["start_index"]) for chunk in chunks]
    assert starts == sorted(set(starts))
    assert all(texts[n][start:].startswith(c.page_content) for (n, start), c in zip(starts, chunks, strict=True))
    assert {n for n, _ in starts} == {0, 1}


def test_what_a_loader_loads_is_split_and_goes_into_a_store(tiny_model: GritModel, tmp_path: Path) -> None:
    chunks = GritTextSplitter(tiny_model, 120).split_documents(Corpus().load())
    with Index.create(tmp_path / "index", model=tiny_model, states="none") as index:
        names = GritVectorStore(index).add_documents(chunks)
        assert len(set(names)) == len(index) < len(chunks)  # the loader repeats its texts
        assert {document.metadata["source"] for document in index.get(names)} == {d.id for d in documents()[:4]}


def test_an_overlap_must_leave_room(tiny_model: GritModel) -> None:
    with pytest.raises(ValueError, match="overlap"):
        GritTextSplitter(tiny_model, 10, 10)
