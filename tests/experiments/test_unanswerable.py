"""Signals of unanswerable questions: whose passage is taken out, how the regression is fitted, and what is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from places import PLACES, QUESTION_ROWS
from typer.testing import CliRunner

from experiments.answerability_report import (
    ANSWERABLE,
    BEFORE,
    FEATURES,
    MARKED,
    OF_THE_ANSWER,
    TAKEN_OUT,
    fit,
    judge,
    threshold,
    told_at,
)
from experiments.script import application
from experiments.unanswerable import NAMES, NUMBER, cases, main, runs_of
from gritrag import Document, GritModel, Index
from gritrag.evaluate.question_rows import Question
from gritrag.model.answerability import Answerability

TINY = str(Path(__file__).parents[2] / "configs" / "tiny" / "model")


def test_the_passage_and_what_shares_words_with_it_are_taken_out(tiny_model: GritModel, tmp_path: Path) -> None:
    shared = "on a hill above the old town there are"
    texts = [f"{place} has {number} owls." for number, place in enumerate(PLACES)]
    texts += [f"In {place}, {shared} many owls." for place in PLACES[:2]]
    documents = {str(n): Document(text, str(n), metadata={NUMBER: n}) for n, text in enumerate(texts)}
    own = documents[str(len(PLACES))]
    questions = [
        Question("a", f"How many owls are in {PLACES[0]}?", ("many",), own),
        Question("b", f"Who owns the owls of {PLACES[0]}?", (), own, is_unanswerable=True),
    ]
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add(documents.values())
        found = list(cases(index, questions, documents))
    assert [case.kind for case in found] == [ANSWERABLE, TAKEN_OUT, MARKED]
    ids = [{hit.document.id for hit in case.hits} for case in found]
    assert not ids[1] & {own.id, str(len(PLACES) + 1)}, "both have eight words in a row"
    assert found[0].is_found == (own.id in ids[0] or str(len(PLACES) + 1) in ids[0])
    assert len(found[1].hits) == 5


def test_runs_of_words() -> None:
    assert len(runs_of("a b c d e f g h i")) == 2
    assert runs_of("A b") == {("a", "b")}


def test_the_regression_finds_the_weights_that_made_its_labels_whatever_the_shares() -> None:
    draw = np.random.default_rng(0)
    values_NF = draw.normal(size=(20000, 2)) * [1, 5] + [0, 3]
    p_N = 1 / (1 + np.exp(-(values_NF @ [1.5, -0.2] + 0.6)))
    unanswerable_N = draw.random(len(p_N)) < p_N
    found = fit(values_NF, unanswerable_N)
    np.testing.assert_allclose(found.weights, [1.5, -0.2], atol=0.1)
    rare_N = unanswerable_N & (draw.random(len(p_N)) < 0.2)
    kept_N = rare_N | ~unanswerable_N
    np.testing.assert_allclose(fit(values_NF[kept_N], rare_N[kept_N]).weights, found.weights, atol=0.15)


def test_a_signal_is_judged_at_five_in_a_hundred_lost() -> None:
    answerable_N = np.arange(100.0)
    assert told_at(np.array([93.0, 95.5, 200.0, 300.0]), answerable_N) == pytest.approx(0.75)
    judged = judge(np.array([200.0, 300.0]), answerable_N, 0)
    assert (judged.auc.mean, judged.told.mean) == (1, 1)


def test_the_threshold_loses_at_most_five_in_a_hundred() -> None:
    draw = np.random.default_rng(0)

    def row(kind: str, centre: float) -> dict[str, object]:
        return {"kind": kind, "found": True, **{n: draw.normal(centre) for n in (*FEATURES, *BEFORE)}}

    rows = [row(kind, centre) for kind, centre in ((ANSWERABLE, -1.0), (TAKEN_OUT, 1.0)) for _ in range(200)]
    above = threshold(rows)
    assert 0 < above < 1


def test_it_goes_on_from_kept_rows_and_writes_what_a_checkpoint_loads(tmp_path: Path) -> None:
    for name in NAMES:
        for split in ("train", "validation"):
            unanswerable = {"question": "who?", "passage": "Osk has an owl.", "answers": [], "unanswerable": True}
            rows = [*QUESTION_ROWS, unanswerable]
            (tmp_path / f"{name}.{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [str(tmp_path), "--rows", str(tmp_path / "rows"), "--model", TINY, "--dtype", "float32"]
    arguments += ["--questions", "4", "--train", "4", "--documents", "7", "--out", str(tmp_path / "fit")]
    told = CliRunner().invoke(application(main), arguments)
    assert told.exit_code == 0, told.output
    kept = (tmp_path / "rows").read_text()
    assert len(kept.splitlines()) == len(NAMES) * 2 * 9
    lines = told.stdout.splitlines()
    for name in (*FEATURES, *BEFORE, *OF_THE_ANSWER, "regression, product", *NAMES):
        assert any(line.startswith(f"| {name} ") for line in lines), name
    again = CliRunner().invoke(application(main), arguments)
    assert again.stdout.splitlines() == lines
    assert (tmp_path / "rows").read_text() == kept
    assert Answerability.load(tmp_path / "fit").adapter == "none"
