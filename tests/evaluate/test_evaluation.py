"""`gritrag eval questions FILE...`: several files in one run, bad ones among them, stopped and resumed."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from places import PLACES, QUESTION_ROWS
from typer.testing import CliRunner

from gritrag.answer import RAG
from gritrag.cli import app
from gritrag.evaluate import evaluation
from gritrag.evaluate.session import REPORT
from gritrag.evaluate.suite import FILE, Result
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.records import Document

OPTIONS = ["--dtype", "float32", "--questions", "3", "--distractors", "1", "-k", "2", "--max-new-tokens", "3"]
OPTIONS += ["--states", "float32"]


@pytest.fixture(scope="module")
def model_folder(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.lm.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A second file, one of whose questions has no answer."""
    rows = [
        {"question": f"Who lives in {p}?", "passage": f"A miller lives in {p}.", "answers": ["a miller"]}
        for p in PLACES
    ]
    rows[1] |= {"answers": [], "unanswerable": True}
    return written(tmp_path / "other.jsonl", rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["eval", "questions", *map(str, words), *OPTIONS])


def by_file(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Rows without their times and the name of their file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result.rows:
        cell = {key: value for key, value in row["cell"].items() if key != "file"}
        found.setdefault(row["cell"].get("file", ""), []).append({**row, "cell": cell, "first_token": 0})
    return found


def test_each_file_scores_as_it_does_alone_and_the_model_is_loaded_once(
    path: Path, other: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = evaluation.load_encoder
    monkeypatch.setattr(evaluation, "load_encoder", lambda name, *a: loads.append(name) or load(name, *a))
    told = run(path, other, "--model", model_folder, "--out", tmp_path / "both.json", "--answers", tmp_path / "a.jsonl")
    assert told.exit_code == 0, told.output
    assert loads == [model_folder]
    both = by_file(Result.load(tmp_path / "both.json"))
    assert list(both) == [path.name, other.name]
    for each in (path, other):
        assert run(each, "--model", model_folder, "--out", tmp_path / "one.json").exit_code == 0
        assert by_file(Result.load(tmp_path / "one.json"))[""] == both[each.name]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [path.name] * 3 + [other.name] * 3
    parts = [f"# {path.name}", "## Answers", f"# {other.name}", "# All files", "## Answers of all files"]
    places = [told.stdout.index(f"{part}\n") for part in parts]
    assert places == sorted(places), "each file's report, then what they say together"
    page = CliRunner().invoke(app, ["bench", "render", str(tmp_path / "both.json")])
    assert f"## {other.name}: Answers\n" in page.stdout
    assert "## Answers of all files\n" in page.stdout


def test_json_of_several_files_is_one_object(path: Path, other: Path, model_folder: str) -> None:
    told = run(path, other, "--model", model_folder, "--json", "--only", "retrieval")
    assert json.loads(told.stdout)["facts"]["files"] == [path.name, other.name]
    alone = run(path, "--model", model_folder, "--json", "--only", "retrieval")
    assert json.loads(alone.stdout)["facts"]["file"] == path.name
    assert all("file" not in row["cell"] for row in json.loads(alone.stdout)["rows"])


def test_bad_files_stop_no_other_and_are_told_first_and_last(
    path: Path, other: Path, model_folder: str, tmp_path: Path
) -> None:
    empty = written(tmp_path / "empty.jsonl", [])
    columns = written(tmp_path / "columns.jsonl", [{"text": "x", "label": "y"}])
    bad = [tmp_path / "none.jsonl", empty, columns]
    lines = tmp_path / "answers.jsonl"
    lines.touch()
    words = ("--model", model_folder, "--out", tmp_path / "out.json", "--answers", lines)
    told = run(*bad[:1], path, *bad[1:], other, *words)
    assert told.exit_code == 2
    early, _, late = told.stderr.rpartition("3 of 5 files could not be evaluated: ")
    for each, why in zip(bad, ("cannot read", "holds no rows", "lacks the key 'question'"), strict=True):
        assert f"{each.name}: " in late
        assert why in late
        assert why in early
    result = Result.load(tmp_path / "out.json")
    assert set(by_file(result)) == {path.name, other.name}
    assert list(result.facts["failed"]) == [each.name for each in bad]
    as_json = run(bad[0], path, "--model", model_folder, "--only", "retrieval", "--json")
    assert as_json.exit_code == 2
    assert list(json.loads(as_json.stdout)["facts"]["failed"]) == [bad[0].name]


def test_a_missing_file_is_told_before_a_model_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise ValueError("the model is loaded")

    monkeypatch.setattr(evaluation, "load_encoder", load)
    told = run(path, "none.jsonl", "--model", "configs/tiny/model")
    assert told.stderr.index("cannot read none.jsonl") < told.stderr.index("the model is loaded")
    assert "the model is loaded" not in run("none.jsonl", "nor-this.jsonl").stderr, "nothing is left to evaluate"


def test_what_goes_wrong_half_way_stops_no_other_file(
    path: Path, other: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing(monkeypatch, OSError("No space left on device"), after=8):
        told = run(path, other, "--model", model_folder, "--out", tmp_path / "out.json")
    assert told.exit_code == 2
    assert "1 of 2 files could not be evaluated: questions.jsonl: No space left" in told.stderr
    found = by_file(Result.load(tmp_path / "out.json"))
    assert [len(row["F1"]) for row in found[path.name] if "F1" in row] == [1] * 7, "what was answered is kept"
    assert [len(row["F1"]) for row in found[other.name] if "F1" in row] == [3] * 7


def test_files_without_answers_are_searched_among_others(path: Path, model_folder: str, tmp_path: Path) -> None:
    bare = written(tmp_path / "bare.jsonl", [{**row, "answers": []} for row in QUESTION_ROWS])
    told = run(path, bare, "--model", model_folder, "--out", tmp_path / "out.json")
    assert told.exit_code == 0, told.output
    result = Result.load(tmp_path / "out.json")
    assert {row["cell"]["part"] for row in by_file(result)[bare.name]} == {"retrieval"}
    assert result.facts["questions_answered"] == [3, 0]
    only = run(path, bare, "--model", model_folder, "--only", "answers")
    assert only.exit_code == 2
    assert "1 of 2 files could not be evaluated: bare.jsonl: no question chosen from" in only.stderr


def test_files_of_the_same_name_are_told_apart(path: Path, other: Path, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    twin = tmp_path / "more" / path.name
    twin.write_bytes(other.read_bytes())
    told = run(path, twin, path, "--model", model_folder, "--only", "retrieval", "--json")
    assert json.loads(told.stdout)["facts"]["files"] == [str(path), str(twin)]
    (tmp_path / "link.jsonl").symlink_to(path)
    same = run(path, path, tmp_path / "link.jsonl", "--model", model_folder, "--only", "retrieval", "--json")
    assert json.loads(same.stdout)["facts"]["file"] == path.name


def test_a_stopped_run_tells_what_it_has_and_goes_on_where_it_was(
    path: Path, other: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = tmp_path / "run", tmp_path / "answers.jsonl"
    words = [path, other, "--model", model_folder, "--folder", folder, "--answers", lines]
    whole = run(
        path, other, "--model", model_folder, "--out", tmp_path / "whole.json", "--answers", tmp_path / "w.jsonl"
    )
    assert whole.exit_code == 0
    per_question = 7
    with failing(monkeypatch, KeyboardInterrupt(), after=4 * per_question + 3):
        told = run(*words)
    assert told.exit_code == 130
    assert "stopped after 4 of 6 questions" in told.stderr
    stopped = Result.load(folder / REPORT)
    assert stopped.facts["stopped"] == "after 4 of 6 questions"
    counts = {name: {len(row["F1"]) for row in rows if "F1" in row} for name, rows in by_file(stopped).items()}
    assert counts == {path.name: {3}, other.name: {1}}
    assert f"# {other.name}\n" in told.stdout, "a file that is not done is told too"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as asked:
        told = run(*words)
    assert told.exit_code == 0
    assert asked.count == 2 * per_question, "only what was missing is asked"
    again, first = (by_file(Result.load(each)) for each in (folder / REPORT, tmp_path / "whole.json"))
    assert again == first
    assert "stopped" not in Result.load(folder / REPORT).facts
    assert lines_of(lines) == lines_of(tmp_path / "w.jsonl"), "answers of both runs are written"

    with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as asked:
        monkeypatch.setattr(Index, "add", None)  # nothing is read again
        assert run(*words).exit_code == 0
    assert asked.count == 0


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError("No space left"), 2)])
def test_a_file_of_which_nothing_is_known_yet_is_not_told(
    path: Path,
    other: Path,
    model_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
) -> None:
    add, calls = Index.add, []

    def failing_second(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return add(*args, **options)

    monkeypatch.setattr(Index, "add", failing_second)
    told = run(path, other, "--model", model_folder, "--folder", tmp_path / "run")
    assert told.exit_code == status, told.output
    assert f"# {other.name}\n" not in told.stdout
    assert "## Answers of all files\n" in told.stdout
    assert set(by_file(Result.load(tmp_path / "run" / REPORT))) == {path.name}


def test_a_second_model_goes_on_with_what_the_first_one_found(
    path: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twin").symlink_to(model_folder)
    words = [path, "--model", model_folder, "--compare", tmp_path / "twin", "--folder", tmp_path / "run"]
    with failing(monkeypatch, KeyboardInterrupt(), after=3 * 7 + 10):
        assert run(*words).exit_code == 130
    (one,) = {row["cell"]["model"] for row in Result.load(tmp_path / "run" / REPORT).rows}
    assert one == model_folder, "of a second model only whole files can be compared"
    kept = tmp_path / "run" / FILE
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    for row in rows:  # as if the first model had found them in another order
        if row["kind"] == "answered":
            row["record"]["contexts"]["retrieved"].reverse()
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(*words).exit_code == 0
    answers = [row for row in Result.load(tmp_path / "run" / REPORT).rows if row["cell"]["part"] == "answers"]
    assert {len(row["F1"]) for row in answers} == {3}
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    found = [row["record"]["contexts"]["retrieved"] for row in rows if row["kind"] == "answered"]
    assert found[:3] == found[3:], "both models answer from the same documents"


def test_what_another_model_found_is_not_taken_for_what_this_one_finds(
    path: Path, model_folder: str, make_model: Callable[..., GritModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that knows answers of a model that was compared has none of it alone, and the other way round."""
    other = make_model("qwen3")
    other.lm.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")

    def asked(*words: str | Path) -> int:
        with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as counted:
            assert run(path, *words, "--folder", tmp_path / "run", "--context", "retrieved").exit_code == 0
        return counted.count // 4

    pair = ("--model", model_folder, "--compare", tmp_path / "other")
    assert asked(*pair) == 6
    assert asked("--model", model_folder) == 0, "it found its own contexts"
    assert asked("--model", tmp_path / "other") == 3
    assert asked(*pair) == 0


def test_another_content_model_or_setting_is_measured_anew(
    path: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", model_folder, "--folder", tmp_path / "run", "--context", "retrieved"]

    def answers(*more: str) -> int:
        with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as asked:
            assert run(path, *words, *more).exit_code == 0
        return asked.count // 4

    assert [answers(), answers()] == [3, 0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    written(path, [{**row, "answers": ["otherwise"]} for row in rows])
    assert [answers(), answers()] == [3, 0]
    assert [answers("--relevance-bias", "2"), answers()] == [3, 0]


def test_one_context_can_be_left_out(path: Path, model_folder: str, tmp_path: Path) -> None:
    for context, absent in (("gold", "retrieved"), ("retrieved", "gold")):
        words = ("--context", context, "--only", "answers", "--out", tmp_path / "out.json")
        assert run(path, "--model", model_folder, *words).exit_code == 0
        ways = [row["cell"]["way"] for row in Result.load(tmp_path / "out.json").rows]
        assert f"doc-cache, {context}" in ways
        assert not any(absent in way for way in ways)


def test_an_index_is_asked_several_files(
    path: Path, other: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GritModel.from_pretrained(model_folder, dtype="float32")
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add([Document(row["passage"], id=f"{n}") for n, row in enumerate(QUESTION_ROWS)])
    words = [path, tmp_path / "none.jsonl", other, "--index", tmp_path / "index", "--folder", tmp_path / "run"]
    with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as asked:
        assert run(*words).exit_code == 2
        assert run(*words).exit_code == 2
    assert asked.count == 6 * 4, "the second run asks nothing"
    result = Result.load(tmp_path / "run" / REPORT)
    assert set(by_file(result)) == {path.name, other.name}
    assert "## Answers of all files\n" in result.render()
    with Index.open(tmp_path / "index", model=model, mode="rw") as index:
        index.add([Document("Another text.", id=f"{n}") for n in range(len(QUESTION_ROWS))], on_conflict="replace")
    with failing(monkeypatch, KeyboardInterrupt(), after=10**9) as asked:
        assert run(*words).exit_code == 2
    assert asked.count == 6 * 4, "answers from other documents are not those that are kept"
    refused = run(path, "--index", tmp_path / "index", "--context", "gold")
    assert "asked for what it finds" in refused.stderr


class Asked:
    """How many answers were asked for."""

    count = 0


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> Iterator[Asked]:
    """`RAG.ask` goes wrong, or the process is told to stop, instead of one answer."""
    asked, ask = Asked(), RAG.ask

    def counted(*args: Any, **options: Any) -> Any:
        asked.count += 1
        if asked.count == after:
            if isinstance(error, KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            raise error
        return ask(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RAG, "ask", counted)
        yield asked


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
