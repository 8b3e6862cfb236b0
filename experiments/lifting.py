"""Does reading a question tell which documents it needs beside the best one, and are answers better for it?

    python -m experiments.lifting nq.validation.jsonl timeqa.validation.jsonl --rows rows.jsonl --gain 0.6 --gain 0.8

Questions of each file, pairs of neighbouring ones asked together ("A? And B?") that need two documents, and pairs that
need one, where the file has them: they are as long and look the same. Each is answered from the 5 documents that hybrid
search finds in its file: as text, from states, and from states with lifting (`gritrag.model.lifting`) at each gain.
Rows are kept: a run that was stopped goes on, and further gains join what is there. Several files are shown together
too.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.asked import KINDS, K, documents_of, questions_by_kind
from experiments.kept import Kept, Paired, Row, lacking
from experiments.script import run
from gritrag import RAG, GritModel, Hit, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.scores import score_answer
from gritrag.model.lifting import Lifter
from gritrag.model.retrieval_heads import RetrievalHeads
from gritrag.progress import ProgressBar

ANSWER_TOKENS = 20
TEXT, STATES = "text", "states"


class Lifting:
    """Answers questions with and without.

    Args:
        index: open, of a GritModel.
        heads: its retrieval heads.
    """

    def __init__(self, index: Index, heads: RetrievalHeads) -> None:
        assert isinstance(index.model, GritModel)
        self._index, self._model, self._heads = index, index.model, heads
        self._states, self._text = RAG(index), RAG(index, mode="doc-query")

    def rows(self, question: Question, wanted: Sequence[str]) -> Iterator[Row]:
        """One for each way, the gains from the least on: where nothing is lifted, nothing is at a higher one."""
        (hits,) = self._index.search_many([question.text], K)
        needed = {document.id for document in question.gold}
        alone: float | None = None
        for way in wanted:
            if alone is not None and way not in (TEXT, STATES):
                yield {"way": way, "F1": alone, "lifted": 0, "right": False}
                continue
            f1, lifted = self._answered(question, hits, way)
            yield {
                "way": way,
                "F1": f1,
                "lifted": len(lifted),
                "right": bool(lifted) and {hits[0].document.id, lifted[0]} == needed,
            }
            if not lifted and way not in (TEXT, STATES):
                alone = f1

    def _answered(self, question: Question, hits: Sequence[Hit], way: str) -> tuple[float, list[str]]:
        """F1 of the answer, and ids of the documents that were lifted for it."""
        decoder, rotation = self._model.decoder, self._model.rotation
        assert rotation is not None, "heads are for keys that can be moved"
        decoder.lifter = None
        if way not in (TEXT, STATES):
            decoder.lifter = Lifter(self._model.lm, replace(self._heads, least_gain=float(way)), rotation)
        rag = self._text if way == TEXT else self._states
        answer = rag.ask(question.text, hits=hits, max_new_tokens=ANSWER_TOKENS)
        lifted = [hit.document.id for hit in answer.hits if hit.is_complement]
        return score_answer(answer.text, question.answers)["F1"], lifted


def table(rows: Sequence[Row], ways: Sequence[str], seed: int) -> str:
    """F1 of each way, of the questions that have all, against text and against states, paired."""
    paired = Paired.of(rows, ways)
    lines = [
        [
            way,
            str(sum(row["lifted"] > 0 for row in own)),
            str(sum(row["right"] for row in own)),
            *paired.shares(way, "F1", TEXT, seed),
            paired.change(way, "F1", STATES, seed),
        ]
        for way, own in paired.each()
    ]
    columns = ["least gain", "lifted", "the needed one", "F1", "% of text", "against states"]
    return f"{paired.questions}\n\n" + aligned(columns, lines)


def command(
    paths: Annotated[list[Path], typer.Argument(help="JSONL of questions with their passages and answers.")],
    rows: Annotated[Path, typer.Option(help="Answers are kept here, as JSONL.")],
    gain: Annotated[list[float], typer.Option(help="That a document must add; may be given several times.", min=0)],
    questions: Annotated[int, typer.Option(help="Questions to answer, one by one.", min=0)] = 60,
    pairs: Annotated[int, typer.Option(help="Pairs of questions to answer, of each kind.", min=0)] = 60,
    documents: Annotated[int, typer.Option(help="Passages to search, at least those that are needed.", min=1)] = 200,
    stop_after: Annotated[
        int | None, typer.Option(help="Answer no more than so many further ones of a file.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say what lifting brings."""
    ways = [TEXT, STATES, *dict.fromkeys(f"{each:g}" for each in sorted(gain))]
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    heads = loaded.retrieval_heads
    if heads is None:
        raise ValueError(f"{model} has no retrieval heads")
    about: dict[str, Any] = {"model": model, "dtype": str(loaded.lm.dtype).removeprefix("torch.")}
    about["heads"] = [list(head) for head in heads.heads]
    kept = Kept(rows)
    for path in paths:
        asked = questions_by_kind(path, questions, pairs)
        own = {**about, "file": path.stem}
        missing = ((each, lacking(kept.of(**own, kind=each[0], id=each[1].id), ways)) for each in asked)
        left = list(islice(((each, names) for each, names in missing if names), stop_after))
        if left:
            with _searching(loaded, path, [question for _, question in asked], documents) as index:
                lifting = Lifting(index, heads)
                for (kind, question), names in ProgressBar(left, desc=path.stem, unit="question"):
                    kept.add(lifting.rows(question, names), **own, kind=kind, id=question.id)
    typer.echo(header({**about, "documents": documents, "k": K, "seed": seed, **machine_of(loaded)}))
    files = {path.stem: kept.of(**about, file=path.stem) for path in paths}
    for name, found in {**files, **_together(files)}.items():
        for kind in KINDS:
            of_kind = [row for row in found if row["kind"] == kind]
            if of_kind:
                typer.echo(f"\n{name}, {kind[0].lower()}{kind[1:]}: " + table(of_kind, ways, seed))


@contextmanager
def _searching(model: GritModel, path: Path, asked: Sequence[Question], documents: int) -> Iterator[Index]:
    """An index of passages of a file, those that are needed among them."""
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=model) as index:
        index.add(documents_of(path, asked, documents), show_progress_bar=True)
        yield index


def _together(files: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """All rows of several files, of which two may have questions of one id; nothing of one file."""
    rows = [{**row, "id": f"{name}/{row['id']}"} for name, own in files.items() for row in own]
    return {"all files": rows} if len(files) > 1 else {}


if __name__ == "__main__":
    run(command)
