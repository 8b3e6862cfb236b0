"""What scores of models on the same questions say: means by kind of question, paired comparisons, and calibration.

Answers from states are set against the better of two ways to read again: all documents of the context, and the best
single one. Where one document is enough, leaving the others out is no feat, and where two are needed it must show.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gritrag.evaluate import statistics
from gritrag.evaluate.quality import BEST, ONE, ONE_OF_SEVERAL, RECOMPUTE, SEVERAL, UNANSWERABLE
from gritrag.evaluate.report import Section, Table, losing, ms
from gritrag.evaluate.scores import ANSWER, RANKING
from gritrag.evaluate.statistics import Interval, Spread
from gritrag.evaluate.suite import Row
from gritrag.prompts import NOT_FOUND

KINDS = (ONE, ONE_OF_SEVERAL, SEVERAL)
READ, CACHED = "doc-query", "doc-cache"
WORST = 10
"""Questions that are named of those that states answer worse."""


@dataclass(frozen=True)
class Evaluated:
    """One model's scores, by the way it searched (`"hybrid"`) and the way it answered (`"doc-cache, gold"`)."""

    model: str
    retrieval: dict[str, Row]
    answers: dict[str, Row]
    found: dict[str, Row] = field(default_factory=dict)
    """Of an index that was there: whether a right answer stands in what was found."""

    def values(self, score: str, way: str, kinds: Sequence[str] = KINDS) -> list[float]:
        """One number per question; of answers those of some kinds."""
        row = {**self.retrieval, **self.answers}[way]
        if "kinds" not in row:
            return list(row[score])
        return [value for value, kind in zip(row[score], row["kinds"], strict=True) if kind in kinds]

    def kinds(self) -> list[str]:
        """Of the questions that it answered and that have answers."""
        known = {kind for row in self.answers.values() for kind in row["kinds"]}
        return [kind for kind in KINDS if kind in known]

    def contexts(self) -> list[str]:
        return [way.removeprefix(f"{CACHED}, ") for way in self.answers if way.startswith(f"{CACHED}, ")]


@dataclass(frozen=True)
class Pair:
    """Two systems that one score compares: a model and its way to search or to answer, against another."""

    score: str
    model: Evaluated
    way: str
    other_model: Evaluated
    other_way: str

    def compared(self, seed: int) -> tuple[Interval, Interval | None]:
        """Difference and ratio."""
        a_N, b_N = self.model.values(self.score, self.way), self.other_model.values(self.score, self.other_way)
        return statistics.difference(a_N, b_N, seed), statistics.ratio(a_N, b_N, seed)


def pairs(runs: Sequence[Evaluated]) -> Iterator[Pair]:
    """The comparisons worth a line: both searches, from states and from text, and the first model with each other, in
    the ways that both have: not every model ranks or answers from states."""
    for each in runs:
        if each.retrieval:
            yield Pair("nDCG@10", each, "hybrid", each, "sparse")
        yield from (Pair("F1", each, cached, each, read) for cached, read in _cached_and_read(each))
    for second in runs[1:]:
        first = runs[0]
        yield from (Pair("nDCG@10", first, mode, second, mode) for mode in first.retrieval if mode in second.retrieval)
        if second.kinds():
            yield from (Pair("F1", first, way, second, way) for way in first.answers if way in second.answers)
            yield from (Pair("F1", first, cached, second, read) for cached, read in _cached_and_read(first))


def _cached_and_read(run: Evaluated) -> list[tuple[str, str]]:
    if not run.kinds():
        return []
    return [(f"{CACHED}, {context}", f"{READ}, {context}") for context in run.contexts()]


def evaluated(rows: Sequence[Row]) -> list[Evaluated]:
    """Rows by model, in their order."""
    found: dict[str, Evaluated] = {}
    for row in rows:
        cell = row["cell"]
        of_model = found.setdefault(cell["model"], Evaluated(cell["model"], {}, {}))
        parts = {"retrieval": of_model.retrieval, "answers": of_model.answers, "found": of_model.found}
        parts[cell["part"]][cell["way"]] = row
    return list(found.values())


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Everything in points of 100, with 95% bootstrap intervals."""
    runs, seed = evaluated(rows), facts["settings"]["seed"]
    found = [
        _retrieval(runs, seed),
        _found(runs, seed),
        _answers(runs, seed),
        _against_the_better(runs, seed),
        _dial(runs, seed),
    ]
    found += [_calibration(runs, seed), _comparisons(runs, seed)]
    return [*(section for section in found if any(table.rows for table in section.tables)), _losses(runs)]


def _retrieval(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = [
        [each.model, way, *(statistics.mean(row[score], seed).show() for score in RANKING), str(len(row["nDCG@10"]))]
        for each in runs
        for way, row in each.retrieval.items()
    ]
    return Section("Retrieval", "", (), [Table(["model", "retrieval", *RANKING, "questions"], lines)])


def _found(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = [
        [each.model, way, statistics.mean(row["found"], seed).show(), str(len(row["found"]))]
        for each in runs
        for way, row in each.found.items()
        if row["found"]
    ]
    columns = ["model", "search", "a right answer is found, %", "questions"]
    return Section("Search", "Whether a right answer stands in the documents found.", (), [Table(columns, lines)])


def _answers(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = []
    for each in runs:
        for kind in each.kinds():
            for way in each.answers:
                values = {score: each.values(score, way, [kind]) for score in ANSWER}
                shown = (statistics.mean(values[score], seed).show() for score in ANSWER)
                lines.append([each.model, kind, way, *shown, str(len(values["F1"]))])
    text = (
        f"By what a question needs: the passage of its row ({ONE}), one of the passages that its row names "
        f"({ONE_OF_SEVERAL}), or several of them ({SEVERAL}). {BEST}: from the text of the one document that search "
        "ranks first."
    )
    return Section("Answers", text, (), [Table(["model", "kind", "answers", *ANSWER, "questions"], lines)])


def _against_the_better(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = []
    for each in runs:
        for kind in each.kinds():
            for context in each.contexts():
                cached = each.values("F1", f"{CACHED}, {context}", [kind])
                ways = {way: each.values("F1", way, [kind]) for way in better_ways(each, context)}
                way = max(ways, key=lambda way: sum(ways[way]))
                change = statistics.difference(cached, ways[way], seed)
                share = statistics.ratio(cached, ways[way], seed)
                shown = [statistics.mean(values, seed).show() for values in (cached, ways[way])]
                lines.append(
                    [each.model, kind, context, shown[0], way, shown[1], change.show("+.1f"), statistics.percent(share)]
                )
    columns = ["model", "kind", "context", "F1 from states", "better of text", "its F1", "difference", "ratio, %"]
    text = "From states, against the better of all text and the best single document; paired."
    return Section("Cached against the better of text", text, (), [Table(columns, lines)])


def _dial(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = []
    for each in runs:
        for kind in each.kinds():
            for context in each.contexts():
                shares = [way for way in each.answers if way.startswith(RECOMPUTE) and way.endswith(f", {context}")]
                for way in [f"{CACHED}, {context}", *shares, f"{READ}, {context}"] if shares else ():
                    lines.append([each.model, kind, *_dialled(each, kind, way, f"{READ}, {context}", seed)])
    columns = ["model", "kind", "answers", "F1", "F1, % of text", "first token, ms", "times sooner than text"]
    text = (
        "The dial between speed and exactness: the share of the documents' tokens that is read again with all "
        "documents in sight. First tokens with quartiles; the embedding of a question is included where a way needs it."
    )
    return Section("Recompute", text, (), [Table(columns, lines)])


def _dialled(run: Evaluated, kind: str, way: str, read: str, seed: int) -> list[str]:
    found, text = (run.values("F1", each, [kind]) for each in (way, read))
    seconds, slow = (run.values("first_token", each, [kind]) for each in (way, read))
    share, sooner = statistics.ratio(found, text, seed), Spread.of_ratios(slow, seconds)
    return [way, statistics.mean(found, seed).show(), statistics.percent(share), ms(seconds), sooner.show(".1f")]


def better_ways(run: Evaluated, context: str) -> list[str]:
    """Ways to answer from text in a context."""
    return [way for way in (f"{READ}, {context}", f"{BEST}, {context}") if way in run.answers]


def _calibration(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = []
    for each in runs:
        for way in each.answers:
            rightly, wrongly = (each.values("not_found", way, kinds) for kinds in ([UNANSWERABLE], KINDS))
            if rightly or any(wrongly):
                shown = (said(told, seed) for told in (rightly, wrongly))
                lines.append([each.model, way, *shown, *_probabilities(each, way, seed)])
    columns = ["model", "answers", "rightly, % of unanswerable", "wrongly, % of answerable", "AUC", "Brier"]
    text = (
        f"How often an answer is “{NOT_FOUND}”. Of the probability that documents do not hold the answer, where there "
        "is one: how often it is higher for an unanswerable question than for an answerable one, and its mean squared "
        "error."
    )
    return Section("Calibration", text, (), [Table(columns, lines)])


def said(told: Sequence[float], seed: int) -> str:
    """How often it was said, as a share and a count; a dash where nothing was asked."""
    return f"{statistics.mean(told, seed).show()} ({sum(told):.0f} of {len(told)})" if told else "-"


def _probabilities(run: Evaluated, way: str, seed: int) -> tuple[str, str]:
    """Area under the curve, where there are questions of both kinds, and Brier score."""
    if "unanswerable" not in run.answers[way]:
        return "-", "-"
    without, with_answer = (run.values("unanswerable", way, kinds) for kinds in ([UNANSWERABLE], KINDS))
    errors = [*((1 - p) ** 2 for p in without), *(p**2 for p in with_answer)]
    brier = statistics.mean(errors, seed).show(".3f", 1)
    if not without or not with_answer:
        return "-", brier
    return statistics.auc(without, with_answer, seed).show(), brier


def _comparisons(runs: Sequence[Evaluated], seed: int) -> Section:
    lines = []
    for pair in pairs(runs):
        change, share = pair.compared(seed)
        of, against = f"{pair.way} ({pair.model.model})", f"{pair.other_way} ({pair.other_model.model})"
        lines.append([pair.score, of, against, change.show("+.1f"), statistics.percent(share)])
    table = Table(["score", "of", "against", "difference", "ratio, %"], lines)
    return Section("Comparisons", "Paired, over all answerable questions.", (), [table])


def _losses(runs: Sequence[Evaluated]) -> Section:
    lost = []
    for each in runs:
        for context in each.contexts():
            ids = each.answers[f"{CACHED}, {context}"]["ids"]
            scores = [each.answers[f"{mode}, {context}"]["F1"] for mode in (CACHED, READ)]
            worse = [id for id, cached, read in zip(ids, *scores, strict=True) if cached < read]
            if worse:
                told = ", ".join(worse[:WORST])
                lost.append(f"{each.model}, {context}: {len(worse)} of {len(ids)} questions, {told}")
    return losing(lost, f"Questions with a lower F1 from states than from text; the first {WORST} are named.")
