"""The demo: questions about an invented corpus, answered from text and from states, side by side.

First a few short documents for each question, where reading them again is quick too; then ten long ones, where it is
not.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from gritrag import RAG, Answer, GritModel, Index
from gritrag.config import RELEVANCE_BIAS
from gritrag.corpus import LONG, Question, documents, long_documents, long_questions, questions
from gritrag.ingest import open_or_create
from gritrag.progress import ProgressBar

MAX_NEW_TOKENS = 32

LONG_K, LONG_QUESTIONS = 10, 4
"""Long documents for each question, and how many questions are asked about them at most."""

NEXT = "Next, your own folder: gritrag index FOLDER -i indexes/mine && gritrag ask 'A question?' -i indexes/mine"

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


SHORT = {"domain": {"$ne": LONG}}
"""Filter for the short documents."""


class Exchange(NamedTuple):
    """One question, answered by `doc-query` (documents read again) and by `doc-cache` (from their states)."""

    question: Question
    uncached: Answer
    cached: Answer

    @property
    def speedup(self) -> float:
        """How many times sooner the first token came from states."""
        return first_token(self.uncached) / first_token(self.cached)


class Summary(NamedTuple):
    """Counts over all exchanges; and medians: tokens of a context, seconds to the first token, and the speed-up."""

    questions: int
    found: int
    right_uncached: int
    right_cached: int
    documents: int
    tokens: float
    first_token_uncached: float
    first_token_cached: float
    median_speedup: float


class Others(NamedTuple):
    """The corpus' other questions, which are answered from states alone: how many, right ones, and seconds for all,
    search included."""

    questions: int
    right_cached: int
    seconds: float


class Comparison(NamedTuple):
    """Exchanges over documents of one length, and what they come to."""

    exchanges: list[Exchange]
    summary: Summary


class Report(NamedTuple):
    """All that the demo found."""

    short: Comparison
    long: Comparison
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
    index.add([*documents(), *long_documents()], show_progress_bar=True)
    return index


def ask(
    index: Index, questions: Sequence[Question], k: int, relevance_bias: float, where: Mapping[str, Any] | None = None
) -> Iterator[Exchange]:
    """Answer the questions in both modes, over the same hits."""
    uncached, cached = (RAG(index, mode, k, relevance_bias=relevance_bias) for mode in ("doc-query", "doc-cache"))
    for rag in (uncached, cached):
        rag.ask("What is this about?", where=where, max_new_tokens=2)  # the first call pays for allocations
    for question in questions:
        hits = index.search(question.question, k, where=where, mode=cached.search_mode)
        answers = [rag.ask(question.question, hits=hits, max_new_tokens=MAX_NEW_TOKENS) for rag in (uncached, cached)]
        yield Exchange(question, *answers)


def ask_others(index: Index, chosen: Sequence[Question], k: int, relevance_bias: float) -> Others:
    """Answer all questions on short documents that were not `chosen`, from states alone."""
    rag = RAG(index, "doc-cache", k, relevance_bias=relevance_bias)
    others = [question for question in questions() if question not in chosen]
    began, right = perf_counter(), 0
    with ProgressBar(others, desc="answering from states", unit="question", disable=not others) as bar:
        for question in bar:
            answer = rag.ask(question.question, where=SHORT, max_new_tokens=MAX_NEW_TOKENS)
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
    with build(folder, model) as index:
        say(f"Short documents, {k} for each question.\n")
        short = compare(index, chosen, k, relevance_bias, SHORT, say)
        say(f"Long documents, {LONG_K} for each question.\n")
        asked = long_questions()[: min(count, LONG_QUESTIONS)]
        long = compare(index, asked, LONG_K, relevance_bias, {"domain": LONG}, say)
        others = ask_others(index, chosen, k, relevance_bias)
    if others.questions:
        say(
            f"The other {others.questions} questions on short documents, from states alone: {others.right_cached} "
            f"right, in {others.seconds:.0f} s with the search. Of all {short.summary.questions + others.questions}: "
            f"{short.summary.right_cached + others.right_cached} right from states.\n"
        )
    say(table(short.summary, long.summary))
    say(NEXT)
    return Report(short, long, others)


def compare(
    index: Index,
    chosen: Sequence[Question],
    k: int,
    relevance_bias: float,
    where: Mapping[str, Any],
    say: Callable[[str], None],
) -> Comparison:
    """Answer the questions in both modes, and say so."""
    exchanges: list[Exchange] = []
    for exchange in ask(index, chosen, k, relevance_bias, where):
        exchanges.append(exchange)
        say(_exchange_lines(exchange))
    summary = summarise(exchanges)
    say(_summary_line(summary))
    return Comparison(exchanges, summary)


def summarise(exchanges: Sequence[Exchange]) -> Summary:
    """Counts and medians over exchanges."""
    return Summary(
        questions=len(exchanges),
        found=sum(e.question.document_id in [hit.document.id for hit in e.cached.hits] for e in exchanges),
        right_uncached=sum(is_right(e.uncached.text, e.question.answers) for e in exchanges),
        right_cached=sum(is_right(e.cached.text, e.question.answers) for e in exchanges),
        documents=max(len(e.cached.hits) for e in exchanges),
        tokens=median(e.cached.usage.prompt_tokens for e in exchanges),
        first_token_uncached=median(first_token(e.uncached) for e in exchanges),
        first_token_cached=median(first_token(e.cached) for e in exchanges),
        median_speedup=median(e.speedup for e in exchanges),
    )


def table(short: Summary, long: Summary) -> str:
    """First tokens of both lengths, beside each other."""
    lines = [f"{'First token after the search (medians)':<40}{'read again':>12}{'from states':>13}{'sooner':>9}"]
    for summary in (short, long):
        name = f"{summary.documents} documents, a context of {summary.tokens:,.0f} tokens"
        seconds = f"{summary.first_token_uncached:>10.3f} s{summary.first_token_cached:>11.3f} s"
        lines.append(f"{name:<40}{seconds}{summary.median_speedup:>8.1f}x")
    return "\n".join(lines) + "\n"


def _summary_line(summary: Summary) -> str:
    return (
        f"{summary.questions} questions, document found for {summary.found}. Right answers: doc-query "
        f"{summary.right_uncached}, doc-cache {summary.right_cached}.\n"
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
