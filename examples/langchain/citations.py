"""Answers with citations, streamed, without an agent: documents first, then words, then what was really in the context.

python examples/langchain/citations.py
"""

import tempfile
from typing import Any

from gritrag import GritModel, Index
from gritrag.corpus import documents
from gritrag.langchain import GritRAGChain

QUESTION = "What is the name of the lake at the top of the Selby Uplands volcano?"


def main(index: Index) -> dict[str, Any]:
    chain = GritRAGChain(index=index, k=3, max_tokens=16)
    whole: dict[str, Any] = {}
    for part in chain.stream({"question": QUESTION, "filter": {"domain": "geography"}}):
        whole = whole + part if whole else part
        if part.keys() == {"answer"}:
            print(part["answer"], end="", flush=True)
    print()
    for number, citation in enumerate(whole["citations"], start=1):
        print(f"[{number}] {citation['title']} ({citation['id']}), tokens {citation['start']} to {citation['end']}")
    return whole


if __name__ == "__main__":
    model = GritModel.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch, Index.create(f"{scratch}/index", model=model) as index:
        index.add(documents()[:12])
        main(index)
