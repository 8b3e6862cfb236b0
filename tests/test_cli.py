"""The command line: files go in, answers come out, and mistakes are told in one line."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pythons import TOO_DEEP
from typer.testing import CliRunner, Result

import gritrag
from gritrag import Document, Index, chunk_documents, render
from gritrag.cli import app, asking
from gritrag.cli.options import part_of_extra
from gritrag.evaluate import suite
from gritrag.model.grit import GritModel


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The ferry stops sailing at four.")
    (folder / "b.jsonl").write_text('{"text": "Owls click their beaks.", "id": "owl", "year": 1889}\n')
    (folder / "c.png").write_bytes(b"x")
    return folder


def run(*args: Any, stdin: str | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def built(texts: Path, tmp_path: Path, model_folder: str) -> tuple[str, ...]:
    """Options that name an index of two documents and the model it was built with."""
    options = ("--index", str(tmp_path / "index"), "--model", model_folder, "--dtype", "float32")
    run("index", texts, *options, "--states", "float32")
    return options


def test_indexing_again_reads_nothing_again_and_says_what_was_skipped(built: tuple[str, ...], texts: Path) -> None:
    result = run("index", texts, *built, "--json")
    report = json.loads(result.stdout)
    assert (report["added"], report["replaced"], report["skipped"], report["documents"]) == (0, 0, 2, 2)
    assert "left out 1 (unknown kind .png)" in result.stderr


def test_files_that_cannot_be_read_are_listed_at_the_end_and_stop_nothing(built: tuple[str, ...], texts: Path) -> None:
    (texts / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (texts / "rows.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (texts / "latin.txt").write_bytes(b"na\xefve")
    (texts / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (texts / "new.rst").write_text("A lamp burns in the window.")
    result = run("index", texts, *built, "--json")
    report = json.loads(result.stdout)
    assert (report["added"], report["skipped"], report["removed"]) == (2, 2, 0)
    reasons = {Path(each["path"]).name: each["reason"] for each in report["not_read"]}
    assert reasons.keys() == {"c.png", "broken.pdf", "rows.jsonl", "latin.txt", "half.jsonl"}
    assert reasons["broken.pdf"].startswith("it is broken")
    assert "line 2: not valid JSON" in reasons["rows.jsonl"]
    lines = result.stderr.splitlines()
    assert [Path(line.split(": ")[1]).name for line in lines if line.startswith("not read: ")] == [
        "broken.pdf",
        "half.jsonl",
        "latin.txt",
    ]
    assert [Path(line.split(": ")[1]).name for line in lines if line.startswith("read in part: ")] == ["rows.jsonl"]


@pytest.mark.parametrize("value", ["1e999", "1" + 400 * "0", 80 * "[" + 80 * "]", 900 * '{"a":' + "1" + 900 * "}"])
def test_a_row_with_metadata_that_no_index_holds_takes_no_other_with_it(
    value: str, built: tuple[str, ...], texts: Path
) -> None:
    rows = [
        '{"text": "One.", "id": "1"}',
        f'{{"text": "Two.", "id": "2", "x": {value}}}',
        '{"text": "Three.", "id": "3"}',
    ]
    (texts / "rows.jsonl").write_text("\n".join(rows))
    result = run("index", texts, *built, "--json")
    assert {"1", "3"} == set(held(built)) - {"a.txt", "owl"}
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("read in part: ")]
    assert "document '2' has metadata that no index holds" in told or "line 2: not valid JSON (" + TOO_DEEP in told


def test_a_file_that_cannot_be_read_any_more_keeps_what_it_gave(built: tuple[str, ...], texts: Path) -> None:
    before = held(built)
    (texts / "a.txt").write_bytes(b"na\xefve")
    run("index", texts, *built)
    assert held(built) == before


def test_nothing_that_can_be_read_is_an_error_that_says_why(tmp_path: Path, model_folder: str) -> None:
    (tmp_path / "a.pdf").write_bytes(b"no PDF")
    result = run("index", tmp_path / "a.pdf", "--index", tmp_path / "index", "--model", model_folder, code=2)
    assert "nothing to index" in result.stderr
    assert "it is no PDF" in result.stderr


def test_an_index_keeps_the_codec_it_was_made_with(built: tuple[str, ...], texts: Path) -> None:
    assert "stores states as 'float32', not 'bf16'" in run("index", texts, *built, "--states", "bf16", code=2).stderr
    run("index", texts, *built, "--states", "float32")


def test_a_changed_file_replaces_its_document(built: tuple[str, ...], texts: Path) -> None:
    (texts / "a.txt").write_text("The ferry stops sailing at five.")
    report = json.loads(run("index", texts, *built, "--json").stdout)
    assert (report["added"], report["replaced"], report["documents"]) == (0, 1, 2)


def test_long_texts_are_cut_into_chunks_and_a_shorter_version_leaves_no_ghosts(
    built: tuple[str, ...], texts: Path
) -> None:
    long = texts / "long.md"
    long.write_text("\n\n".join(f"Paragraph {n} says something about number {n}." for n in range(20)))
    first = json.loads(run("index", long, *built, "--chunk-size", 40, "--yes", "--json").stdout)
    assert first["added"] > 3
    long.write_text("Nothing more to say.")
    second = json.loads(run("index", long, *built, "--chunk-size", 40, "--yes", "--json").stdout)
    assert (second["added"], second["removed"], second["documents"]) == (1, first["added"], 3)


def held(options: tuple[str, ...]) -> dict[str, str]:
    with Index.open(options[1], model=None, mode="r") as index:
        return {document.id: document.text for document in index.get(list(index))}


def test_a_file_of_the_same_name_in_another_folder_is_another_file(
    built: tuple[str, ...], texts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.txt").write_text("Comes first.")
    (other / "a.txt").write_text("Another text of the same name.")
    before = held(built)
    run("index", other, *built)
    both = {**before, "other:0.txt": "Comes first.", "other:a.txt": "Another text of the same name."}
    assert held(built) == both
    run("index", other / "a.txt", *built)
    run("index", texts, *built)
    assert held(built) == both


def test_of_two_rows_with_one_id_the_index_keeps_its_own(built: tuple[str, ...], texts: Path, tmp_path: Path) -> None:
    """However often both are given, and in whatever order; nothing is lost on the way."""
    (texts / "rows.jsonl").write_text('{"text": "The old row.", "id": "x"}\n')
    run("index", texts, *built)
    before = held(built)
    assert before["x"] == "The old row."
    other = tmp_path / "another"  # comes first in the order of names
    other.mkdir()
    (other / "rows.jsonl").write_text('{"text": "The new row.", "id": "x"}\n{"text": "Beside it.", "id": "y"}\n')
    for places in ((texts, other), (other, texts), (other,)):
        told = run("index", *places, *built).stderr
        assert f"its id 'x' is that of a document in this index from {texts.name}; give each its own id" in told
        assert held(built) == {**before, "y": "Beside it."}


def test_a_shorter_file_of_the_same_name_elsewhere_takes_no_chunk_of_the_longer_one(
    built: tuple[str, ...], texts: Path, tmp_path: Path
) -> None:
    (texts / "n.md").write_text("\n\n".join(f"Paragraph {n} says something about number {n}." for n in range(9)))
    run("index", texts, *built, "--chunk-size", 40, "--yes")
    before = held(built)
    (tmp_path / "n.md").write_text("Short.")
    run("index", tmp_path / "n.md", *built)
    assert held(built) == {**before, f"{tmp_path.name}:n.md": "Short."}


def test_a_document_that_came_from_no_file_is_neither_replaced_nor_deleted(
    built: tuple[str, ...], texts: Path, model_folder: str
) -> None:
    model = GritModel.from_pretrained(model_folder, dtype="float32")
    with Index.open(built[1], model=model, mode="rw") as index:
        index.add([Document("Added by hand.", id="d.txt"), Document("By hand too.", metadata={"source_file": "a.txt"})])
    before = held(built)
    run("index", texts, *built)
    assert held(built) == before
    (texts / "d.txt").write_text("From a file.")
    assert "its name 'd.txt' is the id of a document in this index" in run("index", texts, *built, code=2).stderr
    assert held(built) == before


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_text("")], ids=["deleted", "emptied"])
def test_the_chunks_of_a_file_that_is_gone_or_empty_go_too(
    built: tuple[str, ...], texts: Path, change: Callable[[Path], object]
) -> None:
    change(texts / "b.jsonl")
    report = json.loads(run("index", texts, *built, "--json").stdout)
    assert (report["skipped"], report["removed"], report["documents"]) == (1, 1, 1)
    assert set(held(built)) == {"a.txt"}


def test_indexing_one_file_leaves_those_beside_it(built: tuple[str, ...], texts: Path) -> None:
    report = json.loads(run("index", texts / "a.txt", *built, "--json").stdout)
    assert (report["skipped"], report["removed"], report["documents"]) == (1, 0, 2)


def test_search_finds_and_filters(built: tuple[str, ...]) -> None:
    hits = json.loads(run("search", "owl beaks", *built, "-k", 9, "--mode", "hybrid", "--json").stdout)
    assert {hit["document"]["id"] for hit in hits} == {"a.txt", "owl"}
    (hit,) = json.loads(run("search", "ferry", *built, "--where", '{"year": {"$lt": 1900}}', "--json").stdout)
    assert hit["document"]["id"] == "owl"
    assert len(run("search", "ferry", *built).stdout.splitlines()) == 2


@pytest.mark.parametrize("mode", ["no-retrieval", "doc-query", "doc-cache"])
def test_ask_streams_what_json_holds(built: tuple[str, ...], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    question = ("ask", "When does the ferry stop?", *built, "--mode", mode, "--max-new-tokens", 8)
    answer = json.loads(run(*question, "--json").stdout)
    streamed = run(*question)
    assert streamed.stdout.strip() == answer["text"]
    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    assert run(*question).stdout.strip() == render.harmless(answer["text"])
    assert "first token" in streamed.stderr
    assert answer["mode"] == mode
    assert (answer["usage"]["cached_tokens"] > 0) == (mode == "doc-cache")


def test_ranking_and_reading_again_can_be_asked_for(built: tuple[str, ...]) -> None:
    ranked = json.loads(run("search", "ferry", *built, "-k", 2, "--rerank", 2, "--json").stdout)
    with Index.open(built[1], model=built[3], dtype="float32") as index:
        assert [hit["score"] for hit in ranked] == pytest.approx([h.score for h in index.search("ferry", 2, rerank=2)])
    question = ("ask", "When does the ferry stop?", *built, "-k", 2, "--max-new-tokens", 4, "--json")
    answer = json.loads(run(*question, "--rerank", 2, "--recompute", 1.0).stdout)
    assert answer["usage"]["cached_tokens"] == 0
    assert answer["exact"]
    assert "at least k" in run(*question, "--rerank", 1, code=2).stderr
    assert "recompute must be from 0" in run(*question, "--recompute", 2, code=2).stderr


def test_chat_answers_each_line_and_ends_with_the_input(built: tuple[str, ...]) -> None:
    result = run("chat", *built, "--max-new-tokens", 4, stdin=f"One?\n{'long ' * 9000}?\nTwo?\n")
    assert result.stderr.count("first token") == 2
    assert result.stderr.count("not answered: ") == 1


def test_estimate_stats_and_verify(built: tuple[str, ...], texts: Path) -> None:
    estimate = json.loads(run("estimate", texts, *built[2:], "--json").stdout)
    assert all(isinstance(value, int | float) for value in estimate.values())
    assert "2" in run("stats", *built[:2]).stdout
    checkup = json.loads(run("verify", *built[:2], "--json").stdout)
    assert checkup["problems"] == []


def test_verify_exits_with_1_on_damage_until_it_is_repaired(built: tuple[str, ...]) -> None:
    state = next((Path(built[1]) / "states").rglob("*.safetensors"))
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    run("verify", *built[:2], code=1)
    run("verify", *built[:2], "--repair")
    run("verify", *built[:2])


def test_copy_makes_an_index_that_answers(built: tuple[str, ...], tmp_path: Path) -> None:
    run("copy", tmp_path / "copy", *built[:2])
    assert json.loads(run("verify", "--index", tmp_path / "copy", "--json").stdout)["problems"] == []
    run("copy", tmp_path / "copy", *built[:2], code=2)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_work_on_an_index_shows_a_bar_at_a_terminal_and_never_in_json(
    built: tuple[str, ...], tmp_path: Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    def said(*args: str) -> str:
        monkeypatch.setattr(sys, "stderr", Terminal())
        app([*args, *built[:2]], standalone_mode=False)
        return sys.stderr.getvalue()

    for number, args in enumerate((("verify",), ("compact",), ("copy",))):
        target = [str(tmp_path / f"copy{number}")] * (args == ("copy",))
        assert ("vectors: 100%" in said(*args, *target)) == is_terminal
        if args != ("copy",):
            assert said(*args, "--json") == ""


def test_doctor_reports_machine_and_probes(model_folder: str, tmp_path: Path) -> None:
    findings = json.loads(run("doctor", "--folder", tmp_path, "--model", model_folder, "--json").stdout)
    assert "sqlite" in {finding["name"] for finding in findings}
    assert any(finding["name"].startswith("probe: ") for finding in findings)


def test_demo_answers_every_question_in_both_modes(model_folder: str, tmp_path: Path) -> None:
    options = ("--model", model_folder, "--dtype", "float32", "-k", 2, "--questions", 2, "--index", tmp_path / "demo")
    report = json.loads(run("demo", *options, "--json").stdout)
    assert [report[length]["summary"]["documents"] for length in ("short", "long")] == [2, 10]
    exchanges = [exchange for length in ("short", "long") for exchange in report[length]["exchanges"]]
    assert len(exchanges) == 4
    for exchange in exchanges:
        uncached, cached = exchange["uncached"], exchange["cached"]
        assert (uncached["mode"], cached["mode"]) == ("doc-query", "doc-cache")
        assert uncached["hits"] == cached["hits"]
        assert uncached["usage"]["cached_tokens"] == 0 < cached["usage"]["cached_tokens"]
    text = run("demo", *options).stdout
    assert text.count("doc-cache  ") == 4
    first, last = text.index("Short documents, 2"), text.index("Long documents, 10")
    assert first < last < text.index("2 documents, a context of") < text.index("10 documents, a context of")
    assert "gritrag index FOLDER" in text.splitlines()[-1]
    assert "2 questions" in text
    assert report["others"]["questions"] == 58
    assert "other 58 questions on short documents" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stats", "--index", "nowhere"], "nowhere"),
        (["index", "gone.txt", "--model", "MODEL"], "gone.txt: no such file or folder"),
        (["search", "q", "--where", "{year", "--model", "MODEL"], "--where is not valid JSON"),
        (
            ["search", "q", "--where", '{"a": {"$gt": 1}, "a": {"$lt": 9}}', "--model", "MODEL"],
            "'a' stands there twice",
        ),
        (["search", "q", "--where", "[1]", "--model", "MODEL"], "--where must be a JSON object"),
        (["search", "q", "--where", "null", "--model", "MODEL"], "--where must be a JSON object"),
        (["search", "q", "--where", '{"year": NaN}', "--model", "MODEL"], "--where is not valid JSON (NaN is no"),
        (["search", "q", "--where", "[" * 10**5, "--model", "MODEL"], "--where is not valid JSON (" + TOO_DEEP),
        (["search", "q", "--index", "nowhere", "--model", "no such model"], "there is no index at nowhere"),
        (["estimate", "pyproject.toml", "--model", "no such model"], "no such model"),
        (["train", "gone.yaml"], "gone.yaml"),
        (["demo", "--questions", "61", "--model", "MODEL"], "from 1 to 60, not 61"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    args: list[str], message: str, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*[model_folder if arg == "MODEL" else arg for arg in args], code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["stats", "--index", "nowhere"], "there is no index at nowhere"),
        (["search", "q", "-k", "0"], "Invalid value for '-k'"),
        (["search", "q", "--no-such"], "No such option"),
        (["search"], "Missing argument"),
        (["eval", "questions", "gone.jsonl"], "gone.jsonl"),
        (["search", "--index", "nowhere", "--", "--json"], ""),
    ],
)
def test_with_json_a_mistake_is_json_too(
    args: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args, *(["--json"] if told else []), code=2)
    assert (told in json.loads(result.stdout)["error"]) if told else result.stdout == ""
    assert result.stderr
    without = run(*args, code=2)
    assert (without.stdout, without.stderr) == ("", result.stderr)


QUESTION = '{"question": "When?", "passage": "At noon.", "answers": ["noon"]}'


@pytest.mark.parametrize("out", ["folder.json", "file/x.json"])
@pytest.mark.parametrize(
    "command",
    [
        ("mine", "q.jsonl", "OUT"),
        ("calibrate", "q.jsonl", "--out", "OUT"),
        ("eval", "questions", "q.jsonl", "--out", "OUT"),
        ("eval", "questions", "q.jsonl", "--answers", "OUT"),
        ("eval", "embedding", "q.jsonl", "--out", "OUT"),
        ("bench", "codecs", "--questions-file", "q.jsonl", "--out", "OUT"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_computed_for_it(
    command: tuple[str, ...], out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "q.jsonl").write_text(QUESTION)
    told = run(*[out if word == "OUT" else word for word in command], "--model", "no such model", code=2).stderr
    assert f"{out} cannot be written (" in told


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "questions", "q.json"),
        ("eval", "embedding", "q.json"),
        ("bench", "codecs", "--questions-file", "q.json"),
    ],
)
def test_what_is_read_is_not_written_over(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.json").write_text(f"[{QUESTION}]")
    assert "is a file that is read" in run(*command, "--model", model_folder, "--out", "./q.json", code=2).stderr
    assert (tmp_path / "q.json").read_text() == f"[{QUESTION}]"


def test_what_was_measured_is_printed_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(suite.Result, "save", fail)
    (tmp_path / "labels.jsonl").write_text("".join(f'{{"text": "a {n}", "label": "{n % 2}"}}\n' for n in range(8)))
    words = ("eval", "embedding", tmp_path / "labels.jsonl", "--model", model_folder, "--clusterings", 2)
    result = run(*words, "--json", "--out", tmp_path / "out.json", code=2)
    assert json.loads(result.stdout)["rows"]
    assert "out.json was not written" in result.stderr


def test_an_index_without_documents_is_refused(tmp_path: Path, model_folder: str) -> None:
    (tmp_path / "empty").mkdir()
    result = run("index", tmp_path / "empty", "--index", tmp_path / "index", "--model", model_folder, code=2)
    assert "nothing to index" in result.stderr
    assert not (tmp_path / "index").exists()


def test_debug_keeps_the_traceback() -> None:
    result = CliRunner().invoke(app, ["--debug", "search", "q", "--where", "{"])
    assert isinstance(result.exception, ValueError)


def test_the_index_remembers_its_model(texts: Path, tmp_path: Path, model_folder: str) -> None:
    where = ("--index", tmp_path / "index")
    run("index", texts, *where, "--model", model_folder)
    report = json.loads(run("index", texts, *where, "--json").stdout)
    assert (report["added"], report["skipped"]) == (0, 2)
    hits = json.loads(run("search", "owl beaks", *where, "--json").stdout)
    assert {hit["document"]["id"] for hit in hits} == {"a.txt", "owl"}
    answer = json.loads(run("ask", "When does the ferry stop?", *where, "--max-new-tokens", 2, "--json").stdout)
    assert answer["usage"]["cached_tokens"] > 0


def test_another_model_than_the_one_of_the_index_is_a_mismatch(
    built: tuple[str, ...], texts: Path, tmp_path: Path, make_model: Callable[..., GritModel]
) -> None:
    make_model("qwen2").save_pretrained(tmp_path / "other")
    other = ("--index", built[1], "--model", str(tmp_path / "other"))
    for command in (("search", "owl"), ("index", texts), ("ask", "owl?")):
        (line,) = run(*command, *other, code=2).stderr.splitlines()
        assert "was built by another reader" in line
        assert "weights" in line
        assert built[3] in line, "it names the model that it was built with"


def test_list_delete_and_compact(built: tuple[str, ...]) -> None:
    where = built[:2]
    lines = run("list", *where).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a.txt", "owl"]
    assert "The ferry stops" in lines[0]
    rows = [json.loads(line) for line in run("list", *where, "--where", '{"year": 1889}', "--json").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["owl"]
    assert len(run("list", *where, "--limit", 1).stdout.splitlines()) == 1
    run("delete", *where, code=2)
    with Index.open(built[1], mode="rw") as index:
        index.add(chunk_documents([Document("a word and " * 40, id="cut")], len, 100))
        chunks = sum(id.startswith("cut#") for id in index)
    assert json.loads(run("delete", "cut#1", *where, "--json").stdout) == {"deleted": 1, "documents": chunks + 1}
    assert json.loads(run("delete", "cut", *where, "--json").stdout) == {"deleted": chunks - 1, "documents": 2}
    assert json.loads(run("delete", "owl", "nobody", *where, "--json").stdout) == {"deleted": 1, "documents": 1}
    stray = Path(built[1]) / "states" / "ab" / "stray"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of a writer that died")
    left = json.loads(run("compact", *where, "--json").stdout)
    assert left["documents"] == 1
    assert left["bytes"]["states"] > 0
    assert not stray.exists()
    assert json.loads(run("delete", *where, "--where", "{}", "--json").stdout) == {"deleted": 1, "documents": 0}
    assert run("list", *where).stdout == ""


def test_a_document_that_is_deleted_while_documents_are_listed_is_left_out(
    built: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = Index.ids

    def ids_before_the_other(index: Index, where: Any = None) -> list[str]:
        found = ids(index, where)
        with Index.open(built[1], mode="rw") as other:
            other.delete(ids=["a.txt"])
        return found

    monkeypatch.setattr(Index, "ids", ids_before_the_other)
    assert [json.loads(line)["id"] for line in run("list", *built[:2], "--json").stdout.splitlines()] == ["owl"]


def test_it_says_its_version_and_runs_as_a_module() -> None:
    assert run("--version").stdout == f"gritrag {gritrag.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "gritrag", "--version"], capture_output=True, text=True)
    assert done.stdout == f"gritrag {gritrag.__version__}\n"


WITHOUT_EXTRAS = """
import sys
for library in ("fastapi", "mcp", "accelerate", "ray", "ir_measures", "opentelemetry"):
    sys.modules[library] = None
from typer.testing import CliRunner
from gritrag.cli import app
for line in sys.stdin.read().splitlines():
    done = CliRunner().invoke(app, line.split())
    print(done.exit_code, done.output.splitlines()[0])
"""


def test_a_command_whose_extra_is_missing_says_how_to_install_it() -> None:
    commands = ["serve", "mcp notes", "train recipe.yaml", "index notes --engine ray", "eval questions q.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], input="\n".join(commands), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    needs = ["gritrag serve needs fastapi", "gritrag mcp needs mcp", "training needs accelerate"]
    needs += ["--engine ray needs ray", "evaluation needs ir_measures"]
    extras = ["serve", "mcp", "train", "ray", "eval"]
    assert done.stdout.splitlines() == [
        f"2 error: {need}, which is not installed; run: pip install 'gritrag[{extra}]'"
        for need, extra in zip(needs, extras, strict=True)
    ]


def test_what_the_package_itself_lacks_is_no_matter_of_extras() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"gritrag\.nothing"):
        part_of_extra("nothing", "serve", "this")


def test_what_an_encoding_lacks_costs_no_output(tmp_path: Path, tiny_model: GritModel) -> None:
    """As that of a file on Windows; JSON says all of it in escapes."""
    document = Document("caf\u00e9 \u2192 \U0001f600", id="a")
    with Index.create(tmp_path / "index", model=tiny_model, states="none") as index:
        index.add([document])
    command = [sys.executable, "-m", "gritrag", "list", "--index", str(tmp_path / "index")]
    for options in ([], ["--json"]):
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        done = subprocess.run([*command, *options], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        printed = done.stdout.decode("latin-1")
        if options:
            assert json.loads(printed)["text"] == document.text
        else:
            assert printed == "a  caf\u00e9 ? ?\n"
