"""What an index asks of a model. Anything that has this can fill and search an index: tests use random arrays.

Shape letters: `N` documents, `Q` queries, `T` tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gritrag.model.state import Reading
from gritrag.records import Document, Fingerprint


class Reader(Protocol):
    """A model as an index sees it."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What its vectors and states depend on."""

    @property
    def loaded_as(self) -> Mapping[str, Any]:
        """Arguments that load it again, ``name`` among them, as JSON holds them; empty for one that has no name."""

    @property
    def max_document_tokens(self) -> int:
        """Longest document one read pass takes, scaffold included."""

    @property
    def state_elements_per_token(self) -> int:
        """Numbers in the state of one token: 2 * layers * heads * head dim."""

    def document_token_ids(self, document: str | Document) -> list[int]:
        """The ids the read pass would read, scaffold included: `[T]`."""

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """float32 `[Q, dim]`, normalised."""

    def encode_document(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> np.ndarray:
        """float32 `[N, dim]`, normalised."""

    def read_documents(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> list[Reading]:
        """Vector and state of each document, in the order given."""
