"""What of a `GritModel` gives tokens and vectors of texts.

Shape letters: `N` documents, `Q` queries, `T` tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gritrag.config import CheckpointConfig
from gritrag.model.parts import Parts
from gritrag.model.prompt_builder import PromptBuilder
from gritrag.model.reader import PromptReader
from gritrag.model.soft_prompts import Demonstrations, check_pairs
from gritrag.records import Document
from gritrag.tokens import TokenCounter

__all__ = ["Embedder"]


class Embedder:
    """Texts become token ids and vectors. `GritModel` makes its parts and documents them."""

    config: CheckpointConfig
    parts: Parts
    prompts: PromptBuilder
    reader: PromptReader

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as content, without any scaffold."""
        return self.token_counter(text)

    @property
    def token_counter(self) -> Callable[[str], int]:
        """`count_tokens`, with the tokenizer and without the model: it can be sent to another process."""
        return TokenCounter(self.prompts.encoder)

    def document_token_ids(self, document: str | Document) -> list[int]:
        """The ids the read pass would read, scaffold included: `[T]`."""
        return self.prompts.documents([document])[0].ids

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.reader.dim

    def encode_query(
        self,
        texts: str | Sequence[str],
        instruction: str | None = None,
        *,
        demonstrations: Demonstrations | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Vectors of queries.

        Args:
            texts: `Q` queries, or one.
            instruction: the task, such as "Given a question, retrieve passages that answer it"; read, not pooled. The
                checkpoint's own where None; an empty string for none.
            demonstrations: from `fit_demonstrations`, with an instruction that holds where none is given here.
            batch_size: at most so many at a time.
            show_progress_bar: in tokens.

        Returns:
            float32 `[Q, dim]`, L2-normalised; `[dim]` of one string.

        Raises:
            ValueError: a query is empty, no valid text, or too long.
        """
        if isinstance(texts, str):
            return self.encode_query([texts], instruction, demonstrations=demonstrations)[0]
        if demonstrations is None:
            return self.reader.vectors(self.prompts.queries(texts, instruction), batch_size, show_progress_bar)
        pairs = len(demonstrations.vectors) // 2
        check_pairs(pairs, self.config.parts.demonstrations)
        prompts = self.prompts.queries(texts, demonstrations.instruction if instruction is None else instruction)
        prompts = [self.parts.slots.with_demonstrations(each, pairs) for each in prompts]
        return self.reader.vectors(prompts, batch_size, show_progress_bar, torch.from_numpy(demonstrations.vectors))

    def fit_demonstrations(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> Demonstrations:
        """Show the model some queries of a task with their documents (EPIC, Lin et al. 2026, abstract).

        Nothing is trained: the pairs are embedded, and their vectors stand before each query that is encoded with
        them.

        Args:
            pairs: a few `(query, document)`.
            instruction: of the task; the checkpoint's own where None.

        Raises:
            ValueError: the model has not learnt to read demonstrations, or not so many.
        """
        check_pairs(len(pairs), self.config.parts.demonstrations)
        queries = self.encode_query([query for query, _ in pairs], instruction)
        documents = self.encode_document([document for _, document in pairs])
        vectors = np.stack([queries, documents], axis=1).reshape(-1, self.dim)
        return Demonstrations(self.config.instruction if instruction is None else instruction, vectors)

    def encode_document(
        self, texts: str | Document | Sequence[str | Document], *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> np.ndarray:
        """Vectors of documents, those that `read_documents` gives.

        Args:
            texts: `N` documents or strings, or one.
            batch_size: at most so many at a time.
            show_progress_bar: in tokens.

        Returns:
            float32 `[N, dim]`, L2-normalised; `[dim]` of one document.

        Raises:
            ValueError: a document is empty, no valid text, or longer than `max_document_tokens`.
        """
        if isinstance(texts, str | Document):
            return self.encode_document([texts])[0]
        return self.reader.vectors(self.prompts.documents(texts), batch_size, show_progress_bar)

    def similarity(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Cosine similarities of vectors from `encode_query` and `encode_document`, float32 `[Q, N]`."""
        return queries @ documents.T
