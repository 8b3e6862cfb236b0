"""`gritrag bench codecs` end to end on a tiny random model: what must hold however badly a model answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate.codecs import Setting, compare, main, show
from gritrag.evaluate.quality import Asked, gold_contexts
from gritrag.evaluate.quality import Setting as Asking
from gritrag.evaluate.rows import choose, read_questions
from gritrag.index.storage.packed import bytes_per_token
from gritrag.model.grit import GritModel

TINY = str(Path(__file__).parents[2] / "configs" / "tiny" / "model")
SMALL: dict[str, Any] = {
    "codecs": ("float32", "int8", "int4"),
    "questions": 2,
    "distractors": 2,
    "max_new_tokens": 4,
    "placed": 2,
    "tokens": 40,
    "repetitions": 2,
}


@pytest.fixture
def asked(path: Path) -> list[Asked]:
    return gold_contexts(choose(read_questions(path), 300), Asking(questions=2, distractors=2), path)


def test_more_bits_cost_more_and_lose_less(tiny_model: GritModel, asked: list[Asked], tmp_path: Path) -> None:
    result = compare(tiny_model, asked, Setting(**SMALL), tmp_path / "files")
    rows = result["rows"]
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
    assert rows["bf16"]["F1 difference"].mean == 0
    assert rows["bf16"]["warm ratio"].median == rows["bf16"]["cold ratio"].median == 1


def test_bytes_are_those_of_the_files(tiny_model: GritModel, asked: list[Asked], tmp_path: Path) -> None:
    result = compare(tiny_model, asked, Setting(**SMALL), tmp_path / "files")
    files = list((tmp_path / "files" / "asked").rglob("*.safetensors"))
    assert len(files) == 4 * result["machine"]["documents_read"]
    tokens = result["machine"]["tokens_read"]
    found = {row["bytes_per_token"] * tokens for row in result["rows"].values()}
    assert sum(found) == pytest.approx(sum(path.stat().st_size for path in files))
    least = bytes_per_token("bf16", tiny_model.state_elements_per_token)
    assert least < result["rows"]["bf16"]["bytes_per_token"]


def test_it_tells_what_was_measured_and_where(tiny_model: GritModel, asked: list[Asked], tmp_path: Path) -> None:
    text = show(compare(tiny_model, asked, Setting(**SMALL), tmp_path / "files"))
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
    assert list(result["rows"]) == ["bf16", "int4"]
    assert result["machine"]["questions"] == 1


def test_questions_of_several_files_are_asked_in_one_table(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text("utf-8").replace("Osk", "Ask"), "utf-8")
    setting = Setting(codecs=("int4",), questions=1, repetitions=1, placed=1, tokens=40, max_new_tokens=2)
    result = json.loads(main([path, other], TINY, as_json_text=True, setting=setting))
    assert result["machine"]["questions"] == 2
    assert result["machine"]["files"] == f"{path}, {other}"


def test_an_unknown_codec_is_told_before_a_model_is_loaded(path: Path) -> None:
    with pytest.raises(ValueError, match="unknown codec 'int3'"):
        main([path], "no-such-model", setting=Setting(codecs=("int3",)))
