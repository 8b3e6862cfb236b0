"""LangChain's interfaces over GritRAG: swap them in, and ordinary chains answer from states.

Nothing else in the package imports this folder, and LangChain is imported nowhere else.
"""

try:
    import langchain_core  # noqa: F401
    import langchain_text_splitters  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gritrag.langchain needs {error.name}, which is an extra: pip install 'gritrag[langchain]'", name=error.name
    ) from None

from gritrag.langchain.chain import GritRAGChain
from gritrag.langchain.chat import ChatGritRAG
from gritrag.langchain.documents import docs_to_messages, from_langchain, to_langchain
from gritrag.langchain.embeddings import GritEmbeddings
from gritrag.langchain.records import GritRecordManager
from gritrag.langchain.reranker import GritReranker
from gritrag.langchain.retriever import GritRetriever
from gritrag.langchain.splitter import GritTextSplitter
from gritrag.langchain.vectorstore import GritVectorStore

__all__ = [
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
