"""Unanswerable questions: whose passage is taken out or cut, how regressions are fitted and chosen, what is printed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import PLACES, QUESTION_ROWS
from typer.testing import CliRunner

from experiments.answerability_fit import (
    NO_PROBE,
    Choice,
    Data,
    areas,
    fit,
    judged,
    probabilities,
    threshold,
    told_at,
)
from experiments.answerability_report import above, judge
from experiments.answerability_rows import (
    ANSWERABLE,
    CUT_OUT,
    DEMO,
    MARKED,
    TAKEN_OUT,
    TRAIN,
    VALIDATION,
    Kept,
    Library,
    chosen_of,
    runs_of,
    seen_of,
    without_answer,
)
from experiments.script import application
from experiments.unanswerable import main
from gritrag import RAG, Document, GritModel, Index
from gritrag.evaluate.question_rows import Question
from gritrag.model.answerability import Answerability

TINY = str(Path(__file__).parents[2] / "configs" / "tiny" / "model")
TEXT = "{place} has one. Its tower is from {year}. Gulls of {place} nest there. Dogs may stay."


def places() -> list[Question]:
    found = []
    for number, place in enumerate(PLACES):
        document = Document(TEXT.format(place=place, year=1800 + number), str(number))
        found.append(Question(str(number), f"How old is the tower of {place}?", (str(1800 + number),), document))
    return found


# --- cases ------------------------------------------------------------------------------------------------------------


def test_the_passage_and_what_shares_words_with_it_are_taken_out(tiny_model: GritModel, tmp_path: Path) -> None:
    shared = "on a hill above the old town there are"
    texts = [f"{place} has {number} owls." for number, place in enumerate(PLACES)]
    texts += [f"In {place}, {shared} many owls." for place in PLACES[:2]]
    documents = [Document(text, str(n)) for n, text in enumerate(texts)]
    own = documents[len(PLACES)]
    questions = [
        Question("a", f"How many owls are in {PLACES[0]}?", ("many",), own),
        Question("b", f"Who owns the owls of {PLACES[0]}?", (), own, is_unanswerable=True),
    ]
    library = Library(questions, documents)
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add(library.documents)
        found = list(library.cases(index, questions))
    assert [case.kind for case in found] == [ANSWERABLE, TAKEN_OUT, MARKED]
    ids = [{hit.document.id for hit in case.hits} for case in found]
    assert not ids[1] & {own.id, str(len(PLACES) + 1)}, "both have eight words in a row"
    assert found[0].is_found == (own.id in ids[0] or str(len(PLACES) + 1) in ids[0])
    assert len(found[1].hits) == 5


def test_a_cut_passage_stands_for_the_whole_one(tiny_model: GritModel, tmp_path: Path) -> None:
    questions = places()
    for question in questions:
        cut = without_answer(question)
        assert cut is not None
        assert cut.text == question.document.text.replace(f"Its tower is from {question.answers[0]}. ", "")
    library = Library(questions)
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add(library.documents)
        found = list(library.cases(index, questions[:1]))
    assert [case.kind for case in found] == [ANSWERABLE, TAKEN_OUT, CUT_OUT]
    whole, without, cut_out = ({hit.document.id for hit in case.hits} for case in found)
    assert whole <= {question.id for question in questions}, "cut ones are for cut questions"
    assert without == {question.id for question in questions[1:]}
    assert "0" not in cut_out
    assert cut_out - without == {"cut/0"}
    assert found[2].is_found


def test_an_answer_that_is_told_elsewhere_cannot_be_cut_out() -> None:
    own = Document("Osk is old. It was built in 1871. Some call it 1,871 years. Gulls nest.", "a")
    assert without_answer(Question("a", "When?", ("1871",), own)) is not None
    assert without_answer(Question("a", "When?", ("1871", "1,871 years"), own)) is None
    assert without_answer(Question("a", "When?", (), own, is_unanswerable=True)) is None


def test_questions_are_on_few_passages(tmp_path: Path) -> None:
    rows = [
        {"question": f"{place} {n}?", "passage": f"{place} is old.", "answers": [f"{n}"]}
        for place in PLACES
        for n in range(5)
    ]
    rows += [{"question": "who?", "passage": "Tarn is old.", "answers": [], "unanswerable": True}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen, others = chosen_of(tmp_path / "x.jsonl", 3, 2)
    assert [question.is_unanswerable for question in chosen] == [False] * 6 + [True]
    assert len({question.document.id for question in chosen}) == 4
    assert not {question.document.id for question in chosen} & {document.id for document in others}
    assert len(others) == 2
    assert len({question.id for question in chosen}) == 7


def test_runs_of_words() -> None:
    assert len(runs_of("a b c d e f g h i")) == 2
    assert runs_of("A b") == {("a", "b")}


def test_what_is_kept_is_what_the_product_judges_by(
    make_model: Callable[..., GritModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities from rows and kept hidden states, and `Answer.unanswerable`."""
    model, questions = make_model(), places()[:2]
    own = Answerability(0.9, -1.3, 0.4, 1.0, "none", (1, 2), tuple(np.linspace(-0.02, 0.02, 64).tolist()))
    monkeypatch.setattr(model, "answerability", own)
    library = Library(questions)
    kept = Kept(tmp_path / "rows", (1, 2))
    kept.add("x", list(seen_of(model, "x", library, questions, kept.layers, with_answer=True)))
    again = Kept(tmp_path / "rows", (1, 2))
    assert again.rows == kept.rows
    found_N = probabilities(own, Data(again.rows, again.hidden(), (1, 2)))
    with Index.create(tmp_path / "index", model=model) as index:
        index.add(library.documents)
        cases = list(library.cases(index, questions))
        told = [RAG(index).ask(each.question.text, hits=each.hits, max_new_tokens=1).unanswerable for each in cases]
    is_asked = [bool(case.hits) for case in cases]
    assert found_N[is_asked] == pytest.approx([p for p in told if p is not None], abs=2e-3)


def test_hidden_states_of_other_layers_are_refused(tiny_model: GritModel, tmp_path: Path) -> None:
    questions = places()[:1]
    kept = Kept(tmp_path / "rows", (1, 2))
    kept.add("x", list(seen_of(tiny_model, "x", Library(questions), questions, kept.layers, with_answer=False)))
    assert (Kept(tmp_path / "rows", (2,)).hidden()[:, 0] == kept.hidden()[:, 1]).all()
    with pytest.raises(ValueError, match="holds layers 1, 2, not"):
        Kept(tmp_path / "rows", (4,)).hidden()


# --- fits -------------------------------------------------------------------------------------------------------------


def test_the_regression_finds_the_weights_that_made_its_labels_whatever_the_shares() -> None:
    draw = np.random.default_rng(0)
    values_NF = draw.normal(size=(20000, 2)) * [1, 5] + [0, 3]
    p_N = 1 / (1 + np.exp(-(values_NF @ [1.5, -0.2] + 0.6)))
    unanswerable_N = draw.random(len(p_N)) < p_N
    found = fit(values_NF, unanswerable_N, np.ones(2))
    np.testing.assert_allclose(found.weights, [1.5, -0.2], atol=0.1)
    rare_N = unanswerable_N & (draw.random(len(p_N)) < 0.2)
    kept_N = rare_N | ~unanswerable_N
    np.testing.assert_allclose(fit(values_NF[kept_N], rare_N[kept_N], np.ones(2)).weights, found.weights, atol=0.15)
    held = fit(values_NF, unanswerable_N, np.array([1.0, 1e7]))
    assert abs(held.weights[1]) < 0.01 < abs(held.weights[0])


def data(files: int = 4, each: int = 40, spread: float = 1.0) -> Data:
    """Rows whose second layer tells more than their signals, and whose first tells nothing."""
    draw = np.random.default_rng(0)
    rows, hidden = [], []
    for file in range(files):
        for number in range(each):
            kind = (ANSWERABLE, TAKEN_OUT)[number % 2]
            centre = 1.0 if kind == TAKEN_OUT else -1.0
            row = {"file": f"{file}.train", "kind": kind, "found": kind == ANSWERABLE}
            rows.append(row | {"log_odds": draw.normal(0.3 * centre), "similarity": draw.normal(0.2)})
            hidden.append([draw.normal(size=8), draw.normal(size=8) + spread * centre])
    return Data(rows, np.array(hidden, np.float32), (5, 7))


def test_each_file_is_judged_by_a_fit_to_the_others() -> None:
    known, choice = data(), Choice((7,), 10.0)
    left_out_N = choice.left_out(known)
    others = known.of_file("0.train", "1.train", "3.train")
    own = known.of_file("2.train")
    expected_N = choice.fit(others).probabilities(own.features((7,)))
    assert left_out_N[80:120] == pytest.approx(expected_N)


def test_the_best_choice_is_the_layer_that_tells() -> None:
    found = judged(data())
    assert found[0].choice == NO_PROBE
    best = max(found, key=lambda each: each.mean)
    assert best.choice.layers == (7,)
    assert best.mean > found[0].mean + 0.1
    assert {each.choice.layers for each in found} == {(), (5,), (7,)}


def test_what_is_written_tells_what_was_fitted() -> None:
    known = data()
    choice = Choice((7,), 10.0)
    fitted = choice.fitted(known, "a")
    assert (fitted.layers, len(fitted.hidden), fitted.adapter, fitted.above) == ((7,), 8, "a", 1.0)
    expected_N = choice.fit(known).probabilities(known.features((7,)))
    assert probabilities(fitted, known) == pytest.approx(expected_N, abs=1e-3)


def test_answerable_questions_count_where_their_passage_was_found() -> None:
    rows = [
        {"file": "x", "kind": kind, "found": found, "p": p}
        for kind, found, p in [
            (ANSWERABLE, True, 0.1),
            (ANSWERABLE, True, 0.3),
            (ANSWERABLE, False, 0.9),
            (TAKEN_OUT, False, 0.2),
            (CUT_OUT, True, 0.4),
            (CUT_OUT, False, 0.0),
        ]
    ]
    known = Data(rows, np.zeros((6, 1, 1)), (1,))
    assert areas(known.values("p"), known) == {TAKEN_OUT: 0.5, CUT_OUT: 1.0}
    assert threshold(known.values("p"), known) == pytest.approx(0.3)
    assert len(known.of_kind(ANSWERABLE, CUT_OUT).rows) == 3


def test_a_score_is_judged_at_five_in_a_hundred_lost() -> None:
    answerable_N = np.arange(100.0)
    assert told_at(np.array([93.0, 95.5, 200.0, 300.0]), answerable_N) == pytest.approx(0.75)
    found = judge(np.array([200.0, 300.0]), answerable_N, 0)
    assert (found.auc.mean, found.told.mean) == (1, 1)


def test_shares_above_a_probability_are_of_each_kind() -> None:
    kinds = [ANSWERABLE] * 4 + [TAKEN_OUT] * 2 + [CUT_OUT]
    known = Data([{"file": "x", "kind": kind, "found": True} for kind in kinds], np.zeros((7, 1, 1)), (1,))
    told = above({"all": np.array([0.1, 0.9, 0.2, 0.3, 0.9, 0.89, 1.0])}, 0.9, known).splitlines()
    assert [cell.strip() for cell in told[-1].split("|")[3:-1]] == ["25.0", "-", "50.0", "100.0"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_it_goes_on_from_kept_rows_and_writes_what_a_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.answerability_rows.TRAIN", TRAIN[:2])
    monkeypatch.setattr("experiments.answerability_rows.VALIDATION", VALIDATION[:2])
    monkeypatch.setattr("experiments.answerability_rows.invented_questions", lambda: places()[:2])
    for name in (*(f"{name}.train" for name in TRAIN[:2]), *(f"{name}.validation" for name in VALIDATION[:2])):
        unanswerable = {"question": "who?", "passage": "Osk has an owl.", "answers": [], "unanswerable": True}
        tower = {"question": "Tarn?", "passage": TEXT.format(place="Tarn", year=1871), "answers": ["1871"]}
        rows = [*QUESTION_ROWS, tower]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, unanswerable])))
    arguments = [str(tmp_path), "--rows", str(tmp_path / "rows"), "--model", TINY, "--dtype", "float32"]
    arguments += ["--passages", "7", "--others", "2", "--out", str(tmp_path / "fit"), "--layer", "1"]
    told = CliRunner().invoke(application(main), arguments)
    assert told.exit_code == 0, told.output
    kept = (tmp_path / "rows").read_text()
    counts = {name: kept.count(f'"file": "{name}"') for name in ("nq.train", DEMO)}
    assert counts == {"nq.train": 0, DEMO: 6}
    assert len(kept.splitlines()) == 4 * (7 + 7 + 1 + 1) + 6
    lines = told.stdout.splitlines()
    names = ("log-odds", "similarity", "log-odds and similarity", "with hidden states", *VALIDATION[:2], "all", DEMO)
    for name in names:
        assert any(line.startswith(f"| {name} ") for line in lines), name
    again = CliRunner().invoke(application(main), [*arguments, "--beside", str(tmp_path / "fit")])
    assert set(lines) <= set(again.stdout.splitlines())
    assert sum(line.startswith("| fit ") for line in again.stdout.splitlines()) == 2
    assert (tmp_path / "rows").read_text() == kept
    assert Answerability.load(tmp_path / "fit").adapter == "none"
