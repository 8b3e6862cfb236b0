"""The demo: questions about an invented corpus, answered from text and from states, side by side."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

from gritrag import RAG, Answer, GritModel, Index
from gritrag.config import RELEVANCE_BIAS
from gritrag.corpus import Question, documents, questions
from gritrag.ingest import open_or_create
from gritrag.progress import ProgressBar

MAX_NEW_TOKENS = 32

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class Exchange(NamedTuple):
    """One question, answered by `doc-query` (documents read again) and by `doc-cache` (from their states)."""

    question: Question
    uncached: Answer
    cached: Answer

    @property
    def speedup(self) -> float:
        return first_token(self.uncached) / first_token(self.cached)


class Summary(NamedTuple):
    """Counts over all exchanges, and the median speed-up of the first token."""

    questions: int
    found: int
    right_uncached: int
    right_cached: int
    median_speedup: float


class Others(NamedTuple):
    """The corpus' other questions, which are answered from states alone: how many, right ones, and seconds for all,
    search included."""

    questions: int
    right_cached: int
    seconds: float


class Report(NamedTuple):
    """All that the demo found."""

    exchanges: list[Exchange]
    summary: Summary
    others: Others


def first_token(answer: Answer) -> float:
    """Seconds from the hits to the first token: the search before it is the same in both modes."""
    return answer.timings.first_token - answer.timings.retrieve


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether one of `answers` stands in `text`, word for word, without regard to case, punctuation and articles,
    and to whether a number below a hundred is written in words or in digits."""
    said = f" {_words(text)} "
    return any(f" {_words(answer)} " in said for answer in answers)


def build(folder: Path, model: GritModel) -> Index:
    """An index of the corpus in `folder`, or the one that is there, brought up to date."""
    index = open_or_create(folder, model)
    index.add(documents(), show_progress_bar=True)
    return index


def ask(index: Index, questions: Sequence[Question], k: int, relevance_bias: float) -> Iterator[Exchange]:
    """Answer the questions in both modes, over the same hits."""
    uncached, cached = (RAG(index, mode, k, relevance_bias=relevance_bias) for mode in ("doc-query", "doc-cache"))
    for rag in (uncached, cached):
        rag.ask("What is this about?", max_new_tokens=2)  # the first call of a process pays for allocations
    for question in questions:
        hits = index.search(question.question, k, mode=cached.search_mode)
        answers = [rag.ask(question.question, hits=hits, max_new_tokens=MAX_NEW_TOKENS) for rag in (uncached, cached)]
        yield Exchange(question, *answers)


def ask_others(index: Index, chosen: Sequence[Question], k: int, relevance_bias: float) -> Others:
    """Answer all that were not `chosen`, from states alone."""
    rag = RAG(index, "doc-cache", k, relevance_bias=relevance_bias)
    others = [question for question in questions() if question not in chosen]
    began, right = perf_counter(), 0
    with ProgressBar(others, desc="answering from states", unit="question", disable=not others) as bar:
        for question in bar:
            answer = rag.ask(question.question, max_new_tokens=MAX_NEW_TOKENS)
            right += is_right(answer.text, question.answers)
    return Others(len(others), right, perf_counter() - began)


def run(
    folder: Path,
    model: GritModel,
    count: int,
    k: int,
    say: Callable[[str], None],
    relevance_bias: float = RELEVANCE_BIAS,
) -> Report:
    """The whole demo; every line of it goes to `say` as soon as it is known."""
    chosen = questions(count)
    exchanges: list[Exchange] = []
    with build(folder, model) as index:
        for exchange in ask(index, chosen, k, relevance_bias):
            exchanges.append(exchange)
            say(_exchange_lines(exchange))
        summary = summarise(exchanges)
        say(_summary_line(summary))
        others = ask_others(index, chosen, k, relevance_bias)
    if others.questions:
        say(
            f"The corpus' other {others.questions} questions, from states alone: {others.right_cached} right, in "
            f"{others.seconds:.0f} s with the search. Of all {summary.questions + others.questions}: "
            f"{summary.right_cached + others.right_cached} right from states."
        )
    return Report(exchanges, summary, others)


def summarise(exchanges: Sequence[Exchange]) -> Summary:
    return Summary(
        questions=len(exchanges),
        found=sum(e.question.document_id in [hit.document.id for hit in e.cached.hits] for e in exchanges),
        right_uncached=sum(is_right(e.uncached.text, e.question.answers) for e in exchanges),
        right_cached=sum(is_right(e.cached.text, e.question.answers) for e in exchanges),
        median_speedup=median(e.speedup for e in exchanges),
    )


def _summary_line(summary: Summary) -> str:
    return (
        f"{summary.questions} questions, document found for {summary.found}. Right answers: doc-query "
        f"{summary.right_uncached}, doc-cache {summary.right_cached}. "
        f"First token after the search: {summary.median_speedup:.1f} times sooner from states (median)."
    )


def _exchange_lines(exchange: Exchange) -> str:
    uncached, cached = (" ".join(answer.text.split()) for answer in (exchange.uncached, exchange.cached))
    return (
        f"{exchange.question.question}\n"
        f"  expected   {exchange.question.answers[0]}\n"
        f"  doc-query  {first_token(exchange.uncached):6.3f} s  {uncached}\n"
        f"  doc-cache  {first_token(exchange.cached):6.3f} s  {cached}  ({exchange.speedup:.1f}x sooner)\n"
    )


def _words(text: str) -> str:
    words: list[str] = []
    is_open = False  # the last word is a round number in words, which a unit may follow
    for word in re.findall(r"\w+", text.lower().replace("'", "")):
        if word in TENS:
            words.append(str(10 * (TENS.index(word) + 2)))
        elif is_open and word in UNITS[1:10]:
            words[-1] = str(int(words[-1]) + UNITS.index(word))
        elif word in UNITS:
            words.append(str(UNITS.index(word)))
        elif word not in ("a", "an", "the"):
            words.append(word)
        is_open = word in TENS
    return " ".join(words)
