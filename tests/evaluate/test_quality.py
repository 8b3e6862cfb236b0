"""`gritrag eval` end to end on a tiny random model: what must hold however badly a model answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from places import PLACES
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import quality
from gritrag.evaluate.quality import Asked, Setting, answered, evaluate, gold_contexts, main
from gritrag.evaluate.rows import QuestionSet, choose, read_questions
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.summary import Evaluated, pairs, show, summarise
from gritrag.index.index import Index
from gritrag.model import decoder
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.state import PlacedCache
from gritrag.records import as_hits

MODES = ["no-retrieval", "doc-query", "doc-cache"]
ANSWER_WAYS = ["no-retrieval", *(f"{mode}, {context}" for context in ("gold", "retrieved") for mode in MODES[1:])]
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


def run(model: GritModel, chosen: QuestionSet, asked: list[Asked], folder: Path) -> Evaluated:
    return evaluate(model, "tiny", chosen, asked, Setting(**SMALL), folder)


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
    assert list(found.retrieval["sparse"]) == ["recall@1", "recall@5", "recall@20", "nDCG@10", "MRR@10"]
    assert all(set(values) == {1.0} for values in found.retrieval["sparse"].values())
    assert set(found.retrieval["dense"]["recall@20"]) == {1.0}, "twenty of six are all"
    assert list(found.answers) == ANSWER_WAYS
    assert all(len(values) == 2 for scores in found.answers.values() for values in scores.values())


def test_hybrid_goes_from_words_to_vectors_with_their_weight(
    tiny_model: GritModel, chosen: QuestionSet, tmp_path: Path
) -> None:
    for weight, alone in ((0.0, "sparse"), (1.0, "dense")):
        setting = Setting(only="retrieval", dense_weight=weight)
        ranked = evaluate(tiny_model, "tiny", chosen, [], setting, tmp_path / alone).retrieval
        assert ranked["hybrid"]["MRR@10"] == ranked[alone]["MRR@10"]
    assert ranked["dense"]["MRR@10"] != ranked["sparse"]["MRR@10"], "or else the weight would change nothing"


def test_from_one_lossless_state_answers_do_not_differ_from_those_of_reading_again(
    tiny_model: GritModel, chosen: QuestionSet, path: Path, tmp_path: Path
) -> None:
    setting = Setting(questions=6, distractors=0, k=1, max_new_tokens=16, states="float32", only="answers")
    asked = gold_contexts(chosen, setting, path)
    lines = tmp_path / "out.jsonl"
    with lines.open("w") as out:
        found = evaluate(tiny_model, "tiny", chosen, asked, setting, tmp_path / "index", out)
    assert found.retrieval == {}
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    for context in ("gold", "retrieved"):
        read, cached = ([row["given"][f"{mode}, {context}"]["text"] for row in rows] for mode in MODES[1:])
        assert any(read), "a model that says nothing would prove nothing"
        assert read == cached
        assert found.answers[f"doc-query, {context}"] == found.answers[f"doc-cache, {context}"]


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
        return Evaluated(name, {"model": name}, retrieval, answers)

    runs = [of("one", [1.0, 0.2]), of("two", [0.4, 0.5])]
    told = {(pair.score, *pair.compared(0).values()) for pair in pairs(runs)}
    by_names = {(of, against): difference for _, _, of, against, difference, _ in told}
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
    options += ["--max-new-tokens", "4", "--compare", model_folder, "--out", str(out)]
    told = CliRunner().invoke(app, ["eval", str(path), *options, "--json"])
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert (result["facts"]["documents"], result["facts"]["questions_answered"]) == (6, 2)
    first, second = result["models"]
    assert first == second
    same = [pair for pair in result["comparisons"] if pair["of"] == pair["against"]]
    assert len(same) == 3 + len(ANSWER_WAYS)
    assert all(pair["difference"] == {"mean": 0, "low": 0, "high": 0, "n": pair["difference"]["n"]} for pair in same)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q0", "q3"] * 2
    assert list(rows[0]["given"]) == ANSWER_WAYS
    given = rows[0]["given"]["doc-cache, gold"]
    assert given == {"text": given["text"], **score_answer(given["text"], rows[0]["answers"])}


def test_only_retrieval_reads_no_states_and_needs_no_answers(path: Path, model_folder: str) -> None:
    rows = [{**json.loads(line), "answers": []} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"no question chosen from .* has answers; evaluate only retrieval"):
        main(path, model_folder)
    told = main(path, model_folder, setting=Setting(only="retrieval", documents=4))
    assert "| sparse    | 100.0 [100.0, 100.0] |" in told
    assert "doc-cache" not in told
    assert "documents: 4" in told


def test_an_encoder_is_compared_in_retrieval_and_asked_for_no_answers(path: Path, model_folder: str) -> None:
    setting = Setting(**SMALL)
    result = json.loads(main(path, model_folder, [model_folder, "minilm"], as_json_text=True, setting=setting))
    first, second, minilm = result["models"]
    assert list(minilm["retrieval"]) == list(first["retrieval"])
    assert minilm["retrieval"]["sparse"] == first["retrieval"]["sparse"], "words are the same for every encoder"
    assert list(second["answers"]) == ANSWER_WAYS
    assert minilm["answers"] == {}
    against = [pair for pair in result["comparisons"] if pair["against"].endswith("(minilm)")]
    assert {pair["of"] for pair in against} == {f"{mode} ({model_folder})" for mode in first["retrieval"]} | {
        "hybrid (minilm)"
    }
    with pytest.raises(ValueError, match="minilm only embeds"):
        main(path, "minilm", setting=setting)
    assert "| minilm" in main(path, "minilm", setting=Setting(only="retrieval"))


def test_tables_say_what_the_numbers_are() -> None:
    run = Evaluated("m", {"model": "m"}, {}, {"doc-query, x": {s: [0.0, 0.0] for s in ("EM", "F1", "match")}})
    run.answers["doc-cache, x"] = {s: [0.0, 1.0] for s in ("EM", "F1", "match")}
    lines = show(summarise([run], {"file": "f"}, 0)).splitlines()
    assert "| m     | doc-cache, x | 50.0 [0.0, 100.0] | 50.0 [0.0, 100.0] | 50.0 [0.0, 100.0] |" in lines
    assert "| F1    | doc-cache, x (m) | doc-query, x (m) | +50.0 [+0.0, +100.0] | -        |" in lines


def test_mistakes_are_told_before_a_model_is_loaded(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a context of 1 \+ 6 documents needs as many, .* gives 6"):
        main(path, "no-such-model", setting=Setting(distractors=6))
    with pytest.raises(ValueError, match="is the file of questions itself"):
        main(path, "no-such-model", out=path)
    assert path.read_text(), "and nothing was overwritten"
    with pytest.raises(ValueError, match="cannot read"):
        main(tmp_path / "none.jsonl", "no-such-model")
    for wrong in (
        {"only": "speed"},
        {"questions": 0},
        {"distractors": -1},
        {"k": 0},
        {"dense_weight": 1.5},
        {"relevance_bias": -2},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))!r}"):
            Setting(**wrong)


def test_a_misspelt_model_is_found_before_any_is_measured(
    path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(quality, "load_encoder", lambda name, *settings: measured.append(name))
    with pytest.raises(ValueError, match=r"no model 'nobody'.*, and minilm, which only embeds"):
        main(path, model_folder, ("nobody",))
    assert measured == []
