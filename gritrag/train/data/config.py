"""What a recipe says of its data: the sources of rows, and what a step is made of them.  No torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from gritrag.config import Recipe

__all__ = ["DataConfig", "SourceConfig"]


class SourceConfig(Recipe):
    """One file or data set of training rows.

    Args:
        path: JSONL, Parquet, or a folder of such files as `datasets` reads it (``folder:split`` for another split than
            ``train``), relative to `DataConfig.data_dir`. Where nothing lies there, a name on the hub: ``owner/name``,
            ``owner/name:split`` or, in full, ``owner/name/config@revision:split``; a revision keeps it as it is now.
        weight: share of the steps, relative to the other sources of its kind (questions or chats).
        max_rows: read no more than this many.
        in_batch_negatives: whether other documents of the batch are negatives; if not, only a row's own negatives are.
        instruction: given to its queries; the recipe's where None.
        neighbours: so many documents that follow each other in the file go into a batch together. Above 1, texts about
            the same thing become each other's negatives and distractors.
        merged: up to so many of those neighbours, a random number of them, become one document with all their
            questions, unless their titles differ: for files of single sentences. Of such a file, cross-batch memory
            keeps the last batch only.
        order: of the rows: as in the ``file``, or ``similar``: each is followed by one that shares rare words with it,
            for a file whose order says nothing.
        cloze_questions: so many questions a document are made of the document itself, other ones each time. They are
            answered, and never queries. See `gritrag.train.data.cloze`.
        literal_answers: drop answers that occur in none of their passages (for machine-made rows).
        split_sentences: each sentence of a passage becomes a document of its own, and the answer needs all of them: for
            passages that are lists of facts.
        label_negatives: of rows with a label: each gets so many rows of other labels as negatives of its own.
        augment: leave the file's questions aside; the queries of a passage are its own text, changed by each of these
            rules. See `gritrag.train.data.augment`.
    """

    path: str
    weight: float = Field(1.0, gt=0)
    max_rows: int | None = Field(None, ge=1)
    in_batch_negatives: bool = True
    instruction: str | None = None
    neighbours: int = Field(1, ge=1)
    merged: int = Field(1, ge=1)
    order: Literal["file", "similar"] = "file"
    cloze_questions: int = Field(0, ge=0)
    literal_answers: bool = False
    split_sentences: bool = False
    label_negatives: int = Field(1, ge=1)
    augment: tuple[Literal["noise", "rewrite", "translate"], ...] = ()

    @model_validator(mode="after")
    def _merges_neighbours(self) -> Self:
        if self.merged > self.neighbours:
            raise ValueError(
                f"{self.path}: merged is {self.merged}, but only {self.neighbours} neighbours come into a batch "
                f"together; set neighbours to {self.merged} or more"
            )
        return self


class DataConfig(Recipe):
    """What a step is made of.

    Args:
        sources: question sources, one of which each step draws from.
        chat: chat sources.
        data_dir: what paths are relative to; itself relative to the working directory.
        tokens_per_step: about so many tokens of documents and queries are read in a step.
        max_document_tokens: longer passages are cut, distractors and negatives too; answers that do not survive it are
            left out.
        questions_per_document: at most so many, so that one reading serves several; made ones fill what is free.
        queries_per_document: at most so many of these are queries too, compared with vectors of documents; all where
            None.
        answers_per_step: at most so many questions are answered in a step; made ones fill what is free.
        p_title: share of documents that are read with their title.
        max_chat_tokens: longer chats are cut there, and left out where no answer begins before.
        word_noise: share of words that the rule ``noise`` of `SourceConfig.augment` drops, doubles or swaps.
        workers: processes that make steps ahead of their time. With 0 a step is made while the model waits: not to be
            seen on a processor, and much of the time on a fast device.
        translator: ``module:function`` for the rule ``translate``: a list of texts in, their back-translations out.
    """

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    chat: tuple[SourceConfig, ...] = ()
    data_dir: str = "data"
    tokens_per_step: int = Field(1800, ge=1)
    max_document_tokens: int = Field(300, ge=8)
    questions_per_document: int = Field(2, ge=1)
    queries_per_document: int | None = Field(None, ge=1)
    answers_per_step: int = Field(12, ge=1)
    p_title: float = Field(0.5, ge=0, le=1)
    max_chat_tokens: int = Field(512, ge=8)
    word_noise: float = Field(0.1, gt=0, lt=1)
    workers: int = Field(0, ge=0)
    translator: str = ""
