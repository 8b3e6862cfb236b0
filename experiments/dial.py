"""How near do answers come to those from text, by the share that is read again and the relevance bias beside it?

    python -m experiments.dial nq.validation.jsonl --half odd --rows rows.jsonl --way 0.02:2 --way 0.2:2

Each question is answered from 5 documents that hybrid search finds: as text, from states alone as `gritrag.RAG` does,
and by each way SHARE:BIAS, documents in a row. So is each pair of neighbouring questions of the file, asked together
("A? And B?"), which needs two documents. Beside F1 stands the mean log-probability of a token of the first
right answer: small models answer so little rightly that F1 says nothing of them. Rows are kept: a run that was stopped
goes on, and further ways and files join what is there.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice, pairwise, product, zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from experiments.script import run
from gritrag import RAG, GritModel, Hit, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.statistics import difference, mean, ratio
from gritrag.model.context import Context
from gritrag.model.decode import Sampling
from gritrag.model.recompute import FIRST_TOKENS
from gritrag.plan import MODES, Retrieved, check_recompute, check_relevance_bias, plan_context
from gritrag.progress import ProgressBar
from gritrag.records import Document

TEXT, STATES = "text", "states"
K, ANSWER_TOKENS = 5, 20
MOST_ANSWERS = 4
"""Wordings of one question's answer that are joined with those of another's."""

HALVES = {"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}
Row = dict[str, Any]


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


def questions_of(path: Path, half: str, single: int, pairs: int) -> list[Question]:
    """So many answerable questions and pairs of such, of every second row of a file, spread evenly and in turn.

    Raises:
        ValueError: no such half, or a broken file.
    """
    if half not in HALVES:
        raise ValueError(f"half must be one of {', '.join(HALVES)}, not {half!r}")
    read = [question for question in read_questions(path) if question.answers]
    own = [question._replace(id=str(number)) for number, question in enumerate(read)][HALVES[half]]
    joined = [together(one, other) for one, other in pairwise(own) if one.document != other.document]
    turns = zip_longest(evenly(joined, pairs), evenly(own, single))
    return [question for turn in turns for question in turn if question is not None]


def together(one: Question, other: Question) -> Question:
    """Both questions as one, which needs both documents."""
    texts = [question.text.strip().rstrip("?") for question in (one, other)]
    answers = product(one.answers[:MOST_ANSWERS], other.answers[:MOST_ANSWERS])
    return Question(
        f"{one.id}+{other.id}",
        f"{texts[0]}? And {texts[1]}?",
        tuple(f"{first} and {second}" for first, second in answers),
        one.document,
        (),
        (other.document,),
    )


def documents_of(path: Path, questions: Sequence[Question], most: int) -> list[Document]:
    """What the questions need, and further passages of the file."""
    needed = {document.id: document for question in questions for document in question.gold}
    others = [question.document for question in read_questions(path) if question.document.id not in needed]
    others = list({document.id: document for document in others}.values())
    return [*needed.values(), *evenly(others, max(0, most - len(needed)))]


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


class Kept:
    """Rows in a file of JSONL, by what they were asked of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def of(self, **about: Any) -> list[Row]:
        """Those of which all this is true."""
        return [row for row in self.rows if all(row[name] == value for name, value in about.items())]

    def missing(self, ways: Sequence[str], **about: Any) -> list[str]:
        """Of these ways, those that nothing is kept of."""
        have = {row["way"] for row in self.of(**about)}
        return [name for name in ways if name not in have]

    def add(self, rows: Sequence[Row]) -> None:
        """To the file too, all at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.rows += rows


def table(rows: Sequence[Row], ways: Sequence[str], seed: int) -> str:
    """F1 and log-probability of each way, and both against text, paired, over the questions that have them all."""
    of = {(row["way"], row["id"]): row for row in rows}
    ids = [id for id in dict.fromkeys(row["id"] for row in rows) if all((way, id) in of for way in ways)]
    lines = []
    for way in ways if ids else ():
        f1, text = ([of[name, id]["F1"] for id in ids] for name in (way, TEXT))
        log_p, text_log_p = ([of[name, id]["log p"] for id in ids] for name in (way, TEXT))
        share, change = ratio(f1, text, seed), difference(log_p, text_log_p, seed)
        lines.append(
            [
                way,
                mean(f1, seed).show(),
                "-" if share is None else share.show(),
                f"{mean(log_p, seed).mean:.3f}",
                f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
            ]
        )
    columns = ["read again: bias", "F1", "% of text", "log p", "against text"]
    return f"{len(ids)}\n\n" + aligned(columns, lines)


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

    def missing(question: Question) -> list[str]:
        have = {row["way"] for row in own_rows(id=question.id)}
        return [name for name in ways if name not in have]

    left = list(islice((question for question in asked if missing(question)), stop_after))
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=loaded) as index:
        if left:
            index.add(documents_of(path, asked, documents), show_progress_bar=True)
        answering = Answering(index)
        for question in ProgressBar(left, desc=path.stem, unit="question", disable=not left):
            found = answering.rows(question, missing(question))
            of = {**about, "pairs": bool(question.needed), "id": question.id, "label": label}
            kept.add([{**of, **row} for row in found])
    facts = {"file": path.name, **about, "label": label, "documents": documents, "k": K, **machine_of(loaded)}
    typer.echo(header({**facts, "seed": seed}))
    for name, is_pair in (("Pairs of questions", True), ("Questions one by one", False)):
        typer.echo(f"\n{name}: " + table(own_rows(pairs=is_pair), ways, seed))


if __name__ == "__main__":
    run(command)
