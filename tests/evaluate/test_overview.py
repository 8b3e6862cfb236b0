"""Tables over several files: what is pooled, and against what answers from states are set."""

from typing import Any

import pytest

from gritrag.evaluate import statistics
from gritrag.evaluate.overview import POOLED, sections
from gritrag.evaluate.quality import BEST, ONE, SEVERAL, UNANSWERABLE
from gritrag.evaluate.scores import RANKED

FACTS = {"settings": {"seed": 0}}


def answers(file: str, way: str, f1: list[float], kinds: list[str], **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("EM", "F1", "match"), f1) | {"not_found": [0.0] * len(f1)}
    figures |= {"ids": [f"{n}" for n in range(len(f1))], "kinds": kinds, "first_token": [0.1] * len(f1), **more}
    return {"kind": "questions", "cell": {"file": file, "model": "m", "part": "answers", "way": f"{way}, x"}, **figures}


def ranking(file: str, way: str, ndcg: list[float]) -> dict[str, Any]:
    figures = dict.fromkeys(("recall@1", "recall@5", "recall@20", "nDCG@10", "MRR@10"), ndcg)
    return {"kind": "questions", "cell": {"file": file, "model": "m", "part": "retrieval", "way": way}, **figures}


def rankings(file: str, dense: list[float], sparse: list[float], hybrid: list[float]) -> list[dict[str, Any]]:
    ways = {"dense": dense, "sparse": sparse, "hybrid": hybrid}
    return [ranking(file, way, ndcg) for way, ndcg in ways.items()]


def file_rows(
    file: str, text: list[float], states: list[float], best: list[float], kinds: list[str]
) -> list[dict[str, Any]]:
    ways = {"doc-query": text, "doc-cache": states, BEST: best}
    return [answers(file, way, f1, kinds) for way, f1 in ways.items()]


def table(rows: list[dict[str, Any]], title: str) -> list[dict[str, str]]:
    """Its lines, by the names of their columns."""
    (found,) = [each.tables[0] for each in sections(FACTS, rows) if each.title == title]
    return [dict(zip(found.columns, line, strict=True)) for line in found.rows]


TWO = [
    *file_rows("a", text=[1.0, 1.0], states=[1.0, 0.0], best=[0.0, 0.0], kinds=[ONE, SEVERAL]),
    *file_rows("b", text=[0.0] * 3, states=[1.0, 0.5, 0.0], best=[1.0, 1.0, 0.0], kinds=[ONE] * 3),
]


def test_each_file_and_all_questions_together_with_kinds_apart() -> None:
    lines = {(line["kind"], line["file"]): line for line in table(TWO, "Answers of all files")}
    assert list(lines) == [(ONE, "a"), (ONE, "b"), (ONE, POOLED), (SEVERAL, "a")], "one file alone is not pooled"
    assert [line["questions"] for line in lines.values()] == ["1", "3", "4", "1"]
    pooled = lines[ONE, POOLED]
    assert pooled["F1 from states"].startswith("62.5 "), "questions are pooled: the mean of the files is 75"
    assert pooled["F1 from text"].startswith("25.0 ")
    assert pooled["F1 from best document"].startswith("50.0 ")
    share = "states, % of the better of text"
    expected = statistics.ratio([1.0, 1.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.0], 0)
    assert expected is not None
    assert pooled[share] == expected.show(), "paired, against the better way over all that is pooled"
    assert lines[ONE, "a"][share].startswith("100.0 ")
    assert lines[SEVERAL, "a"][share].startswith("0.0 ")


def test_files_that_lose_for_certain_are_named() -> None:
    lost = file_rows("c", text=[1.0] * 4, states=[0.5] * 4, best=[0.0] * 4, kinds=[ONE] * 4)
    lines = table([*TWO, *lost], "Where it loses")
    assert [line["case"].split(":")[0] for line in lines] == [
        f"m, a, {SEVERAL}, x",
        f"m, c, {ONE}, x",
        f"m, {POOLED}, {SEVERAL}, x",
    ]


def test_first_tokens_are_medians_of_all_questions() -> None:
    rows = [
        answers("a", "doc-query", [1.0], [ONE], first_token=[0.4]),
        answers("a", "doc-cache", [1.0], [ONE], first_token=[0.1]),
        answers("a", BEST, [1.0], [ONE], first_token=[9.0]),
    ]
    (line,) = table(rows, "Answers of all files")
    assert line["first token from text, ms"].startswith("400 ")
    assert line["from states, ms"].startswith("100 ")


def test_rankings_of_all_files_and_ways_that_only_some_have() -> None:
    rows = [*rankings("a", [1.0], [0.0], [1.0]), *rankings("b", [0.0, 0.5], [1.0] * 2, [1.0] * 2)]
    rows.append(ranking("b", RANKED, [1.0, 1.0]))
    a, b, pooled = table(rows, "Retrieval of all files")
    assert [a["dense"][:5], b["dense"].split()[0], pooled["dense"].split()[0]] == ["100.0", "25.0", "50.0"]
    assert [a["BM25"].split()[0], a[RANKED], b[RANKED].split()[0]] == ["0.0", "-", "100.0"]
    assert [a["questions"], b["questions"], pooled["questions"]] == ["1", "2", "3"]


def test_not_in_the_documents_rightly_and_wrongly() -> None:
    kinds = [ONE, ONE, UNANSWERABLE]
    rows = [
        answers("a", "doc-query", [1.0] * 3, kinds, not_found=[0.0, 0.0, 1.0]),
        answers("a", "doc-cache", [1.0] * 3, kinds, not_found=[1.0, 0.0, 0.0]),
        answers("a", BEST, [1.0] * 3, kinds),
        *file_rows("b", [1.0], [1.0], [1.0], [ONE]),
    ]
    a, b, pooled = table(rows, "Not in the documents, all files")
    assert "(1 of 1)" in a["rightly, from text"]
    assert "(0 of 1)" in a["rightly, from states"]
    assert "(0 of 2)" in a["wrongly, from text"]
    assert "(1 of 2)" in a["wrongly, from states"]
    assert b["rightly, from text"] == "-", "no row of it says that it has no answer"
    assert "(1 of 3)" in pooled["wrongly, from states"]


def test_models_are_pooled_apart() -> None:
    others = [{**row, "cell": {**row["cell"], "model": "n"}, "F1": [0.25] * len(row["F1"])} for row in TWO]
    lines = table([*TWO, *others], "Answers of all files")
    pooled = {line["model"]: line["F1 from states"].split()[0] for line in lines if line["file"] == POOLED}
    assert pooled == {"m": "62.5", "n": "25.0"}


@pytest.mark.parametrize("rows", [[], rankings("a", [1.0], [1.0], [1.0])])
def test_a_run_that_was_stopped_early_has_a_report(rows: list[dict[str, Any]]) -> None:
    assert sections(FACTS, rows)[-1].text.endswith("There is none.")
