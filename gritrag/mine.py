"""Hard negatives: passages that our own index finds for a question, near its right one, and that do not answer it.

What comes out is a file of question rows whose first document answers and whose others do not: training contrasts them,
and puts them beside the right one in contexts.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritrag import Document, GritModel, Hit, Index
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import read_questions
from gritrag.progress import ProgressBar

QUESTIONS_PER_BATCH = 64


class Mined(NamedTuple):
    """Questions that were written, negatives they were given in all, and questions for which none was found."""

    questions: int
    negatives: int
    without: int


def mine(path: Path, out: Path, model: GritModel, negatives: int = 4, depth: int = 30, margin: float = 0.05) -> Mined:
    """Write the rows of `path` again, each with up to `negatives` documents more.

    A passage is no negative if it holds an answer of the question, or if it is nearer to the question than
    ``(1 - margin)`` times the similarity of the right one: so near, it may well be right (NV-Retriever, Moreira et al.
    2024, section 3: positive-aware mining, "perc"). Passages that words find and vectors do not are taken all the same.

    Args:
        path: JSONL of questions with their passages, as `gritrag eval` takes it.
        out: written whole or not at all.
        depth: passages that are looked at for each question, best first (hybrid search).

    Raises:
        ValueError: a broken row, `out` is `path`, or a number out of its range.
    """
    if negatives < 1 or depth < negatives or not 0 <= margin < 1:
        raise ValueError(
            f"need negatives >= 1, depth >= negatives and a margin in [0, 1); got {negatives}, {depth} and {margin}"
        )
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out} is the file of questions itself; name another")
    questions = read_questions(path)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    counts: list[int] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="gritrag-mine-") as folder,
            Index.create(Path(folder) / "index", model=model, states="none") as index,
            scratch.open("w", encoding="utf-8") as rows,
        ):
            documents = [document for question in questions for document in (*question.gold, *question.others)]
            index.add(documents, show_progress_bar=True)
            for question, hits, similarity in _found(index, questions, depth):
                chosen = _negatives(question, hits, similarity, 1 - margin, negatives)
                rows.write(json.dumps(_row(question, chosen), ensure_ascii=False) + "\n")
                counts.append(len(chosen))
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return Mined(len(counts), sum(counts), counts.count(0))


def _found(
    index: Index, questions: Sequence[Question], depth: int
) -> Iterator[tuple[Question, list[Hit], dict[str, float]]]:
    """Each question with what a search finds, and the cosine similarities of the documents nearest to it."""
    with ProgressBar(total=len(questions), desc="mining", unit="question") as bar:
        for start in range(0, len(questions), QUESTIONS_PER_BATCH):
            batch = questions[start : start + QUESTIONS_PER_BATCH]
            texts = [question.text for question in batch]
            vectors = index.model.encode_query(texts)
            hybrid = index.search_many(texts, depth, mode="hybrid", vectors=vectors)
            # the right document has a similarity too, however far down it stands
            dense = index.search_many(texts, len(index), mode="dense", vectors=vectors)
            for question, hits, near in zip(batch, hybrid, dense, strict=True):
                yield question, hits, {hit.document.id: hit.score for hit in near}
            bar.update(len(batch))


def _negatives(
    question: Question, hits: Sequence[Hit], similarity: dict[str, float], share: float, count: int
) -> list[Document]:
    if question.is_unanswerable:  # which passage answers it, if not its own, is not known
        return []
    limit = share * similarity[question.document.id]
    answers = [answer.casefold() for answer in question.answers]
    known = {document.id for document in (*question.gold, *question.others)}
    found = [
        hit.document
        for hit in hits
        if hit.document.id not in known
        and similarity[hit.document.id] <= limit
        and not any(answer in hit.document.content.casefold() for answer in answers)
    ]
    return found[:count]


def _row(question: Question, negatives: Sequence[Document]) -> dict[str, Any]:
    """As training reads it, with all that the row said: what the answer needs, and what is known not to answer."""
    every = (*question.gold, *question.others, *negatives)
    row = {
        "id": question.id,
        "question": question.text,
        "documents": [{"text": document.text, "title": document.title} for document in every],
        "gold": list(range(len(question.gold))),
        "answers": list(question.answers),
    }
    return {**row, "unanswerable": True} if question.is_unanswerable else row
