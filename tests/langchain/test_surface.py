"""What `gritrag.langchain` offers, frozen, and what it says where LangChain is not installed."""

import subprocess
import sys

import pytest

import gritrag.langchain

NAMES = [
    "ChatGritRAG",
    "GritEmbeddings",
    "GritRAGChain",
    "GritRecordManager",
    "GritReranker",
    "GritRetriever",
    "GritTextSplitter",
    "GritVectorStore",
    "docs_to_messages",
    "from_langchain",
    "to_langchain",
]


def test_names() -> None:
    assert sorted(gritrag.langchain.__all__) == sorted(NAMES)
    assert all(hasattr(gritrag.langchain, name) for name in NAMES)


@pytest.mark.parametrize("missing", ["langchain_core", "langchain_text_splitters"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import gritrag.langchain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(
        f"needs {missing}, which is an extra: pip install 'gritrag[langchain]'"
    )
