"""GritRAG: retrieval-augmented generation around one language model that reads each document once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritrag.answer import RAG
    from gritrag.index.errors import DamagedIndex, ReplacedIndex
    from gritrag.index.index import Index
    from gritrag.index.shards import open_many
    from gritrag.model.grit import GritModel
    from gritrag.model.sampling import Sampling
    from gritrag.model.state import Reading
    from gritrag.records import (
        Answer,
        Citation,
        Document,
        Event,
        Fingerprint,
        FingerprintMismatch,
        Hit,
        Timings,
        Usage,
    )
    from gritrag.tokens import chunk_documents

__version__ = "0.2.0"

__all__ = [
    "RAG",
    "Answer",
    "Citation",
    "DamagedIndex",
    "Document",
    "Event",
    "Fingerprint",
    "FingerprintMismatch",
    "GritModel",
    "Hit",
    "Index",
    "Reading",
    "ReplacedIndex",
    "Sampling",
    "Timings",
    "Usage",
    "chunk_documents",
    "open_many",
]

_HOMES = {
    "RAG": "gritrag.answer",
    "DamagedIndex": "gritrag.index.errors",
    "GritModel": "gritrag.model.grit",
    "Index": "gritrag.index.index",
    "Reading": "gritrag.model.state",
    "ReplacedIndex": "gritrag.index.errors",
    "Sampling": "gritrag.model.sampling",
    "chunk_documents": "gritrag.tokens",
    "open_many": "gritrag.index.shards",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `gritrag --help` should not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'gritrag' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gritrag.records")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
