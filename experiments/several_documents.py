"""Does ranking from states bring the documents together that one question needs, and are its answers better for it?

    python -m experiments.several_documents nq.validation.jsonl --rows rows.jsonl

Questions of the file, and pairs of neighbouring ones asked together ("A? And B?"), which need two documents. Hybrid
search finds 20 candidates, which are ranked from their states: alone, by how probable the whole question is behind
each, and with complements, documents that explain other words of it than the best does (`gritrag.index.complements`).
Of both the 5 best are answered from: as text, from states, and with the first tokens of each read again. Rows are kept:
a run that was stopped goes on.
"""

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.dial import K, Kept, Row, documents_of, questions_of
from experiments.script import run
from gritrag import RAG, GritModel, Hit, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.statistics import difference, mean, ratio
from gritrag.index.complements import LEAST_GAIN
from gritrag.index.rerank import ranked
from gritrag.progress import ProgressBar

CANDIDATES, ANSWER_TOKENS, FIRST_TOKENS = 20, 20, 0.02
ALONE, TOGETHER = RANKINGS = ("alone", "with complements")
TEXT, STATES, AGAIN = "F1, text", "F1, states", f"F1, states, {FIRST_TOKENS:g} read again"
WAYS: dict[str, dict[str, Any]] = {
    TEXT: {"mode": "doc-query"},
    STATES: {},
    AGAIN: {"recompute": FIRST_TOKENS},
}
FOUND = "needed ones among the first 2"
ENOUGH = "needed ones among the first 5"


class Ranking:
    """Ranks and answers questions both ways.

    Args:
        index: open, with states, of a GritModel.
        answers: whether to answer.
    """

    def __init__(self, index: Index, answers: bool) -> None:
        self._index = index
        self._rags = {name: RAG(index, **options) for name, options in WAYS.items()} if answers else {}

    def row(self, question: Question) -> Row:
        """How both rankings did: how many of the needed documents they have, F1, and whether complements were found."""
        (candidates,) = self._index.search_many([question.text], CANDIDATES)
        model, documents = self._index.model, [hit.document for hit in candidates]
        assert isinstance(model, GritModel)
        logs_NS = model.question_token_log_likelihoods(question.text, self._index.states_of(documents)[0])
        hits = {
            name: ranked(candidates, logs_NS, K, least)
            for name, least in ((ALONE, float("inf")), (TOGETHER, LEAST_GAIN))
        }
        needed = {document.id for document in question.gold}
        row: Row = {"complements": sum(hit.score == hits[TOGETHER][0].score for hit in hits[TOGETHER]) - 1}
        given: dict[tuple[Any, ...], float] = {}
        for name, own in hits.items():
            ids = [hit.document.id for hit in own]
            row[f"{FOUND}, {name}"] = len(needed & set(ids[:2])) / len(needed)
            row[f"{ENOUGH}, {name}"] = len(needed & set(ids)) / len(needed)
            for way in self._rags:
                key = way, *ids, *(hit.score for hit in own)
                if key not in given:  # the same documents with the same scores are answered from once
                    given[key] = self._f1(way, question, own)
                row[f"{way}, {name}"] = given[key]
        return row

    def _f1(self, way: str, question: Question, hits: Sequence[Hit]) -> float:
        answer = self._rags[way].ask(question.text, hits=hits, max_new_tokens=ANSWER_TOKENS)
        return score_answer(answer.text, question.answers)["F1"]


def share_of_text(rows: Sequence[Row], seed: int) -> str:
    """F1 from states, over that from the text of the documents that are ranked alone, for both rankings."""
    told = []
    for which in RANKINGS:
        found = ratio([row[f"{STATES}, {which}"] for row in rows], [row[f"{TEXT}, {ALONE}"] for row in rows], seed)
        told.append(f"{which} {'-' if found is None else found.show()}")
    return f"{STATES}, % of text: {'; '.join(told)}"


def table(rows: Sequence[Row], seed: int) -> str:
    """Each figure of both rankings and their paired difference, in points."""
    names = dict.fromkeys(name.rpartition(", ")[0] for row in rows for name in row if name.endswith(f", {ALONE}"))
    lines = []
    for name in names:
        alone, together = ([row[f"{name}, {which}"] for row in rows] for which in RANKINGS)
        change = difference([100 * each for each in together], [100 * each for each in alone], seed)
        told = [mean(alone, seed).show(), mean(together, seed).show()]
        lines.append([name, *told, f"{change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"])
    return aligned(["%", ALONE, TOGETHER, "difference"], lines)


def command(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    rows: Annotated[Path, typer.Option(help="Results are kept here, as JSONL.")],
    half: Annotated[str, typer.Option(help="Rows of the file: even, odd or all.")] = "all",
    questions: Annotated[int, typer.Option(help="Questions to ask, one by one.", min=0)] = 60,
    pairs: Annotated[int, typer.Option(help="Pairs of questions to ask.", min=0)] = 60,
    documents: Annotated[int, typer.Option(help="Passages to search, at least those that are needed.", min=1)] = 200,
    answers: Annotated[bool, typer.Option(help="Whether to answer too.")] = True,
    stop_after: Annotated[int | None, typer.Option(help="Ask no more than so many further ones.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say what complements bring."""
    asked = questions_of(path, half, questions, pairs)
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    about: dict[str, Any] = {"model": model, "file": path.stem, "dtype": str(loaded.lm.dtype).removeprefix("torch.")}
    about["answers"] = answers
    kept = Kept(rows)
    have = {row["id"] for row in kept.of(**about)}
    left = list(islice((question for question in asked if question.id not in have), stop_after))
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=loaded) as index:
        if left:
            index.add(documents_of(path, asked, documents), show_progress_bar=True)
        ranking = Ranking(index, answers)
        for question in ProgressBar(left, desc=path.stem, unit="question", disable=not left):
            kept.add([{**about, "pairs": bool(question.needed), "id": question.id, **ranking.row(question)}])
    facts = {**about, "documents": documents, "candidates": CANDIDATES, "k": K, "seed": seed}
    typer.echo(header({**facts, **machine_of(loaded)}))
    wanted = {question.id for question in asked}
    for is_pair, name in ((True, "Pairs of questions"), (False, "Questions one by one")):
        own = [row for row in kept.of(**about, pairs=is_pair) if row["id"] in wanted]
        if own:
            typer.echo(f"\n{name}: {len(own)}, complements for {sum(row['complements'] > 0 for row in own)}\n")
            typer.echo(table(own, seed))
            if answers:
                typer.echo(share_of_text(own, seed))


if __name__ == "__main__":
    run(command)
