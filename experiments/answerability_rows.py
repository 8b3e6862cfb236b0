"""Rows of the experiment on unanswerable questions: what an engine knows of each before the first token.

Shape letters: `N` questions, `W` layers that are watched, `T` tokens of a question, `D` hidden, `L` layers, `H` heads,
`C` columns of a cache.
"""

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gritrag import RAG, Document, GritModel, Index
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import evenly, invented_questions, read_questions
from gritrag.evaluate.scores import says_not_found, score_answer
from gritrag.model.answerability import log_odds
from gritrag.model.inputs import inputs
from gritrag.model.reread_modules import attention_of
from gritrag.model.sampling import Sampling
from gritrag.model.watched import Watched
from gritrag.modes import MODES
from gritrag.plan import Retrieved, plan_context
from gritrag.progress import ProgressBar
from gritrag.prompts import NOT_FOUND
from gritrag.records import Hit
from gritrag.train.data.cut_out import cut_out
from gritrag.train.data.rows import Question as TrainingQuestion

TRAIN = (
    "adversarialqa",
    "qamr",
    "medquad",
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
    "squad2-backtranslated",
    "openstax-glossary",
)
"""Files NAME.train.jsonl. Of four groups there is none here, so that they show what the probe makes of other texts:
timeqa, dolly, boolq and docs-questions."""

VALIDATION = (
    "timeqa",
    "nq",
    "dolly-context",
    "fairytale",
    "sgd-dialogue",
    "docs-questions",
    "squad2-backtranslated",
    "boolq",
    "medquad",
    "openstax-qa",
    "selqa",
    "wikitables",
)
"""Files NAME.validation.jsonl."""

DEMO = "demo"
"""The questions of the package."""

ANSWERABLE, MARKED, TAKEN_OUT, CUT_OUT = KINDS = ("answerable", "marked", "taken out", "cut out")
K, RUN_OF_WORDS = 5, 8
QUESTIONS, CUT = 3, 8
"""Questions of a passage, and passages of a file without the answer of a question, at most."""

PLACES = END, WORD, WORDS = "end", "word", "words"
"""Where hidden states are taken: of the last token before the answer, of the question's last one, and the mean of all
of the question's."""

GREATEST, SUM = "greatest", "sum"
"""The attention that the last token before the answer pays to the documents, markers aside: to that token of them which
gets most, and to all."""

LEAST = 1e-4
"""Attention is told as a logarithm, after adding this."""

ANSWER_TOKENS, REFUSAL_TOKENS = 24, 6
NUMBER = "number"
"""Name in the metadata by which a passage is taken out of a search."""

Row = dict[str, Any]
T = TypeVar("T")


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
    """What is known of one case: its row, and arrays by name: hidden states `[W, D]` of each place, attention
    `[L * H]`."""

    row: Row
    arrays: dict[str, np.ndarray]


class WatchedTokens(Watched):
    """What a forward over one context is to keep: hidden states of all the tokens that it reads."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.of_layer: dict[int, torch.Tensor] = {}

    def see(self, passed: int, hidden_BTD: torch.Tensor) -> None:
        """Keep what so many layers have made of each token, if it is asked for."""
        if passed in self.layers:
            self.of_layer[passed] = hidden_BTD[0].float()

    def places(self, is_word_T: torch.Tensor) -> dict[str, np.ndarray]:
        """Hidden states `[W, D]` of each place.

        Args:
            is_word_T: which of the tokens are the question's own, not the template's.

        Raises:
            ValueError: the model has not so many layers.
        """
        if not {*self.layers} <= {*self.of_layer}:
            raise ValueError(f"no hidden states behind layers {[*self.layers]}; the last one cannot be watched")
        hidden_WTD = torch.stack([self.of_layer[layer] for layer in self.layers])
        words_WTD = hidden_WTD[:, is_word_T]
        found = {END: hidden_WTD[:, -1], WORD: words_WTD[:, -1], WORDS: words_WTD.mean(1)}
        return {place: each.cpu().numpy() for place, each in found.items()}


class LastAttention(TorchFunctionMode):
    """Attention `[H, C]` of the last token of one context, of each call of torch's attention while it is entered.

    Args:
        heads: for queries; heads that share keys may be rows of one product.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.of_call: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            attention_HTC = attention_of(*args, **kwargs)[0]
            apart = attention_HTC.unflatten(1, (self._heads // len(attention_HTC), -1))
            self.of_call.append(apart[:, :, -1].flatten(0, 1))
        return function(*args, **kwargs)

    def to(self, lengths: Sequence[int], markers: int) -> dict[str, np.ndarray]:
        """Log of the attention to documents, `[L * H]`; see `GREATEST` and `SUM`.

        Args:
            lengths: tokens of each document, which stand first, one behind the other.
            markers: tokens of the template before the text of each, which are left out.
        """
        attention_LHC = torch.stack(self.of_call)[..., : sum(lengths)]
        own = [part[..., markers:] for part in attention_LHC.split(list(lengths), -1)]
        greatest, total = (function(torch.cat(own, -1)) for function in (lambda a: a.amax(-1), lambda a: a.sum(-1)))
        return {name: (each + LEAST).log().flatten().numpy() for name, each in ((GREATEST, greatest), (SUM, total))}


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
    watched = cache.watched = WatchedTokens(layers)
    with LastAttention(model.lm.config.get_text_config().num_attention_heads) as attention:
        logits_V = model.forwards.best.logits(given.ids, given.positions, given.mask, cache)[0, -1]
    cache.end_watch()
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
        if case.kind == ANSWERABLE and case.question.answers:
            row |= score_answer(answer, case.question.answers)
    lengths = [len(part) for part in plan.context.parts if part.state is not None]
    markers = model.prompts.document("x").is_pooled.index(True)
    return Seen(row, watched.places(_is_word(model, case.question.text)) | attention.to(lengths, markers))


def _is_word(model: GritModel, question: str) -> torch.Tensor:
    """Which tokens of a question behind documents are its own, bool `[T]`."""
    prompts = model.prompts
    prompt = prompts.encoder.encode(prompts.template.question_segments(question, has_documents=True))
    return torch.tensor(prompt.is_pooled, device=model.device)


def seen_of(
    model: GritModel, name: str, library: Library, chosen: Sequence[Question], layers: Sequence[int], with_answer: bool
) -> Iterator[Seen]:
    """Each case of one file."""
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=model) as index:
        index.add(library.documents, show_progress_bar=True)
        for case in ProgressBar(library.cases(index, chosen), desc=name, unit="case"):
            if case.hits:
                found = look(index, case, layers, with_answer)
                yield Seen({"file": name} | found.row, found.arrays)


def chosen_of(path: Path, passages: int, others: int, part: int = 0) -> tuple[list[Question], list[Document]]:
    """Questions on so many passages that answer them, on as many that are marked not to, and further documents.

    Args:
        part: 0 for passages from all over the file, more for neighbours in it, which are about the same matter.
    """
    read = read_questions(path, needs_passages=False)
    asked = [each._replace(id=str(n)) for n, each in enumerate(read) if each.passage is not None]
    answering = _of_passages([question for question in asked if not question.is_unanswerable])
    shuffled = _shuffled(answering, 0)
    if part:
        first = {own[0].document.id for own in shuffled[:passages]}
        line = [own for own in answering if own[0].document.id not in first]
        start = random.Random(part).randrange(max(1, len(line) - passages - others))
        shuffled = line[start : start + passages + others]
    marked = _shuffled(_of_passages([question for question in asked if question.is_unanswerable]), 0)
    own = [*shuffled[:passages], *marked[part * passages :][:passages]]
    chosen = [question for each in own for question in evenly(each, QUESTIONS)]
    known = {question.document.id for question in chosen}
    further = {each[0].document.id: each[0].document for each in shuffled if each[0].document.id not in known}
    return chosen, _shuffled(list(further.values()), part)[:others]


def _shuffled(each: Sequence[T], seed: int) -> list[T]:
    found = list(each)
    random.Random(seed).shuffle(found)
    return found


def _of_passages(questions: Sequence[Question]) -> list[list[Question]]:
    """Those of each passage."""
    of_each: dict[str, list[Question]] = {}
    for question in questions:
        of_each.setdefault(question.document.id, []).append(question)
    return list(of_each.values())


class Kept:
    """Rows of finished parts of files, and their arrays beside them as float16: a run that was stopped goes on.

    Args:
        path: of the rows, as JSONL. Arrays of a part are in PATH.NAME.PART.npz.
        layers: behind which hidden states are kept.
    """

    def __init__(self, path: Path, layers: Sequence[int]) -> None:
        self.path, self.layers = path, tuple(layers)
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def __contains__(self, part: tuple[str, int]) -> bool:
        return part in self._parts

    @property
    def _parts(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys((row["file"], row["part"]) for row in self.rows))

    def add(self, name: str, part: int, seen: Sequence[Seen]) -> None:
        """All of one part of a file; the rows last, which say that it is whole."""
        arrays = {key: np.stack([each.arrays[key] for each in seen]).astype(np.float16) for key in seen[0].arrays}
        np.savez(self._arrays_of(name, part), allow_pickle=False, layers=np.array(self.layers), **arrays)
        rows = [each.row | {"part": part} for each in seen]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.rows += rows

    def arrays(self) -> dict[str, np.ndarray]:
        """float32, of all rows: hidden states `[N, W, D]` of each place, attention `[N, L * H]`.

        Raises:
            ValueError: they were kept of other layers.
        """
        found = [self._load(self._arrays_of(*part)) for part in self._parts]
        return {key: np.concatenate([each[key] for each in found]) for key in (*PLACES, GREATEST, SUM)}

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as kept:
            layers = kept["layers"].tolist()
            if not {*self.layers} <= {*layers}:
                raise ValueError(
                    f"{path} holds layers {', '.join(map(str, layers))}, not {self.layers}; choose among those"
                )
            own = [layers.index(layer) for layer in self.layers]
            found = {place: kept[place][:, own].astype(np.float32) for place in PLACES}
            return found | {name: kept[name].astype(np.float32) for name in (GREATEST, SUM)}

    def _arrays_of(self, name: str, part: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}.{part}.npz")


def read_rows(model: GritModel, folder: Path, found: Kept, passages: int, others: int, parts: int) -> None:
    """Add the rows of all parts that are not there yet: first one part of each file, so that a run that is stopped has
    some of all.

    Args:
        passages: with questions, in a part.
        others: further ones that are searched.
        parts: of a training file; the others have one.
    """
    files = [(f"{name}.train", 0) for name in TRAIN] + [(f"{name}.validation", 0) for name in VALIDATION]
    files += [(f"{name}.train", part) for part in range(1, parts) for name in TRAIN]
    for name, part in files:
        if (name, part) not in found:
            chosen, further = chosen_of(folder / f"{name}.jsonl", passages, others, part)
            if not chosen:
                continue  # a short file
            library = Library(chosen, further)
            found.add(name, part, list(seen_of(model, name, library, chosen, found.layers, ".validation" in name)))
    if (DEMO, 0) not in found:
        chosen = invented_questions()
        found.add(DEMO, 0, list(seen_of(model, DEMO, Library(chosen), chosen, found.layers, True)))
