"""GritRAG: retrieval-augmented generation around one language model that reads each document once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritrag.answer import RAG
    from gritrag.index.errors import DamagedIndex
    from gritrag.index.index import Index
    from gritrag.model.grit import GritModel
    from gritrag.records import Answer, Document, Fingerprint, FingerprintMismatch, Hit
    from gritrag.tokens import chunk_documents

__version__ = "0.2.0"

__all__ = [
    "RAG",
    "Answer",
    "DamagedIndex",
    "Document",
    "Fingerprint",
    "FingerprintMismatch",
    "GritModel",
    "Hit",
    "Index",
    "chunk_documents",
]

_HOMES = {
    "RAG": "gritrag.answer",
    "DamagedIndex": "gritrag.index.errors",
    "GritModel": "gritrag.model.grit",
    "Index": "gritrag.index.index",
    "chunk_documents": "gritrag.tokens",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `gritrag --help` should not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'gritrag' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gritrag.records")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
