"""`gritrag bench codecs` end to end on a tiny random model: what must hold however badly a model answers."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import TINY
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import codecs, statistics
from gritrag.evaluate.codecs import Setting, main, measure, sections
from gritrag.evaluate.quality import Asked, gold_contexts
from gritrag.evaluate.quality import Setting as Asking
from gritrag.evaluate.rows import choose, read_questions
from gritrag.evaluate.suite import Results
from gritrag.index.storage.packed import bytes_per_token
from gritrag.model.grit import GritModel

SMALL: dict[str, Any] = {
    "codecs": ("float32", "int8", "int4"),
    "questions": 2,
    "distractors": 2,
    "max_new_tokens": 4,
    "placed": 2,
    "tokens": 40,
    "repetitions": 2,
}


def measured(model: GritModel, asked: list[Asked], folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by codec."""
    results = Results(None, {}, {})
    measure(model, asked, Setting(**SMALL), folder, results)
    return {row["cell"]["codec"]: row for row in results.rows}


@pytest.fixture
def asked(path: Path) -> list[Asked]:
    return gold_contexts(choose(read_questions(path), 300), Asking(questions=2, distractors=2), path)


def test_more_bits_cost_more_and_lose_less(tiny_model: GritModel, asked: list[Asked], tmp_path: Path) -> None:
    rows = measured(tiny_model, asked, tmp_path / "files")
    order = ["float32", "bf16", "int8", "int4"]
    sizes = [rows[codec]["bytes_per_token"] for codec in order]
    assert sizes[:2] == sorted(sizes[:2], reverse=True)
    for part in ("error of keys", "error of values"):
        errors = [rows[codec][part] for codec in order]
        assert errors == sorted(errors)
        assert errors[0] == 0 < errors[1]
    assert rows["bf16"]["KL"] == 0
    assert rows["bf16"]["same token"] == 1
    assert 0 <= rows["int8"]["KL"] < rows["int4"]["KL"]
    assert {tuple(row["ids"]) for row in rows.values()} == {("q0", "q3")}
    assert all(len(values) == 2 for row in rows.values() for values in (row["F1"], *row["seconds"].values()))


def test_log_probabilities_of_one_question_are_held_at_a_time(
    tiny_model: GritModel, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []
    along = codecs._along

    def watched(*args: Any) -> torch.Tensor:
        found = along(*args)
        made.append(weakref.ref(found))
        held.append(sum(each() is not None for each in made))
        return found

    monkeypatch.setattr(codecs, "_along", watched)
    rows = measured(tiny_model, asked, tmp_path / "files")
    assert len(held) == len(rows) * len(asked)
    assert max(held) <= 3  # the reference's, those of one codec, and the new ones


def test_bytes_are_those_of_the_files(tiny_model: GritModel, asked: list[Asked], tmp_path: Path) -> None:
    rows = measured(tiny_model, asked, tmp_path / "files")
    files = list((tmp_path / "files" / "asked").rglob("*.safetensors"))
    assert len(files) == 4 * rows["bf16"]["documents_read"]
    tokens = rows["bf16"]["tokens_read"]
    found = {row["bytes_per_token"] * tokens for row in rows.values()}
    assert sum(found) == pytest.approx(sum(path.stat().st_size for path in files))
    least = bytes_per_token("bf16", tiny_model.state_elements_per_token)
    assert least < rows["bf16"]["bytes_per_token"]


def test_it_tells_what_was_measured_and_where(path: Path) -> None:
    text = main([path], TINY, setting=Setting(**SMALL)).show()
    for fact in ("commit: ", "hardware: ", "torch: ", "seed: 0", "questions: 2", "codecs: "):
        assert fact in text
    assert all(f"| {codec} " in text for codec in ("bf16", "int8", "int4"))


def test_the_command_prints_json_and_text(path: Path) -> None:
    command = [
        "bench",
        "codecs",
        "--questions-file",
        str(path),
        "--model",
        TINY,
        "--questions",
        "1",
        "--repetitions",
        "1",
    ]
    run = CliRunner().invoke(app, [*command, "--codec", "int4", "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert [row["cell"]["codec"] for row in result["rows"]] == ["bf16", "int4"]
    assert result["facts"]["settings"]["questions"] == 1


def test_questions_of_several_files_are_asked_in_one_table(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text("utf-8").replace("Osk", "Ask"), "utf-8")
    setting = Setting(codecs=("int4",), questions=1, repetitions=1, placed=1, tokens=40, max_new_tokens=2)
    result = main([path, other], TINY, setting=setting)
    assert result.facts["questions_asked"] == len(result.rows[0]["F1"]) == 2
    assert result.facts["files"] == [path.name, other.name]


def test_questions_without_answers_are_left_out(path: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    some = [{**row, "answers": [], "unanswerable": True} if number == 0 else row for number, row in enumerate(rows)]
    none = [{**row, "answers": [], "unanswerable": True} for row in rows]
    for name, content in (("some", some), ("none", none)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)), "utf-8")
    setting = Setting(codecs=("int4",), questions=len(rows), distractors=1, repetitions=1, placed=1, max_new_tokens=2)
    result = main([tmp_path / "some"], TINY, setting=setting)
    assert len(result.rows[0]["F1"]) == result.facts["questions_asked"] == len(rows) - 1
    with pytest.raises(ValueError, match=r"no question of .*none has answers"):
        main([tmp_path / "none"], "no-such-model", setting=setting)


def test_questions_that_a_codec_answers_worse_are_named() -> None:
    figures = {"bytes_per_token": 1.0, "error of keys": 0.0, "error of values": 0.0, "KL": 0.0, "same token": 1.0}
    seconds = {part: [1.0, 2.0] for part in ("encode", "warm", "cold")}
    rows = [
        {
            "kind": "codecs",
            "cell": {"codec": codec},
            **figures,
            "tokens": 3,
            "seconds": seconds,
            "ids": ["a", "b"],
            "F1": f1,
        }
        for codec, f1 in (("bf16", [1.0, 0.5]), ("int4", [1.0, 0.25]))
    ]
    (table,), lost = (
        sections({"settings": {"seed": 0, "repetitions": 2}}, rows)[0].tables,
        sections({"settings": {"seed": 0, "repetitions": 2}}, rows)[1],
    )
    assert table.rows[0][4:7] == ["1.00 [1.00, 1.00]"] * 3
    assert table.rows[0][8] == "+0.0 [+0.0, +0.0]"
    assert lost.tables[0].rows == [["int4: 1 of 2 questions, b"]]
    assert statistics.difference([1.0, 0.25], [1.0, 0.5], 0).mean == -0.125


def test_an_unknown_codec_is_told_before_a_model_is_loaded(path: Path) -> None:
    with pytest.raises(ValueError, match="unknown codec 'int3'"):
        main([path], "no-such-model", setting=Setting(codecs=("int3",)))
