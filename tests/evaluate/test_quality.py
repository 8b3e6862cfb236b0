"""`gritrag eval` end to end on a tiny random model: what must hold however badly a model answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from places import PLACES
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import evaluation
from gritrag.evaluate.evaluation import main
from gritrag.evaluate.kept import Kept
from gritrag.evaluate.quality import (
    BEST,
    ONE,
    ONE_OF_SEVERAL,
    SEVERAL,
    UNANSWERABLE,
    Asked,
    Setting,
    answered,
    best_of,
    evaluate,
    gold_contexts,
    kind_of,
)
from gritrag.evaluate.rows import QuestionSet, choose, read_questions
from gritrag.evaluate.scores import RANKED, RANKING, says_not_found, score_answer
from gritrag.evaluate.session import Outputs
from gritrag.evaluate.statistics import Interval
from gritrag.evaluate.suite import Result
from gritrag.evaluate.summary import Evaluated, evaluated, pairs, sections
from gritrag.index.index import Index
from gritrag.model import decoder
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.records import Document, as_hits

MODES = ["no-retrieval", "doc-query", "doc-cache"]
ANSWER_WAYS = ["no-retrieval"]
ANSWER_WAYS += [f"{way}, {context}" for context in ("gold", "retrieved") for way in (*MODES[1:], BEST)]
SMALL = {"questions": 2, "distractors": 2, "k": 2, "max_new_tokens": 4, "states": "float32"}


@pytest.fixture
def chosen(path: Path) -> QuestionSet:
    return choose(read_questions(path), 300)


@pytest.fixture(scope="module")
def model_folder(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.lm.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    return str(folder)


def copy_of(folder: str, tmp_path: Path) -> str:
    """The same model by another name."""
    (tmp_path / "twin").symlink_to(folder)
    return str(tmp_path / "twin")


def run(model: GritModel, chosen: QuestionSet, asked: list[Asked], folder: Path) -> Evaluated:
    return of_rows(evaluate(model, "tiny", chosen, asked, Setting(**SMALL), folder))


def of_rows(rows: list[tuple[dict[str, str], dict[str, Any]]]) -> Evaluated:
    (found,) = evaluated([{"kind": "questions", "cell": cell, **figures} for cell, figures in rows])
    return found


def test_a_gold_context_is_the_right_document_among_others_in_any_order(chosen: QuestionSet, path: Path) -> None:
    asked = gold_contexts(chosen, Setting(questions=6, distractors=3), path)
    assert asked == gold_contexts(chosen, Setting(questions=6, distractors=3), path)
    assert asked != gold_contexts(chosen, Setting(questions=6, distractors=3, seed=1), path)
    places = []
    for question, contexts in asked:
        ids = [hit.document.id for hit in contexts["gold"]]
        assert len(set(ids)) == 4
        places.append(ids.index(question.document.id))
    assert len(set(places)) > 1, "the right document must not stand where a model could learn to look"


def test_documents_that_a_row_names_are_the_first_distractors(tmp_path: Path) -> None:
    rows = [{"question": f"{p}?", "documents": [f"{p} is.", f"{p} is not."], "answers": ["is"]} for p in PLACES]
    path = tmp_path / "rag.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chosen = choose(read_questions(path), 300)
    for question, contexts in gold_contexts(chosen, Setting(distractors=2), path):
        ids = {hit.document.id for hit in contexts["gold"]}
        assert len(ids) == 3
        assert {question.document.id, question.others[0].id} <= ids


def test_words_find_what_they_share_and_every_way_is_scored(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path
) -> None:
    asked = gold_contexts(chosen, Setting(**SMALL), path)
    found = run(tiny_model, chosen, asked, tmp_path / "index")
    assert all(set(found.values(score, "sparse")) == {1.0} for score in RANKING)
    assert set(found.retrieval["dense"]["recall@20"]) == {1.0}, "twenty of six are all"
    assert list(found.answers) == ANSWER_WAYS
    assert all(len(found.values(score, way)) == 2 for way in ANSWER_WAYS for score in ("EM", "F1", "match"))


def test_hybrid_goes_from_words_to_vectors_with_their_weight(
    tiny_model: GritModel, chosen: QuestionSet, tmp_path: Path
) -> None:
    for weight, alone in ((0.0, "sparse"), (1.0, "dense")):
        setting = Setting(only="retrieval", dense_weight=weight)
        ranked = of_rows(evaluate(tiny_model, "tiny", chosen, [], setting, tmp_path / alone)).retrieval
        assert ranked["hybrid"]["MRR@10"] == ranked[alone]["MRR@10"]
    assert ranked["dense"]["MRR@10"] != ranked["sparse"]["MRR@10"], "or else the weight would change nothing"


def test_from_one_lossless_state_answers_do_not_differ_from_those_of_reading_again(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path
) -> None:
    setting = Setting(questions=6, distractors=0, k=1, max_new_tokens=16, states="float32", only="answers")
    asked = gold_contexts(chosen, setting, path)
    kept = Kept()
    found = of_rows(evaluate(tiny_model, "tiny", chosen, asked, setting, tmp_path / "index", kept))
    assert found.retrieval == {}
    rows = kept.in_order()
    for context in ("gold", "retrieved"):
        read, cached = ([row["given"][f"{mode}, {context}"]["text"] for row in rows] for mode in MODES[1:])
        assert any(read), "a model that says nothing would prove nothing"
        assert read == cached
        for score in ("EM", "F1", "match"):
            assert found.values(score, f"doc-query, {context}") == found.values(score, f"doc-cache, {context}")


def test_a_second_model_is_given_what_the_first_one_found(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path
) -> None:
    asked = gold_contexts(chosen, Setting(**SMALL), path)
    run(tiny_model, chosen, asked, tmp_path / "first")
    found = [each.contexts["retrieved"] for each in asked]
    for each, hits in zip(asked, found, strict=True):
        assert each.question.document in [hit.document for hit in hits]
        assert hits[0].score > hits[-1].score, "scores are kept with what was found"
    asked[0].contexts["retrieved"] = marked = as_hits(chosen.documents[-1:])
    run(tiny_model, chosen, asked, tmp_path / "second")
    assert asked[0].contexts["retrieved"] is marked


def test_each_question_is_searched_for_when_its_turn_comes(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches for all questions before the first answer took ten minutes in which no bar moved."""
    setting = Setting(**SMALL, only="answers", context="retrieved")
    asked, kept, order = gold_contexts(chosen, setting, path), Kept(), []
    search, keep = Index.search, kept.keep
    monkeypatch.setattr(Index, "search", lambda *given, **options: order.append("search") or search(*given, **options))
    monkeypatch.setattr(kept, "keep", lambda *given: order.append("answer") or keep(*given))
    evaluate(tiny_model, "tiny", chosen, asked, setting, tmp_path / "index", kept)
    assert order == ["search", "answer"] * SMALL["questions"]


def test_what_is_ranked_from_states_for_scores_is_not_ranked_again_for_answers(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[str] = []
    log_likelihoods = GritModel.question_token_log_likelihoods

    def counted(self: GritModel, question: str, *rest: Any) -> Any:
        times.append(question)
        return log_likelihoods(self, question, *rest)

    monkeypatch.setattr(GritModel, "question_token_log_likelihoods", counted)
    setting = Setting(**{**SMALL, "rerank": 20, "context": "retrieved"})
    asked = gold_contexts(chosen, setting, path)
    evaluate(tiny_model, "tiny", chosen, asked, setting, tmp_path / "index")
    assert sorted(times) == sorted(question.text for question in chosen.questions)
    with Index.open(tmp_path / "index", model=tiny_model) as index:
        for each in asked:
            found = index.search(each.question.text, SMALL["k"], rerank=20)
            hits = each.contexts["retrieved"]
            assert [hit.document.id for hit in hits] == [hit.document.id for hit in found]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in found], abs=1e-4)

    times.clear()  # with fewer candidates than scores look at, contexts are another search
    few = Setting(**{**SMALL, "rerank": 3, "context": "retrieved"})
    asked = gold_contexts(chosen, few, path)
    evaluate(tiny_model, "tiny", chosen, asked, few, tmp_path / "few")
    assert len(times) == len(chosen.questions) + len(asked)


def test_answers_from_states_weigh_scores_as_told(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found weighs as much as the setting says; a gold context has no scores, and is weighed by vectors."""
    biases: list[list[float]] = []

    def place(contexts: Sequence[Context], *others: object) -> PlacedCache:
        biases.extend([s.relevance_bias for s in context.states] for context in contexts if context.states)
        return original(contexts, *others)

    original = decoder.place
    monkeypatch.setattr(decoder, "place", place)
    setting = Setting(**{**SMALL, "k": 3, "relevance_bias": 5.0})
    asked = gold_contexts(chosen, setting, path)
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as index:
        index.add(chosen.documents)
        for each in asked:
            each.contexts["retrieved"] = index.search(each.question.text, 3, mode="hybrid")
        list(answered(index, asked, setting))
    gold, retrieved = biases[::2], biases[1::2]
    for each, given, found in zip(asked, gold, retrieved, strict=True):
        documents = [hit.document for hit in each.contexts["gold"]]
        cosines = tiny_model.encode_document(documents) @ tiny_model.encode_query([each.question.text])[0]
        assert given[::-1] == pytest.approx(5 * (cosines.clip(0) / cosines.max() - 1), abs=1e-4)
        best, *others = [hit.score for hit in each.contexts["retrieved"]]
        assert found[::-1] == pytest.approx([0.0, *(5 * (score / best - 1) for score in others)])


def test_what_is_compared() -> None:
    def of(name: str, cached: list[float]) -> Evaluated:
        retrieval = {mode: {"nDCG@10": [0.5, 1.0]} for mode in ("sparse", "hybrid")}
        answers = {"doc-query, gold": {"F1": [1.0, 0.5]}, "doc-cache, gold": {"F1": cached}}
        kinds = {"kinds": [ONE, ONE]}
        return Evaluated(name, retrieval, {way: {**scores, **kinds} for way, scores in answers.items()})

    runs = [of("one", [1.0, 0.2]), of("two", [0.4, 0.5])]
    by_names = {
        (f"{pair.way} ({pair.model.model})", f"{pair.other_way} ({pair.other_model.model})"): pair.compared(0)[0]
        for pair in pairs(runs)
    }
    assert by_names["doc-cache, gold (one)", "doc-query, gold (one)"].mean == pytest.approx(-0.15)
    assert by_names["doc-cache, gold (one)", "doc-query, gold (two)"].mean == pytest.approx(-0.15)
    assert by_names["doc-cache, gold (one)", "doc-cache, gold (two)"].mean == pytest.approx(0.15)
    assert by_names["hybrid (one)", "sparse (one)"].mean == 0
    assert by_names["hybrid (one)", "hybrid (two)"].mean == 0


def test_the_command_prints_tables_and_json_and_writes_each_answer(
    path: Path, model_folder: str, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    options = ["--model", model_folder, "--dtype", "float32", "--questions", "2", "--distractors", "2", "-k", "2"]
    twin = copy_of(model_folder, tmp_path)
    options += ["--max-new-tokens", "4", "--compare", twin, "--answers", str(out), "--out", str(tmp_path / "out.json")]
    told = CliRunner().invoke(app, ["eval", str(path), *options, "--json"])
    assert told.exit_code == 0, told.output
    result = Result.load(tmp_path / "out.json")
    assert json.loads(told.stdout) == json.loads((tmp_path / "out.json").read_text())
    assert (result.facts["documents_indexed"], result.facts["questions_answered"]) == (6, 2)
    first, second = evaluated(result.rows)
    alike = {"cell": 0, "first_token": 0}  # all but its name and its times
    assert [row | alike for row in first.answers.values()] == [row | alike for row in second.answers.values()]
    same = [pair for pair in pairs([first, second]) if pair.way == pair.other_way]
    assert len(same) == 3 + len(ANSWER_WAYS)
    assert all(pair.compared(0)[0] == Interval(0, 0, 0, pair.compared(0)[0].n) for pair in same)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q0", "q3"] * 2
    assert list(rows[0]["given"]) == ANSWER_WAYS
    given = rows[0]["given"]["doc-cache, gold"]
    assert given == {"text": given["text"], "not_found": 0, **score_answer(given["text"], rows[0]["answers"])}


def test_only_retrieval_reads_no_states_and_needs_no_answers(path: Path, model_folder: str) -> None:
    rows = [{**json.loads(line), "answers": []} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"no question chosen from .* has answers; evaluate only retrieval"):
        main([path], model_folder)
    told = main([path], model_folder, setting=Setting(only="retrieval", documents=4)).show()
    assert "| sparse    | 100.0 [100.0, 100.0] |" in told
    assert "doc-cache" not in told
    assert "documents_indexed: 4" in told


def test_an_encoder_is_compared_in_retrieval_and_asked_for_no_answers(
    path: Path, model_folder: str, tmp_path: Path
) -> None:
    setting = Setting(**SMALL)
    twin = copy_of(model_folder, tmp_path)
    first, second, minilm = evaluated(main([path], model_folder, [twin, "minilm"], setting=setting).rows)
    assert list(minilm.retrieval) == list(first.retrieval)
    for score in RANKING:
        words = first.values(score, "sparse")
        assert minilm.values(score, "sparse") == words, "words are the same for every encoder"
    assert list(second.answers) == ANSWER_WAYS
    assert minilm.answers == {}
    against = [pair for pair in pairs([first, second, minilm]) if pair.other_model is minilm]
    assert {(pair.way, pair.model.model) for pair in against} == {(mode, model_folder) for mode in first.retrieval} | {
        ("hybrid", "minilm")
    }
    with pytest.raises(ValueError, match="minilm only embeds"):
        main([path], "minilm", setting=setting)
    assert "| minilm" in main([path], "minilm", setting=Setting(only="retrieval")).show()


def answer_row(way: str, f1: list[float], kinds: list[str], not_found: list[float] | None = None) -> dict[str, Any]:
    figures = dict.fromkeys(("EM", "F1", "match"), f1)
    ids = [f"q{n}" for n in range(len(f1))]
    about = {"ids": ids, "kinds": kinds, "not_found": not_found or [0.0] * len(f1)}
    return {"kind": "questions", "cell": {"model": "m", "part": "answers", "way": way}, **figures, **about}


def tables(rows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Rows of the one table of each section, by its title."""
    every = sections({"settings": {"seed": 0}}, rows)
    return {section.title: [list(row) for row in section.tables[0].rows] for section in every}


def test_tables_say_what_the_numbers_are() -> None:
    told = tables(
        [answer_row("doc-query, x", [0.0, 0.0], [ONE] * 2), answer_row("doc-cache, x", [0.0, 1.0], [ONE] * 2)]
    )
    assert ["m", ONE, "doc-cache, x", *["50.0 [0.0, 100.0]"] * 3, "2"] in told["Answers"]
    assert ["F1", "doc-cache, x (m)", "doc-query, x (m)", "+50.0 [+0.0, +100.0]", "-"] in told["Comparisons"]
    assert told["Where it loses"] == []


def test_only_ways_that_both_models_have_are_compared() -> None:
    """One that only embeds does not rank from states, and one whose keys cannot be moved answers from text alone."""

    def of(model: str, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "cell": {**row["cell"], "model": model}}

    def searched(model: str, way: str) -> dict[str, Any]:
        return {"cell": {"model": model, "part": "retrieval", "way": way}, **{score: [1.0, 0.0] for score in RANKING}}

    text, states = (answer_row(f"{mode}, x", [0.0, 1.0], [ONE] * 2) for mode in MODES[1:])
    rows = [searched("one", "hybrid"), searched("one", "sparse"), searched("one", RANKED), searched("two", "hybrid")]
    rows += [searched("two", "sparse"), of("one", text), of("one", states), of("two", text)]
    compared = {(row[1], row[2]) for row in tables(rows)["Comparisons"]}
    assert ("hybrid (one)", "hybrid (two)") in compared
    assert ("doc-query, x (one)", "doc-query, x (two)") in compared
    assert ("doc-cache, x (one)", "doc-query, x (two)") in compared
    assert len(compared) == 7


def test_where_nothing_has_an_answer_nothing_is_said_of_answers() -> None:
    rows = [answer_row(f"{mode}, x", [0.0, 1.0], [UNANSWERABLE] * 2, [0.0, 1.0]) for mode in MODES[1:]]
    other = [{**row, "cell": {**row["cell"], "model": "two"}} for row in rows]
    found = {"cell": {"model": "m", "part": "found", "way": "dense"}, "found": []}
    told = tables([*rows, *other, found])
    assert set(told) == {"Calibration", "Where it loses"}


def test_questions_are_told_apart_by_what_they_need_and_states_meet_the_better_of_text() -> None:
    kinds = [ONE, ONE, SEVERAL, SEVERAL, UNANSWERABLE]
    rows = [
        answer_row("doc-query, x", [0.5, 0.5, 1.0, 1.0, 1.0], kinds, [0, 0, 0, 0, 1]),
        answer_row("doc-cache, x", [1.0, 0.5, 0.5, 0.5, 0.0], kinds, [0, 0, 0, 1, 0]),
        answer_row(f"{BEST}, x", [1.0, 1.0, 0.0, 0.5, 1.0], kinds, [0, 0, 1, 0, 1]),
    ]
    told = tables(rows)
    means = {(row[1], row[2]): row[4].split()[0] for row in told["Answers"]}
    assert means[ONE, "doc-cache, x"] == "75.0"
    assert means[SEVERAL, "doc-cache, x"] == "50.0"
    assert UNANSWERABLE not in {kind for kind, _ in means}, "what has no answer has no F1"
    one, several = told["Cached against the better of text"]
    assert [one[1], one[4], one[6].split()[0]] == [ONE, f"{BEST}, x", "-25.0"]
    assert [several[1], several[4], several[7]] == [SEVERAL, "doc-query, x", "50.0 [50.0, 50.0]"]
    rightly = {row[1]: (row[2].split("(")[1], row[3].split("(")[1]) for row in told["Calibration"]}
    assert rightly["doc-query, x"] == ("1 of 1)", "0 of 4)")
    assert rightly["doc-cache, x"] == ("0 of 1)", "1 of 4)")
    assert told["Where it loses"] == [["m, x: 3 of 5 questions, q2, q3, q4"]]


def test_probabilities_of_being_unanswerable_are_judged() -> None:
    kinds = [ONE, ONE, UNANSWERABLE, UNANSWERABLE]
    row = answer_row("doc-cache, x", [1.0] * 4, kinds) | {"unanswerable": [0.0, 0.5, 0.5, 1.0]}
    told = {line[1]: line[4:] for line in tables([row, answer_row("doc-query, x", [1.0] * 4, kinds)])["Calibration"]}
    assert [cell.split()[0] for cell in told["doc-cache, x"]] == ["87.5", "0.125"]
    assert told["doc-query, x"] == ["-", "-"]


def test_the_kind_of_a_row_and_its_gold_context(tmp_path: Path) -> None:
    documents = [f"{place} has {n} owls." for n, place in enumerate(PLACES)]
    rows = [
        {"question": "one?", "passage": "Passage.", "answers": ["a"]},
        {"question": "of several?", "documents": documents[:3], "answers": ["a"], "gold": [2]},
        {"question": "two?", "documents": documents[:4], "answers": ["a"], "gold": [1, 3]},
        {"question": "none?", "passage": "Other.", "answers": [], "unanswerable": True},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chosen = choose(read_questions(path), 300)
    asked = gold_contexts(chosen, Setting(questions=4, distractors=1), path)
    assert [kind_of(each.question) for each in asked] == [ONE, ONE_OF_SEVERAL, SEVERAL, UNANSWERABLE]
    texts = [{hit.document.text for hit in each.contexts["gold"]} for each in asked]
    assert [len(each) for each in texts] == [2, 2, 3, 2], "what is needed, and one beside it"
    assert documents[2] in texts[1]
    assert {documents[1], documents[3]} < texts[2]
    assert texts[2] <= set(documents[:4]), "documents that the row names stand beside what is needed"


def test_the_best_document_is_the_one_that_search_ranks_first(tiny_model: GritModel, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=tiny_model, states="none") as index:
        index.add([Document(f"{place} has {n} owls.", id=place) for n, place in enumerate(PLACES)])
        question = f"How many owls has {PLACES[2]}?"
        found = index.search(question, len(index), mode="dense")
        best, *others = [hit.document for hit in found]
        assert best_of(index, question, as_hits([*others, best])).document.id == best.id
        assert best_of(index, question, found[1:3]).document.id == others[0].id


def test_what_is_not_there_is_said_in_any_dress() -> None:
    assert says_not_found("Not in the documents.")
    assert says_not_found("That is not in the documents, sorry")
    assert not says_not_found("in the documents")


def test_mistakes_are_told_before_a_model_is_loaded(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a context of 1 \+ 6 documents needs as many, .* gives 6 .*--distractors 5$"):
        main([path], "no-such-model", setting=Setting(distractors=6))
    with pytest.raises(ValueError, match="is the file of questions itself"):
        main([path], "no-such-model", outputs=Outputs(answers=path))
    assert path.read_text(), "and nothing was overwritten"
    with pytest.raises(ValueError, match="cannot read"):
        main([tmp_path / "none.jsonl"], "no-such-model")
    for wrong in (
        {"only": "speed"},
        {"questions": 0},
        {"distractors": -1},
        {"k": 0},
        {"dense_weight": 1.5},
        {"relevance_bias": -2},
        {"context": "found"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))!r}"):
            Setting(**wrong)


def test_a_misspelt_model_is_found_before_any_is_measured(
    path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(evaluation, "load_encoder", lambda name, *settings: measured.append(name))
    with pytest.raises(ValueError, match=r"no model 'nobody'.*, and minilm, which only embeds"):
        main([path], model_folder, ("nobody",))
    assert measured == []
