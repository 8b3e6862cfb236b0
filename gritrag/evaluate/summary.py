"""What scores of models on the same questions say: means and paired comparisons, with their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gritrag.evaluate import scores
from gritrag.evaluate.facts import header, table
from gritrag.evaluate.scores import ANSWER, RANKING, Interval, Scores


@dataclass(frozen=True)
class Evaluated:
    """One model's scores, by the way it searched (`"hybrid"`) and the way it answered (`"doc-cache, gold"`)."""

    model: str
    facts: dict[str, Any]
    retrieval: dict[str, Scores]
    answers: dict[str, Scores]

    def values(self, score: str, way: str) -> list[float]:
        """One number per question."""
        return {**self.retrieval, **self.answers}[way][score]


@dataclass(frozen=True)
class Pair:
    """Two systems that one score compares: a model and its way to search or to answer, against another."""

    score: str
    model: Evaluated
    way: str
    other_model: Evaluated
    other_way: str

    def compared(self, seed: int) -> dict[str, Any]:
        a_Q, b_Q = self.model.values(self.score, self.way), self.other_model.values(self.score, self.other_way)
        return {
            "score": self.score,
            "of": f"{self.way} ({self.model.model})",
            "against": f"{self.other_way} ({self.other_model.model})",
            "difference": scores.difference(a_Q, b_Q, seed),
            "ratio": scores.ratio(a_Q, b_Q, seed),
        }


def pairs(runs: Sequence[Evaluated]) -> Iterator[Pair]:
    """The comparisons worth a line: both searches, from states and from text, and the first model with each other."""
    for run in runs:
        if run.retrieval:
            yield Pair("nDCG@10", run, "hybrid", run, "sparse")
        yield from (Pair("F1", run, cached, run, read) for cached, read in _cached_and_read(run))
    for second in runs[1:]:
        first = runs[0]
        yield from (Pair("nDCG@10", first, mode, second, mode) for mode in first.retrieval)
        if second.answers:
            yield from (Pair("F1", first, way, second, way) for way in first.answers)
            yield from (Pair("F1", first, cached, second, read) for cached, read in _cached_and_read(first))


def _cached_and_read(run: Evaluated) -> list[tuple[str, str]]:
    return [(way, way.replace("doc-cache", "doc-query")) for way in run.answers if way.startswith("doc-cache")]


def summarise(runs: Sequence[Evaluated], facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything that `show` prints.

    Args:
        runs: of models on the same questions; the first is compared with each other.
        facts: what was evaluated, and how.
        seed: of the resamples.
    """
    return {
        "facts": dict(facts),
        "models": [
            {
                "facts": run.facts,
                "retrieval": {way: _means(found, seed) for way, found in run.retrieval.items()},
                "answers": {way: _means(found, seed) for way, found in run.answers.items()},
            }
            for run in runs
        ],
        "comparisons": [pair.compared(seed) for pair in pairs(runs)],
    }


def _means(found: Scores, seed: int) -> dict[str, Interval]:
    return {score: scores.mean(values_Q, seed) for score, values_Q in found.items()}


def show(result: Mapping[str, Any]) -> str:
    """What was evaluated, and tables."""
    models = result["models"]
    parts = [header(model["facts"]) for model in models]
    parts += [header(result["facts"]), "points of 100, with 95% bootstrap intervals"]
    for part, columns in (("retrieval", tuple(RANKING)), ("answers", ANSWER)):
        rows = [
            [model["facts"]["model"], way, *(means[score].show() for score in columns)]
            for model in models
            for way, means in model[part].items()
        ]
        if rows:
            parts.append(table(["model", part, *columns], rows))
    rows = [
        [pair["score"], pair["of"], pair["against"], pair["difference"].show("+.1f"), _percent(pair["ratio"])]
        for pair in result["comparisons"]
    ]
    return "\n\n".join([*parts, table(["score", "of", "against", "difference", "ratio, %"], rows)])


def _percent(ratio: Interval | None) -> str:
    return "-" if ratio is None else ratio.show()
