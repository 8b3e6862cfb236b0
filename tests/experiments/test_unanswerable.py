"""Unanswerable questions: whose passage is taken out or cut, how regressions are fitted and chosen, what is printed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from places import PLACES as TOWNS
from places import QUESTION_ROWS
from repository import TINY
from typer.testing import CliRunner

from experiments.answerability_fit import (
    NO_PROBE,
    Choice,
    Data,
    areas,
    best_of,
    fit,
    judged,
    probabilities,
    strictest,
    threshold,
    told_at,
)
from experiments.answerability_report import above, by_file, judge, losses
from experiments.answerability_rows import (
    ANSWERABLE,
    CUT_OUT,
    DEMO,
    END,
    GREATEST,
    LEAST,
    MARKED,
    PLACES,
    SUM,
    TAKEN_OUT,
    TRAIN,
    VALIDATION,
    WORD,
    WORDS,
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

TEXT = "{place} has one. Its tower is from {year}. Gulls of {place} nest there. Dogs may stay."


def places() -> list[Question]:
    found = []
    for number, place in enumerate(TOWNS):
        document = Document(TEXT.format(place=place, year=1800 + number), str(number))
        found.append(Question(str(number), f"How old is the tower of {place}?", (str(1800 + number),), document))
    return found


# --- cases ------------------------------------------------------------------------------------------------------------


def test_the_passage_and_what_shares_words_with_it_are_taken_out(tiny_model: GritModel, tmp_path: Path) -> None:
    shared = "on a hill above the old town there are"
    texts = [f"{place} has {number} owls." for number, place in enumerate(TOWNS)]
    texts += [f"In {place}, {shared} many owls." for place in TOWNS[:2]]
    documents = [Document(text, str(n)) for n, text in enumerate(texts)]
    own = documents[len(TOWNS)]
    questions = [
        Question("a", f"How many owls are in {TOWNS[0]}?", ("many",), own),
        Question("b", f"Who owns the owls of {TOWNS[0]}?", (), own, is_unanswerable=True),
    ]
    library = Library(questions, documents)
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add(library.documents)
        found = list(library.cases(index, questions))
    assert [case.kind for case in found] == [ANSWERABLE, TAKEN_OUT, MARKED]
    ids = [{hit.document.id for hit in case.hits} for case in found]
    assert not ids[1] & {own.id, str(len(TOWNS) + 1)}, "both have eight words in a row"
    assert found[0].is_found == (own.id in ids[0] or str(len(TOWNS) + 1) in ids[0])
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
        for place in TOWNS
        for n in range(5)
    ]
    rows += [{"question": "who?", "passage": "Tarn is old.", "answers": [], "unanswerable": True}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen, others = chosen_of(tmp_path / "x.jsonl", 3, 2)
    assert [question.is_unanswerable for question in chosen] == [False] * 9 + [True]
    assert len({question.document.id for question in chosen}) == 4
    assert not {question.document.id for question in chosen} & {document.id for document in others}
    assert len(others) == 2
    assert len({question.id for question in chosen}) == 10


def test_later_parts_are_neighbours_that_the_first_part_does_not_have(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "passage": f"{n} is old.", "answers": [f"{n}"]} for n in range(100)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = (chosen_of(tmp_path / "x.jsonl", 10, 5, part) for part in range(3))
    numbers = [[int(question.text[:-1]) for question in chosen] for chosen, _ in (first, second, third)]
    others = [int(document.text.split()[0]) for document in second[1]]
    assert max(numbers[0]) - min(numbers[0]) > 50, "from all over the file"
    whole = sorted(numbers[1] + others)
    assert set(range(whole[0], whole[-1])) - {*whole} <= {*numbers[0]}
    assert len(whole) == 15
    assert not {*numbers[0]} & {*numbers[1]}
    assert numbers[1] != numbers[2]


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
    kept.add("x", 0, list(seen_of(model, "x", library, questions, kept.layers, with_answer=True)))
    again = Kept(tmp_path / "rows", (1, 2))
    assert again.rows == kept.rows
    found_N = probabilities(own, Data(again.rows, again.arrays(), (1, 2)))
    with Index.create(tmp_path / "index", model=model) as index:
        index.add(library.documents)
        cases = list(library.cases(index, questions))
        told = [RAG(index).ask(each.question.text, hits=each.hits, max_new_tokens=1).unanswerable for each in cases]
    assert found_N == pytest.approx([p for p in told if p is not None], abs=2e-3)


def test_hidden_states_and_attention_are_those_of_the_whole_text(
    make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    """One document that stands first: its state is exact, but for 16 bits a number."""
    model, questions = make_model(), places()[:1]
    library = Library(questions)
    seen = next(seen_of(model, "x", library, questions, (1, 2), with_answer=False))
    assert seen.row["kind"] == ANSWERABLE
    document, question = (
        model.document_token_ids(questions[0].document),
        model.prompts.question_ids(questions[0].text, has_documents=True),
    )
    lm = copy.deepcopy(model.lm)
    lm.set_attn_implementation("eager")
    with torch.no_grad():
        told = lm(torch.tensor([[*document, *question]]), output_hidden_states=True, output_attentions=True)
    words = model.prompts.encoder.content_ids(questions[0].text)
    first = next(n for n in range(len(question)) if question[n : n + len(words)] == words) + len(document)
    for number, layer in enumerate((1, 2)):
        hidden_TD = told.hidden_states[layer][0].numpy()
        own_TD = hidden_TD[first : first + len(words)]
        for place, expected_D in ((END, hidden_TD[-1]), (WORD, own_TD[-1]), (WORDS, own_TD.mean(0))):
            np.testing.assert_allclose(seen.arrays[place][number], expected_D, atol=0.03)
    text = model.prompts.encoder.content_ids(questions[0].document.text)
    begin = next(n for n in range(len(document)) if document[n : n + len(text)] == text)
    attention_LHC = torch.stack(told.attentions)[:, 0, :, -1, begin : len(document)].numpy()
    for name, expected_LH in ((GREATEST, attention_LHC.max(-1)), (SUM, attention_LHC.sum(-1))):
        np.testing.assert_allclose(np.exp(seen.arrays[name]) - LEAST, expected_LH.ravel(), atol=3e-3)


def test_hidden_states_of_other_layers_are_refused(tiny_model: GritModel, tmp_path: Path) -> None:
    questions = places()[:1]
    kept = Kept(tmp_path / "rows", (1, 2))
    seen = list(seen_of(tiny_model, "x", Library(questions), questions, kept.layers, with_answer=False))
    kept.add("x", 0, seen)
    kept.add("x", 1, seen)
    whole, one = kept.arrays(), Kept(tmp_path / "rows", (2,)).arrays()
    for place in PLACES:
        assert (one[place][:, 0] == whole[place][:, 1]).all()
        assert len(one[place]) == 2 * len(seen)
    with pytest.raises(ValueError, match="holds layers 1, 2, not"):
        Kept(tmp_path / "rows", (4,)).arrays()


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


def test_of_more_features_than_questions_the_fit_has_no_slope() -> None:
    draw = np.random.default_rng(0)
    values_NF, unanswerable_N = draw.normal(size=(12, 30)) * draw.random(30) + 2, np.arange(12) % 3 == 0
    ridge_F = draw.random(30) * 9 + 1
    found = fit(values_NF, unanswerable_N, ridge_F)
    excess_N = (found.probabilities(values_NF) - unanswerable_N) * np.where(unanswerable_N, 1.5, 0.75)
    spread_F = values_NF.std(0)
    slope_F = ((values_NF - values_NF.mean(0)) / spread_F).T @ excess_N + ridge_F * found.weights * spread_F
    np.testing.assert_allclose([*slope_F, excess_N.sum()], 0, atol=1e-6)


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
    own = np.array(hidden, np.float32)
    arrays = {END: own, WORD: 0 * own, WORDS: 0 * own, GREATEST: 2 * own[:, 1], SUM: 0 * own[:, 0]}
    return Data(rows, arrays, (5, 7))


def test_each_file_is_judged_by_a_fit_to_the_others() -> None:
    known, choice = data(), Choice((7,), 10.0)
    left_out_N = choice.left_out(known)
    others = known.of_file("0.train", "1.train", "3.train")
    own = known.of_file("2.train")
    expected_N = choice.fit(others).probabilities(own.features(choice))
    assert left_out_N[80:120] == pytest.approx(expected_N)


def test_the_best_choice_is_the_layer_that_tells() -> None:
    found = judged(data())
    assert found[0].choice == NO_PROBE
    best = best_of(found)
    assert best.choice.layers == (7,)
    assert best.mean > found[0].mean + 0.1
    assert {each.choice.layers for each in found if each.choice.is_of_product} == {(), (5,), (7,)}


def test_what_the_product_does_not_see_is_judged_but_not_chosen() -> None:
    known = data(spread=0.3)
    known.arrays[END][:] = 0
    found = judged(known)
    assert max(found, key=lambda each: each.mean).choice.attention
    assert best_of(found).choice.is_of_product
    assert {each.choice.places for each in found} == {(), (END,), (WORD,), (WORDS,), (END, WORD)}
    own = Choice((5, 7), 1.0, (END, WORD), (GREATEST,))
    assert own.name == "end + word: 5 + 7, attention: greatest"
    assert known.features(own).shape[1] == 2 + 2 * 2 * 8 + 8


def test_what_is_written_tells_what_was_fitted() -> None:
    known = data()
    choice = Choice((7,), 10.0)
    fitted = choice.fitted(known, "a")
    assert (fitted.layers, len(fitted.hidden), fitted.adapter, fitted.above) == ((7,), 8, "a", 1.0)
    expected_N = choice.fit(known).probabilities(known.features(choice))
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
    known = Data(rows, {}, (1,))
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
    known = Data([{"file": "x", "kind": kind, "found": True} for kind in kinds], {}, (1,))
    told = above({"all": np.array([0.1, 0.9, 0.2, 0.3, 0.9, 0.89, 1.0])}, 0.9, known).splitlines()
    assert [cell.strip() for cell in told[-1].split("|")[3:-1]] == ["25.0", "-", "50.0", "100.0"]


def test_losses_are_of_each_file_and_the_strictest_threshold_is_that_of_the_worst() -> None:
    scores = {"a": np.arange(100) / 200, "b": np.arange(100) / 100}
    rows = [{"file": file, "kind": ANSWERABLE, "found": True} for file, own_N in scores.items() for _ in own_N]
    rows += [{"file": "a", "kind": TAKEN_OUT, "found": False}] * 2 + [{"file": "c", "kind": TAKEN_OUT, "found": False}]
    known, all_N = Data(rows, {}, (1,)), np.array([*scores["a"], *scores["b"], 0.48, 0.96, 0.99])
    most = strictest(all_N, known)
    assert most == pytest.approx(0.95)
    told = losses(all_N, (0.445, most), known).splitlines()[-4:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told]
    assert cells[0] == ["a", "100", "10.0", "0.0", "2", "100.0", "50.0"]
    assert cells[1] == ["b", "100", "55.0", "4.0", "0", "-", "-"]
    assert cells[2] == ["c", "0", "-", "-", "1", "100.0", "100.0"]
    assert cells[3] == ["all", "200", "32.5", "2.0", "3", "100.0", "66.7"]


def test_files_without_answers_have_no_f1() -> None:
    rows = [{"file": file, "kind": ANSWERABLE, "found": True, "told": 0.0} for file in ("a", "a", "b", "b")]
    rows[0]["F1"], rows[1]["F1"] = 0.5, 0.9
    lines = by_file(np.array([0.1, 0.9, 0.1, 0.9]), 0.5, Data(rows, {}, (1,)), 0).splitlines()
    found = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[-3:-1]] for line in lines[2:]}
    assert found["a"] == found["all"] == ["70.0", "25.0"]
    assert found["b"] == ["-", "-"]


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
    arguments += ["--passages", "7", "--others", "2", "--parts", "2", "--out", str(tmp_path / "fit"), "--layer", "1"]
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
