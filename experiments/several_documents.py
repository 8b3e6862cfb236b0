"""Which documents explain what the best one does not, how much should they weigh, and are answers better for it?

    python -m experiments.several_documents nq.validation.jsonl --rows rows.jsonl --way 0.6:0 --way 0.4:0.1

Questions of the file, and pairs of neighbouring ones asked together ("A? And B?"), which need two documents. Hybrid
search finds 20 candidates, which are ranked from their states: alone, by how probable the whole question is behind
each, and in each way GAIN:BELOW: documents that add so many nats per token to what the best one explains of the
question (`gritrag.complements`) are lifted to so much below its score. The 5 best are answered from, by states
and, where they are ranked alone, as text. Rows are kept with the log-probabilities of each token behind each candidate:
a run that was stopped goes on, and further ways join what is there.
"""

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from experiments.asked import K, documents_of, questions_of
from experiments.kept import Kept, Paired, Row, lacking
from experiments.script import run
from gritrag import RAG, GritModel, Hit, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.statistics import mean
from gritrag.index.rerank import ranked
from gritrag.progress import ProgressBar

CANDIDATES, ANSWER_TOKENS = 20, 20
ALONE, TEXT = "alone", "text"
FOUND = "needed ones among the first 2"
F1 = "F1"


class Way(NamedTuple):
    """Documents that add `gain` nats per token are lifted to `below` the best one's score."""

    gain: float
    below: float

    @classmethod
    def of(cls, text: str) -> "Way":
        """From GAIN:BELOW.

        Raises:
            ValueError: something else, a gain that is not above 0, or a number below 0.
        """
        try:
            gain, below = map(float, text.split(":"))
        except ValueError:
            raise ValueError(f"a way is GAIN:BELOW, such as 0.6:0, not {text!r}") from None
        if not (gain > 0 and below >= 0):
            raise ValueError(f"GAIN is above 0 and BELOW not below it, unlike in {text!r}")
        return cls(gain, below)

    def __str__(self) -> str:
        return f"{self.gain:g}:{self.below:g}"


class Ranking:
    """Ranks and answers questions in every way.

    Args:
        index: open, with states, of a GritModel.
        answers: whether to answer.
    """

    def __init__(self, index: Index, answers: bool) -> None:
        self._index = index
        self._states = RAG(index) if answers else None
        self._text = RAG(index, mode="doc-query") if answers else None

    def rows(self, question: Question, wanted: Sequence[str]) -> list[Row]:
        """How each wanted way did: which share of the needed documents is in front, F1, how many complements."""
        (candidates,) = self._index.search_many([question.text], CANDIDATES)
        model, documents = self._index.model, [hit.document for hit in candidates]
        assert isinstance(model, GritModel)
        logs_NS = model.question_token_log_likelihoods(question.text, self._index.states_of(documents)[0])
        needed = {document.id for document in question.gold}
        given: dict[tuple[Any, ...], float] = {}
        rows: list[Row] = []
        for name in wanted:
            way = Way(np.inf, 0.0) if name in (ALONE, TEXT) else Way.of(name)
            hits = ranked(candidates, logs_NS, K, way.gain, way.below)
            row: Row = {
                "way": name,
                "complements": sum(hit.is_complement for hit in hits),
                FOUND: len(needed & {hit.document.id for hit in hits[:2]}) / len(needed),
            }
            key = name == TEXT, *((hit.document.id, hit.score) for hit in hits)
            if key not in given:  # the same documents with the same scores are answered from once
                given[key] = self._f1(self._text if name == TEXT else self._states, question, hits)
            if self._states:
                row[F1] = given[key]
            rows.append(row)
        if ALONE in wanted:
            rows[wanted.index(ALONE)] |= {
                "search": [round(hit.score, 6) for hit in candidates],
                "needed": [hit.document.id in needed for hit in candidates],
                "log p": logs_NS.astype(float).round(3).tolist(),
            }
        return rows

    def _f1(self, rag: RAG | None, question: Question, hits: Sequence[Hit]) -> float:
        if rag is None:
            return 0.0
        answer = rag.ask(question.text, hits=hits, max_new_tokens=ANSWER_TOKENS)
        return score_answer(answer.text, question.answers)["F1"]


def table(rows: Sequence[Row], ways: Sequence[str], seed: int) -> str:
    """Each way's figures, against text and against documents ranked alone, paired, of questions that have all ways."""
    paired = Paired.of(rows, ways)
    lines = []
    for way, own in paired.each():
        with_complements = sum(row["complements"] > 0 for row in own)
        line = [way, str(with_complements), mean(paired.values(way, FOUND), seed).show()]
        if F1 in own[0]:
            line += [*paired.shares(way, F1, TEXT, seed), paired.change(way, F1, ALONE, seed)]
        lines.append(line)
    columns = ["gain: below", "with complements", FOUND, F1, "% of text", "against alone"]
    return f"{paired.questions}\n\n" + aligned(columns[: max(map(len, lines), default=0)], lines)


def command(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    rows: Annotated[Path, typer.Option(help="Results are kept here, as JSONL.")],
    way: Annotated[list[str], typer.Option(help="GAIN:BELOW; may be given several times.")],
    half: Annotated[str, typer.Option(help="Rows of the file: even, odd or all.")] = "all",
    questions: Annotated[int, typer.Option(help="Questions to ask, one by one.", min=0)] = 100,
    pairs: Annotated[int, typer.Option(help="Pairs of questions to ask.", min=0)] = 100,
    documents: Annotated[int, typer.Option(help="Passages to search, at least those that are needed.", min=1)] = 300,
    answers: Annotated[bool, typer.Option(help="Whether to answer too.")] = True,
    stop_after: Annotated[int | None, typer.Option(help="Ask no more than so many further ones.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say what complements bring."""
    ways = [*([TEXT] if answers else []), ALONE, *dict.fromkeys(str(Way.of(each)) for each in way)]
    asked = questions_of(path, half, questions, pairs)
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    about: dict[str, Any] = {"model": model, "file": path.stem, "dtype": str(loaded.lm.dtype).removeprefix("torch.")}
    about["answers"] = answers
    kept = Kept(rows)
    missing = ((question, lacking(kept.of(**about, id=question.id), ways)) for question in asked)
    left = list(islice(((question, names) for question, names in missing if names), stop_after))
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=loaded) as index:
        if left:
            index.add(documents_of(path, asked, documents), show_progress_bar=True)
        ranking = Ranking(index, answers)
        for question, names in ProgressBar(left, desc=path.stem, unit="question", disable=not left):
            kept.add(ranking.rows(question, names), **about, pairs=bool(question.needed), id=question.id)
    facts = {**about, "documents": documents, "candidates": CANDIDATES, "k": K, "seed": seed}
    typer.echo(header({**facts, **machine_of(loaded)}))
    wanted = {question.id for question in asked}
    for name, is_pair in (("Pairs of questions", True), ("Questions one by one", False)):
        own = [row for row in kept.of(**about, pairs=is_pair) if row["id"] in wanted]
        typer.echo(f"\n{name}: " + table(own, ways, seed))


if __name__ == "__main__":
    run(command)
