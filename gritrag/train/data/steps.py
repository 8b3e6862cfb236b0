"""Steps: what one step of the optimizer trains on, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from gritrag.tokens import TokenIds


@dataclass(frozen=True)
class Prompted:
    """What is read after a context, and the target: token ids of the question in the template, and of the answer with
    its end.

    `context` holds rows of `RetrievalStep.readable`, in the order they are placed in, from position `start` on.
    `biases` and `shares_positions` are for each of them as in `gritrag.model.context.Part`; empty for none. Contexts
    that are read anew have neither. `before_ids` are for each of them token ids that are read before it, as a chat has
    them around its documents; empty for none.
    """

    question_ids: list[int]
    answer_ids: list[int]
    context: tuple[int, ...] = ()
    start: int = 0
    biases: tuple[float, ...] = ()
    shares_positions: tuple[bool, ...] = ()
    before_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def tokens_before(self) -> int:
        """Tokens of `before_ids`."""
        return sum(map(len, self.before_ids))

    @property
    def new_tokens(self) -> int:
        """Tokens that are read beside the documents."""
        return self.tokens_before + len(self.question_ids) + len(self.answer_ids)

    def context_ids(self, documents: Sequence[Sequence[int]]) -> list[int]:
        """All that stands before the question, from the token ids of all documents."""
        before = self.before_ids or ((),) * len(self.context)
        return [i for own, row in zip(before, self.context, strict=True) for i in (*own, *documents[row])]


@dataclass(frozen=True)
class RetrievalStep:
    """Documents, queries for them, and questions to be answered from contexts of them.

    Args:
        source: name of the file.
        documents: `N` documents in the template.
        queries: `Q` queries in the template.
        positives: `Q` rows of `documents`.
        candidates: for each query the rows it is compared with; None for all.
        answers: questions to answer.
        is_full: read contexts as one, with ordinary attention, instead of placing states.
        demonstrations: for each query the queries that it is shown with their documents; None for none.
        seed: of what is masked and dropped in this step.
        is_quantised: answer from what a codec leaves of the documents' states.
        identities: for each document a number (int64) that its passage has in every step; empty for none.
        contents: for each document a number (int64) of its title and text before anything was cut: equal for copies of
            one document; empty for none.
    """

    source: str
    documents: list[TokenIds]
    queries: list[TokenIds]
    positives: list[int]
    candidates: list[list[int]] | None
    answers: list[Prompted]
    is_full: bool = False
    demonstrations: list[list[int]] | None = None
    seed: int = 0
    is_quantised: bool = False
    identities: tuple[int, ...] = ()
    contents: tuple[int, ...] = ()

    @property
    def readable(self) -> list[TokenIds]:
        """What contexts are made of: documents, and behind them the queries."""
        return [*self.documents, *self.queries]

    @property
    def reuses_questions(self) -> bool:
        """Whether some answer is decoded over the state of its own query."""
        return any(row >= len(self.documents) for answer in self.answers for row in answer.context)


@dataclass(frozen=True)
class ChatStep:
    """Whole chats: `ids` per chat, and which of them are targets (turns of the assistant with their ends)."""

    source: str
    ids: list[list[int]]
    is_target: list[list[bool]]
