"""What a comparison of recipes says: one table of systems and scores, and relations, confirmed or refuted."""

from collections.abc import Mapping, Sequence
from typing import Any

from gritrag.evaluate.facts import header, table
from gritrag.evaluate.scores import Interval
from gritrag.evaluate.statistics import Sampled

HELD, FELL, OPEN = "confirmed", "refuted", "undecided"


def verdict(difference: Interval, expected: str, margin: float) -> str:
    """Whether the interval of a difference lies where a claim would have it.

    Args:
        difference: paired, with its 95% interval.
        expected: ``above`` or ``below`` zero; or ``not below``, by more than the margin.
        margin: see above.

    Returns:
        ``confirmed`` if all of the interval lies there, ``refuted`` if none of it, else ``undecided``.
    """
    low, high = difference.low, difference.high
    if expected == "below":
        low, high = -high, -low
    line = -margin if expected == "not below" else 0.0
    return HELD if low > line else FELL if high <= line else OPEN


def summarise(
    found: Mapping[str, Mapping[str, Sampled]], relations: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that `show` prints.

    Args:
        found: by system and score.
        relations: fields of `recipes.RelationConfig`. One whose systems are not judged yet has no difference.
        facts: what was compared.
    """
    judged = []
    for relation in relations:
        of = found.get(relation["of"], {}).get(relation["score"])
        against = found.get(relation["against"], {}).get(_against(relation))
        difference = None if of is None or against is None else of.minus(against).interval()
        told = verdict(difference, relation["expected"], relation["margin"]) if difference else "not measured"
        judged.append({**relation, "difference": difference, "verdict": told})
    scores = {system: {key: value.interval() for key, value in each.items()} for system, each in found.items()}
    return {"facts": dict(facts), "scores": scores, "relations": judged}


def show(result: Mapping[str, Any]) -> str:
    """Facts and two tables, in points of 100."""
    scores = result["scores"]
    keys = list(dict.fromkeys(key for each in scores.values() for key in each))
    rows = [[name, *(each[key].show() if key in each else "-" for key in keys)] for name, each in scores.items()]
    relations = [
        [
            relation["claim"],
            relation["source"],
            f"{relation['of']} - {relation['against']}",
            _scores(relation),
            _expected(relation),
            relation["difference"].show("+.1f") if relation["difference"] else "-",
            relation["verdict"],
        ]
        for relation in result["relations"]
    ]
    told = "points of 100, with 95% bootstrap intervals; differences are paired"
    parts = [header(result["facts"]), told, table(["system", *keys], rows)]
    if relations:
        columns = ["claim", "source", "difference of", "score", "expected", "found", "verdict"]
        parts.append(table(columns, relations))
    return "\n\n".join(parts)


def _against(relation: Mapping[str, Any]) -> str:
    """The score of the other system."""
    return str(relation.get("against_score") or relation["score"])


def _scores(relation: Mapping[str, Any]) -> str:
    return " - ".join(dict.fromkeys([relation["score"], _against(relation)]))


def _expected(relation: Mapping[str, Any]) -> str:
    return f"> -{100 * relation['margin']:g}" if relation["expected"] == "not below" else f"{relation['expected']} 0"
