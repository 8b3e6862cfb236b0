"""How near do answers come to those from text, by the share that is read again and the relevance bias beside it?

    python -m experiments.dial nq.validation.jsonl --half odd --rows rows.jsonl --way 0.02:2 --way 0.2:2

Each question is answered from 5 documents that hybrid search finds: as text, from states alone as `gritrag.RAG` does,
and by each way SHARE:BIAS, documents in a row. So is each pair of neighbouring questions of the file, asked together
("A? And B?"), which needs two documents. Beside F1 stands the mean log-probability of a token of the first
right answer: small models answer so little rightly that F1 says nothing of them. Rows are kept: a run that was stopped
goes on, and further ways and files join what is there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import torch
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
from gritrag.model.context import Context
from gritrag.model.recompute import FIRST_TOKENS
from gritrag.model.sampling import Sampling
from gritrag.modes import MODES
from gritrag.plan import Retrieved, check_recompute, plan_context
from gritrag.progress import ProgressBar
from gritrag.relevance import check_relevance_bias

TEXT, STATES = "text", "states"
ANSWER_TOKENS = 20


class Way(NamedTuple):
    """So large a share is read again, with so much bias for the document of score 0 against the best."""

    share: float
    bias: float

    @classmethod
    def of(cls, text: str) -> "Way":
        """From SHARE:BIAS.

        Raises:
            ValueError: something else, or a share or a bias that there is not.
        """
        try:
            share, bias = map(float, text.split(":"))
        except ValueError:
            raise ValueError(f"a way is SHARE:BIAS, such as 0.2:1, not {text!r}") from None
        check_recompute(share)
        check_relevance_bias(bias)
        return cls(share, bias)

    def __str__(self) -> str:
        return f"{self.share:g}:{self.bias:g}"


class Answering:
    """Answers questions in every way.

    Args:
        index: open, of a GritModel whose keys can be moved.
    """

    def __init__(self, index: Index) -> None:
        assert isinstance(index.model, GritModel)
        self._index, self._model = index, index.model
        self._bias = RAG(index).relevance_bias
        self._sampling = Sampling(max_new_tokens=ANSWER_TOKENS, stop=self._model.prompts.template.stop)

    def rows(self, question: Question, wanted: Sequence[str]) -> Iterator[Row]:
        """One for each of the ways that are wanted: what is said, its F1, and how probable the right answer is."""
        (hits,) = self._index.search_many([question.text], K)
        answer = self._model.prompts.answer_ids(question.answers[0])
        for share, names in groupby(sorted(wanted), key=lambda name: name.partition(":")[0]):
            own = list(names)
            contexts = [self._context(question, hits, name) for name in own]
            again = 0.0 if share in (TEXT, STATES) else float(share)
            for name, (text, log_p) in zip(own, self._said(contexts, again, answer), strict=True):
                yield {"way": name, "F1": score_answer(text, question.answers)["F1"], "log p": log_p, "text": text}

    def _context(self, question: Question, hits: Sequence[Hit], name: str) -> Context:
        mode = MODES["doc-query" if name == TEXT else "doc-cache"]
        retrieved = Retrieved(question.text, hits, is_best_last=True)
        if name != TEXT:
            retrieved = replace(retrieved, states=self._index.states_of([hit.document for hit in hits])[0])
        bias = self._bias if name == STATES else 1.0
        context = plan_context(self._model, mode, retrieved, room=ANSWER_TOKENS, relevance_bias=bias).context
        return context if name in (TEXT, STATES) else in_a_row(context, Way.of(name).bias)

    @torch.inference_mode()
    def _said(self, contexts: Sequence[Context], share: float, answer: Sequence[int]) -> list[tuple[str, float]]:
        decoder, forward = self._model.decoder, self._model.forwards.best
        room = replace(self._sampling, max_new_tokens=ANSWER_TOKENS + len(answer))
        cache = decoder.place(contexts, room)
        if share:
            decoder.recompute(cache, contexts, share)
        decoding = decoder.decode_placed(cache, contexts, self._sampling)
        for _ in decoding:
            pass
        cache.cut(len(contexts[0]) - 1)  # all are of the same tokens
        ids = [[context.token_ids[-1], *answer[:-1]] for context in contexts]
        positions = [[context.end - 1 + number for number in range(len(answer))] for context in contexts]
        log_p_BS = forward.log_probabilities(
            torch.tensor(ids).to(self._model.device),
            torch.tensor(positions).to(self._model.device),
            None,
            cache,
            torch.tensor([list(answer)] * len(contexts)).to(self._model.device),
        )
        said = [done.text.strip() for done in decoding.completions]
        return list(zip(said, log_p_BS.mean(1).tolist(), strict=True))


def in_a_row(context: Context, bias: float) -> Context:
    """Documents with so many times their bias one behind the other, and none on the first tokens of all."""
    parts = [replace(part, relevance_bias=bias * part.relevance_bias, shares_positions=False) for part in context.parts]
    return Context((replace(parts[0], unbiased=FIRST_TOKENS), *parts[1:]), context.start)


def table(rows: Sequence[Row], ways: Sequence[str], seed: int) -> str:
    """F1 and log-probability of each way, and both against text, paired, over the questions that have them all."""
    paired = Paired.of(rows, ways)
    lines = [
        [
            way,
            *paired.shares(way, "F1", TEXT, seed),
            f"{fmean(paired.values(way, 'log p')):.3f}",
            paired.change(way, "log p", TEXT, seed, "+.3f", 1),
        ]
        for way, _ in paired.each()
    ]
    columns = ["read again: bias", "F1", "% of text", "log p", "against text"]
    return f"{paired.questions}\n\n" + aligned(columns, lines)


def command(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    rows: Annotated[Path, typer.Option(help="Answers are kept here, as JSONL.")],
    way: Annotated[list[str], typer.Option(help="SHARE:BIAS; may be given several times.")],
    half: Annotated[str, typer.Option(help="Rows of the file: even, odd or all.")] = "all",
    questions: Annotated[int, typer.Option(help="Questions to answer, one by one.", min=0)] = 100,
    pairs: Annotated[int, typer.Option(help="Pairs of questions to answer.", min=0)] = 100,
    documents: Annotated[int, typer.Option(help="Passages to search, at least those that are needed.", min=1)] = 300,
    stop_after: Annotated[int | None, typer.Option(help="Answer no more than so many further ones.", min=0)] = None,
    label: Annotated[str, typer.Option(help="Kept with the rows, to tell apart what the code was.")] = "",
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say how near answers come to those from text."""
    ways = [TEXT, STATES, *dict.fromkeys(str(Way.of(each)) for each in way)]
    asked = questions_of(path, half, questions, pairs)
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    about = {"model": model, "file": path.stem, "half": half, "dtype": str(loaded.lm.dtype).removeprefix("torch.")}
    kept = Kept(rows)

    def own_rows(**more: Any) -> list[Row]:
        """Text and states alone are what they are, whatever is read again."""
        return [row for row in kept.of(**about, **more) if row["label"] == label or ":" not in row["way"]]

    missing = ((question, lacking(own_rows(id=question.id), ways)) for question in asked)
    left = list(islice(((question, names) for question, names in missing if names), stop_after))
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=loaded) as index:
        if left:
            index.add(documents_of(path, asked, documents), show_progress_bar=True)
        answering = Answering(index)
        for question, names in ProgressBar(left, desc=path.stem, unit="question", disable=not left):
            of = {"pairs": bool(question.needed), "id": question.id, "label": label}
            kept.add(answering.rows(question, names), **about, **of)
    facts = {"file": path.name, **about, "label": label, "documents": documents, "k": K, **machine_of(loaded)}
    typer.echo(header({**facts, "seed": seed}))
    for name, is_pair in (("Pairs of questions", True), ("Questions one by one", False)):
        typer.echo(f"\n{name}: " + table(own_rows(pairs=is_pair), ways, seed))


if __name__ == "__main__":
    run(command)
