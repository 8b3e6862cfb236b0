"""The grid on a tiny random model: who takes turns with whom, what is kept, and what is not measured twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import ROOT

from gritrag.codecs import CODECS
from gritrag.evaluate.grid import BenchConfig, main
from gritrag.evaluate.machine import LONG
from gritrag.evaluate.speed import BARE, PARTS, Cell, SpeedConfig, groups
from gritrag.evaluate.speed_report import Limits
from gritrag.evaluate.suite import FILE, Results, in_turn, latest, read_rows
from gritrag.modes import MODES

CONFIGS = sorted((ROOT / "configs" / "bench").glob("*.yaml"))
SPEED = {"documents": [1, 2], "tokens": [48], "caches": ["warm", "cold"], "repetitions": 2, "new_tokens": 2}
TINY: dict[str, Any] = {
    "model": str(ROOT / "configs" / "tiny" / "model"),
    "dtype": "float32",
    "modes": ["doc-query", "doc-cache", "query-doc-cache"],
    "speed": SPEED,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run."""
    folder = tmp_path_factory.mktemp("bench")
    main("bench grid", BenchConfig.model_validate(TINY), folder)
    return folder


def speed_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / FILE) if row["kind"] == "speed"]


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configurations_of_the_repository_are_understood(path: Path) -> None:
    config = BenchConfig.load(path)
    assert set(config.modes) <= set(MODES)
    assert set(config.speed.codecs if config.speed else ()) <= set(CODECS)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("speeds.documents=[1]", "speeds"),
        ("speed.document=[1]", "speed.document"),
        ("speed.documents=[0]", "documents must each be at least 1"),
        ("speed.pool=1", "a pool of 1 documents holds no context of 2"),
        ("speed.caches=[hot]", "'warm' or 'cold'"),
        ("modes=[doc-cash]", "no mode doc-cash; there are: no-retrieval"),
        ("speed.codecs=[int3]", "unknown codec 'int3'"),
        ("speed=null", "nothing to measure"),
        ("quality.file=gone.jsonl", "cannot read gone.jsonl"),
        ("steady.mode=doc-cash", "no mode doc-cash"),
        ("steady={documents: 5, k: 5}", "5 documents make 1 combinations of 5, 1020 requests need as many"),
        ("speed.tokens=[2000]", "2 documents of 2000 tokens"),
        ("speed.tokens=[8]", "no room for text beside its scaffold"),
    ],
)
def test_mistakes_are_named(override: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(TINY), "utf-8")
    with pytest.raises(ValueError) as error:  # noqa: PT011, what it tells is checked below
        main("bench grid", BenchConfig.load(path, [override]), tmp_path / "out")
    assert told in str(error.value)


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_each_round_has_every_cell_once_and_none_always_follows_the_same() -> None:
    turns = list(in_turn("abc", warmup=2, rounds=3))
    rounds = [[cell for number, cell in turns if number == of] for of in range(-2, 3)]
    assert [number for number, _ in turns] == sorted(number for number, _ in turns)
    assert all(sorted(cells) == ["a", "b", "c"] for cells in rounds)
    assert len({cells[0] for cells in rounds[2:]}) == 3


def test_modes_that_load_no_states_are_measured_once_and_the_others_in_every_codec_and_cache() -> None:
    setting = SpeedConfig(documents=(2,), batches=(1, 3), codecs=("bf16", "float32"), caches=("warm", "cold"))
    one, three = groups(setting, ["doc-query", "query-cache", "doc-cache"])[250]
    assert {cell.batch for cell in one} == {1}
    by_mode = [(cell.mode, cell.codec, cell.cache) for cell in one]
    states = [("doc-cache", codec, cache) for codec in ("bf16", "float32") for cache in ("warm", "cold")]
    assert by_mode == [(BARE, "-", "warm"), ("doc-query", "-", "warm"), ("query-cache", "-", "warm"), *states]
    assert [(cell.mode, cell.codec, cell.cache) for cell in three] == by_mode[1:]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_every_cell_is_measured_in_the_same_rounds_on_the_same_questions(folder: Path) -> None:
    rows = speed_rows(folder)
    cells = [Cell(**row["cell"]) for row in rows]
    assert sorted(cells) == sorted(
        cell for every in groups(SpeedConfig(**SPEED), TINY["modes"]).values() for group in every for cell in group
    )
    of = dict(zip(cells, rows, strict=True))
    for cell, row in of.items():
        assert [sample["round"] for sample in row["rounds"]] == [0, 1]
        if cell.mode == "doc-cache":
            base = of[Cell("doc-query", cell.documents, cell.tokens, "-", "warm", 1)]
            bare = of[Cell(BARE, cell.documents, cell.tokens, "-", "warm", 1)]
            for cached, read, alone in zip(row["rounds"], base["rounds"], bare["rounds"], strict=True):
                assert cached["prompt_tokens"] == read["prompt_tokens"]
                assert cached["cached_tokens"] == cell.documents * cell.tokens
                assert cached["prompt_tokens"] - cached["cached_tokens"] == alone["prompt_tokens"]
                assert read["cached_tokens"] == 0


def test_the_parts_of_an_answer_make_its_total(folder: Path) -> None:
    for row in speed_rows(folder):
        for sample in row["rounds"]:
            assert tuple(sample["parts"]) == PARTS
            assert sum(sample["parts"].values()) == pytest.approx(sample["total"], rel=1e-4)
            assert sum(sample["parts"].values()) - sample["parts"]["decode"] == pytest.approx(
                sample["first_token"], rel=1e-4
            )
        assert row["memory"]["peak"] >= row["memory"]["before"] > 0


def test_indexing_and_ceilings_are_part_of_the_run_and_no_index_is_left(folder: Path) -> None:
    of = latest(read_rows(folder / FILE))
    (index,) = of["index"]
    assert sum(index["tokens_read"]) == 48 * index["documents"] == 48 * 4
    assert index["bytes"]["states"] >= 48 * 4 * 2 * 64
    (ceilings,) = of["limits"]
    assert set(ceilings["file_bytes_per_second"]) == {"warm", "cold"}
    assert all(value > 0 for value in [*ceilings["matmul_flops"].values(), ceilings["memory_bytes_per_second"]])
    assert {path.name for path in folder.iterdir()} == {FILE, "report.md", "report.html"}


def test_questions_that_nothing_answers_are_scored_as_in_eval(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}?", "passage": f"Text {n}.", "answers": ["x"]} for n in range(3)]
    rows[1] |= {"answers": [], "unanswerable": True}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"file": str(tmp_path / "rows.jsonl"), "documents": [2], "codecs": ["float32"], "new_tokens": 2}
    config = {key: value for key, value in TINY.items() if key != "speed"} | {"speed": None, "quality": asked}
    main("bench grid", BenchConfig.model_validate(config), tmp_path / "run")
    measured = [row for row in read_rows(tmp_path / "run" / FILE) if row["kind"] == "quality"]
    assert len(measured) == 3
    assert all(len(row["F1"]) == 3 for row in measured)


def test_finished_cells_are_skipped_and_an_interrupted_group_is_measured_again(folder: Path) -> None:
    rows = read_rows(folder / FILE)
    main("bench grid", BenchConfig.model_validate(TINY), folder)
    again = read_rows(folder / FILE)
    assert again[: len(rows)] == rows
    assert {row["kind"] for row in again[len(rows) :]} <= {"run"}

    lost = next(row for row in rows if row["kind"] == "speed" and row["cell"]["documents"] == 2)
    lines = [json.dumps(row) for row in rows if row is not lost]
    (folder / FILE).write_text("\n".join(lines) + '\n{"kind": "speed", "ru', "utf-8")
    main("bench grid", BenchConfig.model_validate(TINY), folder)
    new = read_rows(folder / FILE)[len(lines) :]
    group = next(g for g in groups(SpeedConfig(**SPEED), TINY["modes"])[48] if g[0].documents == 2)
    assert [Cell(**row["cell"]) for row in new if row["kind"] != "run"] == group


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Results:
    results = Results(tmp_path, {"seed": 0}, {"commit": "a"})
    results.write("speed", [({"mode": "x"}, {"n": 1}), ({"mode": "y"}, {"n": 2})])
    return results


def test_another_configuration_or_version_is_another_run(results: Results, tmp_path: Path) -> None:
    def others() -> Iterator[Results]:
        for config, facts in (
            ({"seed": 0}, {"commit": "a"}),
            ({"seed": 1}, {"commit": "a"}),
            ({"seed": 0}, {"commit": "b"}),
        ):
            yield Results(tmp_path, config, facts, {"started": "later"})

    assert [other.has("speed", {"mode": "x"}) for other in others()] == [True, False, False]
    assert not results.has("speed", {"mode": "z"})
    assert not results.has("quality", {"mode": "x"})


def test_the_last_run_of_each_kind_and_the_last_row_of_each_cell_count(results: Results, tmp_path: Path) -> None:
    results.write("speed", [({"mode": "x"}, {"n": 3})])
    results.write("steady", [({}, {"n": 4})])
    other = Results(tmp_path, {"seed": 1}, {"commit": "a"})
    other.write("quality", [({"mode": "x"}, {"n": 5})])
    of = latest(read_rows(tmp_path / FILE))
    assert [row["n"] for row in of["speed"]] == [3, 2]
    assert [row["run"] for row in of["run"]] == [results.run, other.run]
    other.write("speed", [({"mode": "x"}, {"n": 6})])
    assert [row["n"] for row in latest(read_rows(tmp_path / FILE))["speed"]] == [6]


def test_broken_results_are_named_by_line(results: Results, tmp_path: Path) -> None:
    with results.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"results.jsonl, line 4: no row"):
        read_rows(results.path)
    results.path.write_text('{"kind": "run", "run": "r", "config": {}}\n')
    with pytest.raises(ValueError, match=r"results.jsonl, line 1: no row of results \('settings'\)"):
        read_rows(results.path)
    with pytest.raises(ValueError, match="cannot read results from"):
        read_rows(tmp_path / "none" / FILE)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_floors_worked_by_hand() -> None:
    ceilings = {
        "matmul_flops": {str(LONG): 1000.0},
        "flop_per_token": 10,
        "flop_per_pair": 2,
        "weight_bytes": 50,
        "memory_bytes_per_second": 100.0,
        "file_bytes_per_second": {"warm": 400.0, "cold": 1.0},
    }
    limits = Limits.of(ceilings, cached=90, fresh=10, state_bytes=200)
    assert limits.compute == pytest.approx(10 * (10 + 2 * 95) / 1000)
    assert limits.weights == 0.5
    assert limits.forward == pytest.approx(2.0)
    assert limits.load == 0.5
    assert limits.speedup == 10  # (n + q) / q is the smaller: 100 / 10
    slow = Limits.of({**ceilings, "file_bytes_per_second": {"warm": 4.0}}, cached=90, fresh=10, state_bytes=200)
    assert slow.speedup == pytest.approx((10 + 2 * 45) * 4.0 / (200 / 90 * 1000))  # f W / (b C)
