"""What a recipe says of each objective.  No torch."""

from typing import Literal

from pydantic import Field

from gritrag.config import Recipe

__all__ = ["ContrastiveConfig", "GenerativeConfig", "MaskedConfig", "ViewsConfig"]


class ContrastiveConfig(Recipe):
    """See `gritrag.train.objectives.losses.Contrastive`. A `weight` of 0 switches it off.

    Without `in_batch_negatives` a query is compared with its own documents only, whatever the sources say.

    `cross_batch_memory` documents of earlier steps are further negatives of queries that have in-batch ones; see
    `gritrag.train.objectives.cross_batch_memory`.
    """

    weight: float = Field(1.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    in_batch_negatives: bool = True
    false_negative_margin: float | None = 0.1
    matryoshka_dims: tuple[int, ...] = ()
    symmetric: bool = False
    cross_batch_memory: int = Field(0, ge=0)


class GenerativeConfig(Recipe):
    """See `gritrag.train.objectives.losses.Generative`. A `weight` of 0 switches it off.

    Args:
        weight: of its loss, against the contrastive one.
        contexts: ``placed``: answers are decoded over the states that the one reading left. ``full``: each context is
            read anew with its question, beside the reading for vectors: GritLM's two streams, to compare with.
            ``none``: answers are learnt from chats alone.
        weighting: per ``token`` or per ``sample`` of the step, or ``mixed``: per token within a chunk, chunks alike.
        documents_per_context: a context has one of these numbers of documents.
        p_near: share of contexts whose other documents are those that stand nearest in the batch, which are neighbours
            in the file; of the rest chance draws them.
        p_relevance_bias: share of contexts of several documents that share positions and have a relevance bias, as
            `gritrag.RAG` gives it, from random scores: the documents that are needed have the best ones in most.
        max_context_tokens: distractors that would make a context longer are left out.
        max_start: contexts start at a random position up to this one.
        p_unanswerable: share of questions whose own document is left out; the answer is then `not_found`.
        p_answer_cut_out: share of passages that lose the sentence with an answer, where no other one tells it, so that
            they are about the matter and do not hold the answer; as many others lose a sentence that does not matter.
            See `gritrag.train.data.cut_out`.
        p_two_documents: share of questions that are asked together with one on another document: "A? And B?", with the
            answer "a and b". The context holds both documents.
        not_found: that answer.
        p_full: share of steps that read the same segments as one ordinary context, so that this stays good.
        p_chat: share of steps on plain chat.
        p_document_chat: share of answers that are asked in a chat over their documents, in one of
            `gritrag.train.data.wordings`, as LangChain chains ask; the others stand in the template of `gritrag.RAG`.
        p_question_state: share of answers that reuse the state of their own query, before or behind the documents;
            none in a chat.
        quantise: codec whose loss placed states are given in training; empty for none. See `gritrag.train.quantise`.
        p_quantise: share of steps with placed states in which they are.
    """

    weight: float = Field(1.0, ge=0)
    contexts: Literal["placed", "full", "none"] = "placed"
    weighting: Literal["token", "sample", "mixed"] = "token"
    documents_per_context: tuple[int, ...] = Field((1, 2, 3, 5), min_length=1)
    p_near: float = Field(0.0, ge=0, le=1)
    p_relevance_bias: float = Field(0.0, ge=0, le=1)
    max_context_tokens: int = Field(1200, ge=8)
    max_start: int = Field(0, ge=0)
    p_unanswerable: float = Field(0.08, ge=0, le=1)
    p_answer_cut_out: float = Field(0.0, ge=0, le=0.5)
    p_two_documents: float = Field(0.0, ge=0, le=1)
    not_found: str = "not in the documents"
    p_full: float = Field(0.15, ge=0, le=1)
    p_chat: float = Field(0.05, ge=0, le=1)
    p_document_chat: float = Field(0.0, ge=0, le=1)
    p_question_state: float = Field(0.0, ge=0, le=1)
    quantise: str = ""
    p_quantise: float = Field(0.5, ge=0, le=1)


class MaskedConfig(Recipe):
    """See `gritrag.train.objectives.losses.MaskedNextToken`. A `weight` of 0 switches it off."""

    weight: float = Field(0.0, ge=0)
    share: tuple[float, float] = (0.2, 0.8)
    mask: str = "_"


class ViewsConfig(Recipe):
    """See `gritrag.train.objectives.losses.Views`. A `weight` of 0 switches it off."""

    weight: float = Field(0.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    dropout: float = Field(0.1, gt=0, lt=1)
