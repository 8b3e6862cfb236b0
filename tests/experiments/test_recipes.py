"""A comparison of recipes at smoke size: it trains, judges, is resumed, and says what held."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import PLACES
from repository import ROOT
from typer.testing import CliRunner

from experiments.comparison import ComparisonConfig
from experiments.recipes import command, main, recipe_of, show, summarise, verdict
from experiments.script import application
from gritrag.evaluate.statistics import Interval, Sampled
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig

SCORES = {
    "questions/nDCG@10",
    "questions/recall@1",
    "questions/recall@5",
    "questions/log p from text",
    "questions/log p from states in a row",
    "questions/log p from states",
    "labelled/V-measure",
    "labelled/accuracy",
    "pairs/Spearman",
    "answers/F1 from text",
    "answers/F1 from states",
    "attention/prompt",
    "attention/content",
    "attention/self",
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


QUICK = [
    "evaluation.sets=[pairs.jsonl]",
    "evaluation.likelihoods=[]",
    "evaluation.answers=''",
    "evaluation.attention=''",
]


@pytest.fixture(scope="module")
def comparison(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems trained from one recipe, one of them judged once more, and the untrained base."""
    tmp_path = tmp_path_factory.mktemp("comparison")
    tiny_model.lm.save_pretrained(tmp_path / "base")
    tiny_model.tokenizer.save_pretrained(tmp_path / "base")
    write(
        tmp_path / "questions.jsonl",
        [{"question": f"{p}?", "passage": f"{p} has {n} owls.", "answers": [f"{n}"]} for n, p in enumerate(PLACES)],
    )
    write(tmp_path / "labelled.jsonl", [{"text": f"{p} {n}", "label": p} for n in range(3) for p in PLACES[:2]])
    write(tmp_path / "pairs.jsonl", [{"sentence1": "a", "sentence2": p, "score": n} for n, p in enumerate(PLACES)])
    recipe = {
        "name": "tiny",
        "device": "cpu",
        "lr": 1e-2,
        "data": {
            "data_dir": str(tmp_path),
            "sources": [{"path": "questions.jsonl"}],
            "tokens_per_step": 100,
            "answers_per_step": 2,
        },
        "generative": {"documents_per_context": [1, 2], "p_chat": 0},
        "adapter": {"method": "lora", "rank": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trained = {"recipe": str(tmp_path / "recipe.yaml")}
    between = {"source": "test", "of": "both", "against": "embedding", "score": "questions/nDCG@10"}
    path = tmp_path / "comparison.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "base": str(tmp_path / "base"),
                "tokens": 250,
                "runs_dir": str(tmp_path / "runs"),
                "systems": {
                    "base": {"pooling": "last"},
                    "both": trained,
                    "embedding": {**trained, "overrides": ["generative.weight=0"]},
                    "again": {"trained_as": "both"},
                },
                "evaluation": {
                    "data_dir": str(tmp_path),
                    "sets": ["questions.jsonl", "labelled.jsonl", "pairs.jsonl"],
                    "train": "labelled.jsonl",
                    "answers": "questions.jsonl",
                    "likelihoods": ["questions.jsonl"],
                    "likelihood_questions": 3,
                    "attention": "pairs.jsonl",
                    "clusterings": 2,
                    "questions": 2,
                    "max_new_tokens": 2,
                    "texts": 2,
                    "instructions": {"labelled": "Find the place"},
                },
                "relations": [
                    {"claim": "both embed as well as one", "expected": "not below", **between},
                    {"claim": "the same is the same", **{**between, "against": "again"}, "expected": "not below"},
                ],
            },
            sort_keys=False,
        )
    )
    return path


@pytest.fixture(scope="module")
def done(comparison: Path) -> tuple[str, list[str]]:
    """What a whole run printed, and what it said on the way."""
    told: list[str] = []
    return main(comparison, as_json_text=True, say=told.append), told


def test_every_system_is_trained_at_the_budget_and_judged_on_everything(
    comparison: Path, done: tuple[str, list[str]]
) -> None:
    result, told = json.loads(done[0]), done[1]
    assert told.count("both: training") == 1
    assert list(result["scores"]) == ["base", "both", "embedding", "again"]
    assert all(set(scores) == SCORES for scores in result["scores"].values())
    assert result["scores"]["both"] == result["scores"]["again"] != result["scores"]["base"]
    assert result["relations"][1]["difference"] == {"mean": 0, "low": 0, "high": 0, "n": 6}
    assert result["relations"][1]["verdict"] == "confirmed"
    for name in ("both", "embedding"):
        lines = (comparison.parent / "runs" / name / "metrics.jsonl").read_text().splitlines()
        tokens = [record["tokens"] for record in map(json.loads, lines) if "tokens" in record]
        assert sum(tokens) >= 250 > sum(tokens[:-1]), "the run ends with the step that spends the budget"


def test_what_is_done_is_not_done_again_and_a_changed_setting_is_seen(
    comparison: Path, done: tuple[str, list[str]]
) -> None:
    told: list[str] = []
    assert main(comparison, as_json_text=True, say=told.append) == done[0]
    assert told == [], "nothing is trained and nothing is judged"
    weights = comparison.parent / "runs" / "both" / "checkpoint" / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    main(comparison, QUICK, say=told.append)
    assert "both: judging" in told
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds a run of other settings; remove it, or choose another runs_dir"):
        main(comparison, ["tokens=300"])


def test_a_share_goes_with_the_tokens_of_the_comparison(comparison: Path) -> None:
    half = "systems.embedding.share=0.5"
    assert [recipe_of(ComparisonConfig.load(comparison, [half]), name).tokens for name in ("both", "embedding")] == [
        250,
        125,
    ]
    config = ComparisonConfig.load(comparison, [half, "tokens=1000"])
    assert [recipe_of(config, name).tokens for name in ("both", "embedding")] == [1000, 500]
    assert recipe_of(ComparisonConfig.load(comparison, [half, "tokens=1"]), "embedding").tokens == 1
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ComparisonConfig.load(comparison, ["systems.embedding.share=2"])


def test_a_system_may_be_judged_on_less_and_a_set_have_rows_of_its_own(
    comparison: Path, done: tuple[str, list[str]]
) -> None:
    all_rows = json.loads(done[0])["scores"]
    config = ComparisonConfig.load(comparison)
    assert config.evaluation.names() == ["questions", "labelled", "pairs", "answers", "attention"]
    fewer = ["systems.both.scores=[pairs, answers]", "systems.again.scores=[questions]"]
    scores = json.loads(main(comparison, fewer, as_json_text=True))["scores"]
    assert set(scores["both"]) == {"pairs/Spearman", "answers/F1 from text", "answers/F1 from states"}
    assert set(scores["again"]) == {score for score in SCORES if score.startswith("questions/")}
    assert all(scores[name][score] == all_rows[name][score] for name in ("both", "again") for score in scores[name])
    rows = ["evaluation.rows_of={pairs: 5}", "evaluation.sets=[labelled.jsonl, pairs.jsonl]", *QUICK[1:]]
    base = json.loads(main(comparison, rows, as_json_text=True))["scores"]["base"]
    assert base["pairs/Spearman"]["n"] == 5
    assert base["labelled/V-measure"] == all_rows["base"]["labelled/V-measure"]


def test_processes_may_share_the_systems(comparison: Path, done: tuple[str, list[str]], tmp_path: Path) -> None:
    elsewhere, told = [*QUICK, f"runs_dir={tmp_path}"], list[str]()
    for only in (["embedding"], ["both", "base"]):
        result = json.loads(main(comparison, elsewhere, as_json_text=True, only=only))
        assert set(result["scores"]) == set(only)
    whole = json.loads(main(comparison, elsewhere, as_json_text=True, say=told.append))
    assert told == ["again: judging"]
    wanted = json.loads(done[0])["scores"]
    assert {name: each["pairs/Spearman"] for name, each in whole["scores"].items()} == {
        name: each["pairs/Spearman"] for name, each in wanted.items()
    }
    with pytest.raises(ValueError, match=r"no system nobody; there are: base, both"):
        main(comparison, elsewhere, only=["nobody"])


def test_a_run_that_is_told_to_stop_leaves_the_table_of_what_is_done(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    elsewhere = [*QUICK, f"runs_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr("gritrag.train.loop.Trainer._must_stop", lambda self: True)
        result = json.loads(main(comparison, elsewhere, as_json_text=True, say=told.append))
    assert list(result["scores"]) == ["base"]
    assert [relation["verdict"] for relation in result["relations"]] == ["not measured"] * 2
    assert told[-1] == "told to stop; the same command goes on from there"
    again = json.loads(main(comparison, elsewhere, as_json_text=True))
    assert list(again["scores"]) == ["base", "both", "embedding", "again"]


def test_the_command_prints_both_tables(comparison: Path, done: tuple[str, list[str]]) -> None:
    settings = [word for setting in QUICK for word in ("--set", setting)]
    result = CliRunner().invoke(application(command), [str(comparison), *settings])
    assert result.exit_code == 0, result.output
    assert "| system" in result.stdout
    assert "| both embed as well as one" in result.stdout
    refused = CliRunner().invoke(application(command), [str(comparison), "--set", "token=3"])
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("low", "high", "expected", "told"),
    [
        (0.01, 0.2, "above", "confirmed"),
        (-0.1, -0.01, "above", "refuted"),
        (-0.01, 0.1, "above", "undecided"),
        (0.0, 0.0, "above", "refuted"),
        (-0.2, -0.01, "below", "confirmed"),
        (0.01, 0.1, "below", "refuted"),
        (-0.019, 0.01, "not below", "confirmed"),
        (-0.1, -0.03, "not below", "refuted"),
        (-0.03, 0.1, "not below", "undecided"),
    ],
)
def test_verdicts(low: float, high: float, expected: str, told: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 10), expected, 0.02) == told


def test_a_missing_score_is_no_verdict() -> None:
    relation = {"claim": "c", "source": "s", "of": "a", "against": "b", "expected": "above", "margin": 0.02}
    found = {"a": {"x": Sampled(0.5, (0.4, 0.6), 2)}}
    result = summarise(found, [{**relation, "score": "x"}], {})
    assert "not measured" in show(result)


def test_a_relation_may_compare_two_scores() -> None:
    relation = {"claim": "c", "source": "s", "of": "a", "against": "b", "expected": "above", "margin": 0.02}
    other = {"x": Sampled(0.9, (0.9, 0.9), 2), "y": Sampled(0.2, (0.1, 0.3), 2)}
    found = {"a": {"x": Sampled(0.5, (0.4, 0.6), 2)}, "b": other}
    result = summarise(found, [{**relation, "score": "x", "against_score": "y"}], {})
    assert result["relations"][0]["difference"].mean == pytest.approx(0.3)
    assert "x - y" in show(result)


def test_unknown_names_are_refused(comparison: Path) -> None:
    with pytest.raises(ValueError, match="there is no system nobody"):
        ComparisonConfig.load(comparison, ["systems.again={trained_as: nobody}"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("compare-*.yaml")), ids=lambda path: path.name)
def test_the_comparisons_of_the_repository_name_recipes_that_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = ComparisonConfig.load(path)
    recipes = {name: recipe_of(config, name) for name in config.systems if config.systems[name].recipe}
    assert recipes
    for name, recipe in recipes.items():
        assert isinstance(recipe, TrainConfig)
        system = config.systems[name]
        own = [o.removeprefix("tokens=") for o in system.overrides if o.startswith("tokens=")]
        assert recipe.tokens == (int(own[0]) if own else round(system.share * config.tokens))
        assert set(system.scores) <= set(config.evaluation.names())
