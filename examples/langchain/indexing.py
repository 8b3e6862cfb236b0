"""LangChain's indexing API over an index: what is unchanged is not read again, what has gone from its source goes.

python examples/langchain/indexing.py
"""

import tempfile
from collections.abc import Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.indexing import index as bring_up_to_date

from gritrag import GritModel, Index
from gritrag.langchain import GritRecordManager, GritTextSplitter, GritVectorStore

MONDAY = {
    "ferry.txt": "The ferry to Hame sails at seven, at noon and at four.\n\nDogs travel free of charge.",
    "museum.txt": "The museum of salt is open from ten to five.",
}
TUESDAY = {"ferry.txt": "The ferry to Hame sails at eight, at noon and at four.\n\nDogs travel free of charge."}


def run(store: GritVectorStore, records: GritRecordManager, files: Mapping[str, str]) -> dict[str, Any]:
    """One run over everything there is; any loader of LangChain's would do in the place of `files`."""
    splitter = GritTextSplitter(store.embeddings.model, chunk_size=18)
    loaded = [Document(text, metadata={"source": name}) for name, text in files.items()]
    chunks = splitter.split_documents(loaded)
    return dict(bring_up_to_date(chunks, records, store, cleanup="full", source_id_key="source", key_encoder="sha256"))


def main(index: Index) -> list[dict[str, Any]]:
    store, records = GritVectorStore(index), GritRecordManager(index)
    counts = [run(store, records, files) for files in (MONDAY, MONDAY, TUESDAY)]
    for day, count in zip(("first run", "again", "next day"), counts, strict=True):
        print(f"{day:10} {count}")
    print(*(document.page_content for document in store.similarity_search("ferry", k=9)), sep="\n")
    records.close()
    return counts


if __name__ == "__main__":
    model = GritModel.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch, Index.create(f"{scratch}/index", model=model) as index:
        main(index)
