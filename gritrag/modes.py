"""The table of modes: in which order a context stands, and what of it is reused."""

from collections.abc import Sequence
from dataclasses import dataclass

from gritrag.model.context import Part
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState

__all__ = ["MODES", "NO_RETRIEVAL", "Mode"]


@dataclass(frozen=True)
class Mode:
    """One row of the table of modes: the order of a context, and what of it is reused.

    Args:
        name: as in the table.
        has_documents: whether there is anything but the question.
        is_question_first: question before documents.
        reuses_documents: their states are loaded; else they are read again.
        reuses_question: the state that embedding the question left is used; else the question is read again.
    """

    name: str
    has_documents: bool = True
    is_question_first: bool = False
    reuses_documents: bool = False
    reuses_question: bool = False

    def frame(
        self, model: GritModel, question: str, question_state: DocumentState | None
    ) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """What stands before and behind the documents; `question_state` is there where the mode reuses it."""
        if not self.has_documents:
            return (), (_tokens(model.prompts.question_ids(question, has_documents=False)),)
        if self.is_question_first:
            first = Part(question_state) if question_state else _tokens(model.prompts.question_first_ids(question))
            return (first,), (_tokens(model.prompts.answer_start_ids(question_is_last=False)),)
        if question_state is not None:
            return (), (Part(question_state), _tokens(model.prompts.answer_start_ids(question_is_last=True)))
        return (), (_tokens(model.prompts.question_ids(question, has_documents=True)),)


def _tokens(ids: Sequence[int]) -> Part:
    return Part(tuple(ids))


MODES = {
    mode.name: mode
    for mode in (
        Mode("no-retrieval", has_documents=False),
        Mode("query-doc", is_question_first=True),
        Mode("doc-query"),
        Mode("query-cache", is_question_first=True, reuses_question=True),
        Mode("doc-cache", reuses_documents=True),
        Mode("query-doc-cache", is_question_first=True, reuses_documents=True, reuses_question=True),
        Mode("doc-query-cache", reuses_documents=True, reuses_question=True),
    )
}
NO_RETRIEVAL = MODES["no-retrieval"]
