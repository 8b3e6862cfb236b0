"""Rows of the experiment on unanswerable questions: what an engine knows of each before the first token.

Shape letters: `N` questions, `W` layers that are watched, `D` hidden.
"""

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gritrag import RAG, Document, GritModel, Index
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import evenly, invented_questions, read_questions
from gritrag.evaluate.scores import says_not_found, score_answer
from gritrag.model.answerability import log_odds
from gritrag.model.context import inputs
from gritrag.model.decode import Sampling
from gritrag.model.state import Watched
from gritrag.plan import MODES, Retrieved, plan_context
from gritrag.progress import ProgressBar
from gritrag.prompts import NOT_FOUND
from gritrag.records import Hit
from gritrag.train.data.cut_out import cut_out
from gritrag.train.data.rows import Question as TrainingQuestion

TRAIN = (
    "adversarialqa",
    "ares-hotpotqa",
    "ares-nq",
    "ares-wow",
    "doqa",
    "fairytale",
    "nq",
    "openstax-qa",
    "quoref",
    "selqa",
    "sgd-dialogue",
    "tatqa",
    "wikitables",
)
"""Files NAME.train.jsonl with answers that stand in passages of several sentences. Of two groups there is none here,
so that they show what the probe makes of other texts: timeqa and dolly."""

VALIDATION = ("timeqa", "sgd-dialogue", "nq", "fairytale", "dolly-context")
"""Files NAME.validation.jsonl with answers."""

DEMO = "demo"
"""The questions of the package."""

ANSWERABLE, MARKED, TAKEN_OUT, CUT_OUT = KINDS = ("answerable", "marked", "taken out", "cut out")
K, RUN_OF_WORDS = 5, 8
QUESTIONS, CUT = 2, 20
"""Questions of a passage, and passages of a file without the answer of a question, at most."""

ANSWER_TOKENS, REFUSAL_TOKENS = 24, 8
NUMBER = "number"
"""Name in the metadata by which a passage is taken out of a search."""

Row = dict[str, Any]


class Case(NamedTuple):
    """A question, what it is asked of, and whether its passage is among that, cut or whole."""

    kind: str
    question: Question
    hits: list[Hit]
    is_found: bool


class Library:
    """Documents of one file, and of each question's passage a copy without the sentence with its answer.

    Args:
        questions: all that will be asked.
        others: further documents to search.
    """

    def __init__(self, questions: Sequence[Question], others: Sequence[Document] = ()) -> None:
        passages = {each.id: each for each in (*(question.document for question in questions), *others)}
        self._words = {id: runs_of(each.text) for id, each in passages.items()}
        cut = {own.id: each for own in questions if (each := without_answer(own)) is not None}
        cut = dict(evenly(list(cut.items()), CUT))
        self.documents = [
            Document(each.text, id, each.title, {NUMBER: number})
            for number, (id, each) in enumerate([*passages.items(), *((f"cut/{id}", each) for id, each in cut.items())])
        ]
        self._numbers = {each.id: number for number, each in enumerate(self.documents)}
        self._passages = list(passages)

    def alike(self, question: Question) -> set[str]:
        """The question's passage, and whatever shares eight words in a row with it."""
        own = question.document.id
        return {id for id in self._passages if id == own or self._words[id] & self._words[own]}

    def cases(self, index: Index, questions: Sequence[Question]) -> Iterator[Case]:
        """Each question as it is; one that has answers also without its passage, and with what is left of it."""
        vectors = index.model.encode_query([question.text for question in questions])
        for question, vector_D in zip(questions, vectors, strict=True):
            alike = self.alike(question)
            others = [id for id in self._passages if id not in alike]
            cut = f"cut/{question.id}"
            kinds = {MARKED if question.is_unanswerable else ANSWERABLE: (self._passages, alike)}
            if not question.is_unanswerable:
                kinds[TAKEN_OUT] = others, {""}
                if cut in self._numbers:
                    kinds[CUT_OUT] = [*others, cut], {cut}
            for kind, (searched, sought) in kinds.items():
                where = {NUMBER: {"$in": [self._numbers[id] for id in searched]}}
                (hits,) = index.search_many([question.text], K, where=where, vectors=vector_D[None])
                yield Case(kind, question, hits, any(hit.document.id in sought for hit in hits))


def runs_of(text: str) -> set[tuple[str, ...]]:
    """All runs of so many words; all of a shorter text is one."""
    words = text.lower().split()
    return {tuple(words[n : n + RUN_OF_WORDS]) for n in range(max(1, len(words) - RUN_OF_WORDS + 1))}


def without_answer(question: Question) -> Document | None:
    """What is left of the question's passage once the sentence with its answer is cut out; None where others tell."""
    if not question.answers:
        return None
    own, asked = question.document, TrainingQuestion(question.text, question.answers[0], None, ())
    found = cut_out(own.text, own.title, [asked], True, random.Random(question.id))
    if found is None or any(answer.lower() in found[0].lower() for answer in question.answers):
        return None
    return Document(found[0], title=own.title)


class Seen(NamedTuple):
    """What is known of one case: its row, and hidden states `[W, D]`."""

    row: Row
    hidden: np.ndarray


@torch.inference_mode()
def look(index: Index, case: Case, layers: Sequence[int], with_answer: bool) -> Seen:
    """What an engine knows before the first token; and the greedy answer's scores, where that is wanted."""
    model = index.model
    assert isinstance(model, GritModel)
    states, computed = index.states_of([hit.document for hit in case.hits])
    retrieved = Retrieved(case.question.text, case.hits, states, computed=computed, is_best_last=True)
    plan = plan_context(model, MODES["doc-cache"], retrieved, room=32, relevance_bias=RAG(index).relevance_bias)
    new_tokens = ANSWER_TOKENS if case.kind == ANSWERABLE else REFUSAL_TOKENS
    sampling = Sampling(max_new_tokens=new_tokens, stop=model.prompts.template.stop)
    cache = model.decoder.place([plan.context], sampling)
    given, placed = inputs([plan.context], model.device), cache.length
    cache.watched = Watched(layers)
    logits_V = model.forwards.best.logits(given.ids, given.positions, given.mask, cache)[0, -1]
    hidden_1D = cache.end_watch()
    if hidden_1D is None:
        raise ValueError(f"no hidden states behind layers {list(layers)}; the model has {model.decoder.shape.layers}")
    hidden = hidden_1D.view(len(layers), -1).cpu().numpy()
    first = model.prompts.answer_ids(NOT_FOUND)[0]
    nearest = max((hit.similarity for hit in case.hits if hit.similarity is not None), default=0.0)
    row: Row = {"kind": case.kind, "found": case.is_found, "log_odds": log_odds(logits_V, first), "similarity": nearest}
    if with_answer:
        cache.cut(placed)
        decoding = model.decoder.decode_placed(cache, [plan.context], sampling)
        for _ in decoding:
            pass
        answer = decoding.completions[0].text.strip()
        row["told"] = float(says_not_found(answer))
        if case.kind == ANSWERABLE:
            row |= score_answer(answer, case.question.answers)
    return Seen(row, hidden)


def seen_of(
    model: GritModel, name: str, library: Library, chosen: Sequence[Question], layers: Sequence[int], with_answer: bool
) -> Iterator[Seen]:
    """Each case of one file."""
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=model) as index:
        index.add(library.documents, show_progress_bar=True)
        for case in ProgressBar(library.cases(index, chosen), desc=name, unit="case"):
            found = look(index, case, layers, with_answer)
            yield Seen({"file": name} | found.row, found.hidden)


def chosen_of(path: Path, passages: int, others: int) -> tuple[list[Question], list[Document]]:
    """Questions on so many passages that answer them, on as many that are marked not to, and further documents."""
    read = read_questions(path, needs_passages=False)
    asked = [each._replace(id=str(n)) for n, each in enumerate(read) if each.passage is not None]
    answered = of_passages([question for question in asked if question.answers], passages)
    chosen = [*answered, *of_passages([question for question in asked if question.is_unanswerable], passages)]
    known = {question.document.id for question in chosen}
    further = {question.document.id: question.document for question in asked if question.document.id not in known}
    return chosen, evenly(list(further.values()), others)


def of_passages(questions: Sequence[Question], passages: int) -> list[Question]:
    """Some questions on each of so many passages: a passage takes longer to read than a question."""
    of_each: dict[str, list[Question]] = {}
    for question in questions:
        of_each.setdefault(question.document.id, []).append(question)
    return [question for own in evenly(list(of_each.values()), passages) for question in evenly(own, QUESTIONS)]


class Kept:
    """Rows of finished files, and their hidden states beside them as float16: a run that was stopped goes on.

    Args:
        path: of the rows, as JSONL. Hidden states of a file are in PATH.NAME.npz, by layer.
        layers: behind which hidden states are kept.
    """

    def __init__(self, path: Path, layers: Sequence[int]) -> None:
        self.path, self.layers = path, tuple(layers)
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def __contains__(self, name: str) -> bool:
        return any(row["file"] == name for row in self.rows)

    def add(self, name: str, seen: Sequence[Seen]) -> None:
        """All of one file; the rows last, which say that it is whole."""
        hidden_NWD = np.stack([each.hidden for each in seen]).astype(np.float16)
        of_layers = {str(layer): hidden_NWD[:, number] for number, layer in enumerate(self.layers)}
        np.savez(self._hidden_of(name), allow_pickle=False, **of_layers)
        rows = [each.row for each in seen]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.rows += rows

    def hidden(self) -> np.ndarray:
        """float32 `[N, W, D]` of all rows.

        Raises:
            ValueError: they were kept of other layers.
        """
        files = dict.fromkeys(row["file"] for row in self.rows)
        return np.concatenate([self._hidden(self._hidden_of(name)) for name in files])

    def _hidden(self, path: Path) -> np.ndarray:
        with np.load(path) as of_layers:
            if not {*map(str, self.layers)} <= {*of_layers}:
                raise ValueError(f"{path} holds layers {', '.join(of_layers)}, not {self.layers}; choose among those")
            return np.stack([of_layers[str(layer)] for layer in self.layers], axis=1).astype(np.float32)

    def _hidden_of(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}.npz")


def read_rows(model: GritModel, folder: Path, found: Kept, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Add the rows of all files that are not there yet.

    Args:
        sizes: passages with questions, and further ones, of a file, by split.
    """
    names = {"train": TRAIN, "validation": VALIDATION}
    for split, (passages, others) in sizes.items():
        for name in names[split]:
            path = folder / f"{name}.{split}.jsonl"
            if path.stem not in found:
                chosen, further = chosen_of(path, passages, others)
                library = Library(chosen, further)
                seen = seen_of(model, path.stem, library, chosen, found.layers, split == "validation")
                found.add(path.stem, list(seen))
    if DEMO not in found:
        chosen = invented_questions()
        found.add(DEMO, list(seen_of(model, DEMO, Library(chosen), chosen, found.layers, True)))
