"""Scores of vectors that are known, files that are broken, and the command end to end on a tiny model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import v_measure_score
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate.embedding import Setting, compared, distinct, evaluate, few_of_each, main, read_tasks, remembering
from gritrag.evaluate.embedding_tasks import Classification, Clustering, Retrieval, Similarity, spearman
from gritrag.evaluate.rows import Labelled, Pair
from gritrag.evaluate.statistics import Sampled, draws
from gritrag.model.encoders import MiniLM, load_encoder
from gritrag.model.grit import GritModel

SUBJECTS = {"owl": "Owls", "ferry": "Ferries", "bread": "Loaves"}
LABELLED = [Labelled(f"{subject} {n}", label) for label, subject in SUBJECTS.items() for n in range(12)]

Write = Callable[[str, Sequence[Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def rows(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    return rows


@pytest.mark.parametrize("row", [{"question": "q?", "passage": "p"}, {"query": "q?", "pos": ["p"], "neg": ["n"]}])
def test_questions_are_known_by_either_name(write: Write, row: dict[str, Any]) -> None:
    (task,) = read_tasks(write("rows.jsonl", [row]), None, Setting())
    assert task.name == "retrieval"


@pytest.fixture
def labelled(write: Write) -> Path:
    return write("labelled.jsonl", [row._asdict() for row in LABELLED])


@pytest.fixture
def pairs(write: Write) -> Path:
    texts = [f"The well is {n} metres deep." for n in range(12)]
    return write("pairs.jsonl", [{"sentence1": texts[0], "sentence2": t, "score": n} for n, t in enumerate(texts)])


@pytest.fixture
def questions(write: Write) -> Path:
    rows = [{"question": f"{p}?", "passage": f"{p} has owls.", "answers": []} for p in ("Osk", "Ruv", "Tal", "Wem")]
    return write("questions.jsonl", rows)


@pytest.fixture(scope="module")
def model_folder(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.lm.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    return str(folder)


def known(vectors: dict[str, Sequence[float]]) -> Callable[[Sequence[str]], np.ndarray]:
    def embed(texts: Sequence[str]) -> np.ndarray:
        found = np.array([vectors[text] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return embed


def by_label(spread: float) -> Callable[[Sequence[str]], np.ndarray]:
    """Vectors that are their label's corner, plus noise."""
    corners = dict(zip(SUBJECTS, np.eye(3), strict=True))
    noise = np.random.default_rng(0).normal(scale=spread, size=(len(LABELLED), 3))
    return known({row.text: corners[row.label] + noise[n] for n, row in enumerate(LABELLED)})


def test_vectors_that_are_their_labels_score_100_and_noise_scores_little(tiny_model: GritModel) -> None:
    train, test = LABELLED[::2], LABELLED[1::2]
    for task in (Clustering(LABELLED), Classification(train, test)):
        (perfect,) = task.score(tiny_model, by_label(0.0)).values()
        (poor,) = task.score(tiny_model, by_label(50.0)).values()
        assert (perfect.estimate, perfect.interval().low) == pytest.approx((1, 1))
        assert poor.estimate < 0.6
        assert poor.interval().low < poor.estimate < poor.interval().high


def test_v_measure_knows_clusters_only_by_who_is_together() -> None:
    assert v_measure_score(["a", "a", "b"], [7, 7, 3]) == 1


def test_every_clustering_is_of_another_sample_and_the_score_is_their_mean(tiny_model: GritModel) -> None:
    (value,) = Clustering(LABELLED, repetitions=8).score(tiny_model, by_label(0.5)).values()
    assert len(set(value.resampled)) > 1
    assert value.estimate == pytest.approx(np.mean(value.resampled))
    (again,) = Clustering(LABELLED, repetitions=8).score(tiny_model, by_label(0.5)).values()
    assert again == value
    (other,) = Clustering(LABELLED, repetitions=8, seed=1).score(tiny_model, by_label(0.5)).values()
    assert other != value


def test_spearman_is_that_of_scipy_ties_included() -> None:
    draw = np.random.default_rng(0)
    a_RN, b_RN = draw.integers(5, size=(6, 30)), draw.normal(size=(6, 30))
    expected = [spearmanr(a, b).statistic for a, b in zip(a_RN, b_RN, strict=True)]
    np.testing.assert_allclose(spearman(a_RN, b_RN), expected, atol=1e-12)
    assert spearman(np.ones((1, 4)), np.arange(4)[None]).tolist() == [0]


def test_similarity_ranks_pairs_by_their_angle(tiny_model: GritModel) -> None:
    embed = known({f"{n}": [np.cos(n / 9), np.sin(n / 9)] for n in range(10)})
    alike = [Pair("0", f"{n}", -(n**3)) for n in range(10)]
    for scored, expected in ((alike, 1), ([pair._replace(score=-pair.score) for pair in alike], -1)):
        (value,) = Similarity(scored).score(tiny_model, embed).values()
        assert value.estimate == pytest.approx(expected)
        assert value.n == 10


def test_retrieval_tells_vectors_words_and_both(tiny_model: GritModel, questions: Path) -> None:
    (task,) = read_tasks(questions, None, Setting())
    found = task.score(tiny_model, remembering(tiny_model, Setting()))
    assert {way for way, _ in found} == {"dense", "BM25", "hybrid"}
    assert found["BM25", "recall@1"].estimate == 1
    assert found["dense", "recall@5"].estimate == 1, "five of four are all"


def test_differences_are_paired_and_only_between_the_same_rows() -> None:
    values = np.random.default_rng(0).random(50)
    a, b = Sampled.mean(values.tolist(), 0), Sampled.mean((values + 0.25).tolist(), 0)
    difference = b.minus(a).interval()
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))
    assert a.interval().high - a.interval().low > 0.05
    with pytest.raises(ValueError, match="50 rows and 1000 resamples against 49 and 1000"):
        a.minus(Sampled.mean([0.0] * 49, 0))
    assert draws(5, 0, 3).shape == (3, 5)


def test_few_of_each_label() -> None:
    few = few_of_each(LABELLED, 2)
    assert [row.label for row in few] == ["owl", "owl", "ferry", "ferry", "bread", "bread"]
    assert len(few_of_each(LABELLED, 99)) == len(LABELLED)


def test_the_kind_of_a_file_decides_its_tasks(labelled: Path, pairs: Path, questions: Path) -> None:
    kinds = [(labelled, labelled, [Clustering, Classification]), (labelled, None, [Clustering])]
    kinds += [(pairs, labelled, [Similarity]), (questions, labelled, [Retrieval])]
    for path, train, tasks in kinds:
        assert [type(task) for task in read_tasks(path, train, Setting())] == tasks


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "x"}, "line 2: broken row: it lacks the key 'label'"),
        ({"text": " ", "label": "a"}, "line 2: broken row: text must be a text that is not empty"),
        ({"text": "x", "label": None}, "line 2: broken row: label must be a text or a whole number"),
        ("{", "line 2: broken row: "),
        ("[]", "line 2: broken row: a row must be an object, not list"),
    ],
)
def test_broken_rows_with_labels_are_named(write: Write, row: Any, told: str) -> None:
    path = write("broken.jsonl", [{"text": "x", "label": "a"}, row])
    with pytest.raises(ValueError, match=f"broken.jsonl, {told}"):
        read_tasks(path, None, Setting())


def test_broken_pairs_and_files_that_teach_nothing_are_named(write: Write, labelled: Path, tmp_path: Path) -> None:
    pair = {"sentence1": "a", "sentence2": "b", "score": 1}
    told = {
        "line 2: broken row: score must be a number, got 'high'": [pair, {**pair, "score": "high"}],
        "line 2: broken row: score must be a number, got nan": [
            pair,
            '{"sentence1": "a", "sentence2": "b", "score": NaN}',
        ],
        "has 1 different scores": [pair, pair],
        "has 1 different labels": [{"text": "x", "label": 1}],
        "is of no known kind": [{"words": "x"}],
        "holds no rows": [""],
    }
    for message, rows in told.items():
        with pytest.raises(ValueError, match=message):
            read_tasks(write("bad.jsonl", rows), None, Setting())
    train = write("train.jsonl", [row._asdict() for row in LABELLED if row.label != "bread"])
    with pytest.raises(ValueError, match=r"has no row of 1 labels of .*such as 'bread'"):
        read_tasks(labelled, train, Setting())
    with pytest.raises(ValueError, match="cannot read"):
        main([tmp_path / "gone.jsonl"], model="no-such-model")
    with pytest.raises(ValueError, match="must differ"):
        main([labelled, labelled], model="no-such-model")


@pytest.mark.parametrize(
    "wrong", [{"rows": 1}, {"shots": 0}, {"clusterings": 1}, {"side": "left"}, {"side": "document", "instruction": "x"}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be at least|not as 'left'|carry no instruction"):
        Setting(**wrong)


def test_a_text_of_several_tasks_is_embedded_once_and_on_the_side_that_is_asked_for(tiny_model: GritModel) -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def encode_query(self, texts: Sequence[str], instruction: str | None) -> np.ndarray:
            self.seen += [f"{instruction}: {text}" for text in texts]
            return tiny_model.encode_query(texts, instruction)

    counting = Counting()
    embed = remembering(counting, Setting(instruction="Find it"))  # type: ignore[arg-type]
    first, again = embed(["a", "b", "a"]), embed(["b", "c"])
    assert counting.seen == ["Find it: a", "Find it: b", "Find it: c"]
    np.testing.assert_array_equal(first[1], again[0])
    documents = remembering(tiny_model, Setting(side="document"))(["a"])
    np.testing.assert_allclose(documents, tiny_model.encode_document(["a"]), atol=1e-6)


def test_bm25_is_told_once_and_each_set_is_compared_with_its_first_system(
    tiny_model: GritModel, questions: Path, pairs: Path
) -> None:
    sets = {path.stem: read_tasks(path, None, Setting()) for path in (questions, pairs)}
    measured = distinct([m for name in "ab" for m in evaluate(tiny_model, name, sets, Setting())])
    rows = [{**cell, **figures} for cell, figures in compared(measured)]
    systems = [row["system"] for row in rows if (row["set"], row["score"]) == ("questions", "recall@1")]
    assert systems == ["a, dense", "BM25", "a, hybrid", "b, dense", "b, hybrid"]
    assert [row["system"] for row in rows if row["set"] == "pairs"] == ["a", "b"]
    differences = [row["first_minus_this"] for row in rows if row["system"] in ("a", "a, dense", "b", "b, dense")]
    assert differences.count(None) == 4
    assert all(d.mean == d.low == d.high == 0 for d in differences if d)


def test_the_command_prints_one_table_or_json(labelled: Path, pairs: Path, questions: Path, model_folder: str) -> None:
    files = [str(labelled), str(pairs), str(questions)]
    options = ["--model", model_folder, "--dtype", "float32", "--train", str(labelled), "--clusterings", "3"]
    told = CliRunner().invoke(app, ["eval", "embedding", *files, *options])
    assert told.exit_code == 0, told.output
    assert all(f"| {task}" in told.stdout for task in ("clustering", "classification", "STS", "retrieval"))
    again = CliRunner().invoke(app, ["eval", "embedding", *files, *options, "--compare", model_folder, "--json"])
    result = json.loads(again.stdout)
    assert {row["cell"]["set"] for row in result["rows"]} == {"labelled", "pairs", "questions"}
    assert result["facts"]["settings"]["seed"] == 0
    refused = CliRunner().invoke(app, ["eval", "embedding", files[0], "--side", "left"])
    assert refused.exit_code == 2
    assert "error: texts are embedded as query or as document" in refused.stderr


def test_minilm_finds_what_is_meant_and_has_no_states() -> None:
    minilm = load_encoder("minilm")
    assert isinstance(minilm, MiniLM)
    passages = ["The ferry leaves at noon.", "Owls hunt at night.", "Bread is baked with rye flour."]
    vectors = minilm.encode_document(passages)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1] * 3)
    np.testing.assert_allclose(minilm.encode_document(passages[:1]), vectors[:1], atol=1e-5)
    asked = minilm.encode_query(
        ["When does the boat go?", "Which birds are awake after dark?", "What is a loaf made of?"]
    )
    assert (asked @ vectors.T).argmax(1).tolist() == [0, 1, 2]
    assert len(minilm.document_token_ids("word " * 999)) == minilm.max_document_tokens
    with pytest.raises(ValueError, match="only embeds"):
        minilm.read_documents(passages)
