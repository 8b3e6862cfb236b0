"""`gritrag index`: one stream with one bar, said before it starts, resumed where it was stopped; nothing is silent."""

import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gritrag import Document, GritModel, Index, tokens
from gritrag.chunks import PART, Cutting, read_files
from gritrag.cli import app, indexing, options
from gritrag.documents.sources import list_sources
from gritrag.forecast import Forecast, choose_storage, forecast, free_bytes
from gritrag.progress import ReadingBar
from gritrag.tokens import chunk_documents

WORDS = ("ferry", "owl", "harbour", "lamp", "baker", "winter", "four", "smith", "island", "storm")
FILES, CHUNK = 12, 40


def prose(seed: int, sentences: int) -> str:
    words = random.Random(seed)
    return "\n\n".join(f"The {' '.join(words.choices(WORDS, k=5))} of {n}." for n in range(sentences))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """About two hundred chunks in a dozen files."""
    (tmp_path / "texts").mkdir()
    for number in range(FILES):
        (tmp_path / "texts" / f"{number}.md").write_text(prose(number, 17))
    return tmp_path / "texts"


def run(*args: Any, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def command(folder: Path, tmp_path: Path, model_folder: str) -> tuple[str, ...]:
    where = ("--index", str(tmp_path / "index"), "--model", model_folder, "--dtype", "float32", "--json")
    return ("index", str(folder), *where)


def stored(tmp_path: Path) -> dict[str, str]:
    if not (tmp_path / "index" / "manifest.json").exists():
        return {}
    with Index.open(tmp_path / "index") as index:
        return {id: index[id].text for id in index}


# --- one stream ------------------------------------------------------------------------------------------------------


class Stop:
    """A function that is interrupted at its n-th call, as Ctrl-C does."""

    def __init__(self, function: Callable[..., Any], calls: int) -> None:
        self.function, self.calls = function, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("where", "name", "calls", "is_started"),
    [
        (indexing, "load_model", 0, False),
        (tokens, "_cut", 3, False),
        (tokens, "_cut", 20, True),
        (GritModel, "read_documents", 2, True),
    ],
    ids=["loading the model", "cutting the first", "cutting a later one", "reading"],
)
def test_whoever_stops_it_is_told_how_to_go_on_and_nothing_is_read_twice(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    calls: int,
    is_started: bool,
) -> None:
    options = ("--chunk-size", CHUNK, "--states", "float32")
    with monkeypatch.context() as patch:
        stop = Stop(getattr(where, name), calls)
        patch.setattr(where, name, lambda *args, **kwargs: stop(*args, **kwargs))
        result = run(*command, *options, code=indexing.INTERRUPTED)
    assert "give the same command to go on" in result.stderr
    before = stored(tmp_path)
    assert bool(before) == is_started
    assert ("What was read is stored" in result.stderr) == (tmp_path / "index" / "manifest.json").exists()
    report = json.loads(run(*command, *options).stdout)
    whole = stored(tmp_path)
    assert (report["added"], report["skipped"]) == (len(whole) - len(before), len(before))
    assert len(whole) > 2 * PART
    assert before.items() <= whole.items()
    assert {id.split("#")[0] for id in whole} == {f"{number}.md" for number in range(FILES)}


def test_the_first_chunks_are_stored_before_the_last_file_is_cut(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    read, cut = GritModel.read_documents, tokens._cut

    def reading(self: GritModel, documents: Sequence[Any], **options: Any) -> Any:
        events.append("read")
        return read(self, documents, **options)

    def cutting(*args: Any) -> Any:
        events.append("cut")
        return cut(*args)

    monkeypatch.setattr(GritModel, "read_documents", reading)
    monkeypatch.setattr(tokens, "_cut", cutting)
    run(*command, "--chunk-size", CHUNK)
    first_read = events.index("read")
    assert "cut" in events[first_read:]


def test_parts_of_a_file_are_its_chunks_and_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(prose(0, 300))
    (tmp_path / "gone.jsonl").write_text("no row\n")
    sources = list_sources([tmp_path]).sources
    parts = list(read_files(sources, len, Cutting(CHUNK)))
    assert [part.source.name for part in parts if part.is_last] == ["gone.jsonl", "long.txt"]
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert max(len(part.chunks) for part in parts) == PART
    whole = list(chunk_documents([Document(prose(0, 300), id="long.txt")], len, CHUNK))
    assert [chunk.text for part in parts for chunk in part.chunks] == [chunk.text for chunk in whole]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), overlap=st.sampled_from([0, 10]))
def test_a_long_text_is_cut_window_by_window_as_it_would_be_whole(seed: int, overlap: int) -> None:
    document = Document(prose(seed, 60) + "x" * (seed % 900), id="a")
    whole = list(chunk_documents([document], len, CHUNK, overlap))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "WINDOW", 700)
        pieces = list(chunk_documents([document], len, CHUNK, overlap))
    assert pieces == whole
    for chunk in pieces:
        assert document.text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_says_documents_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ReadingBar(1000, 4) as bar:
        bar.say("loading the model")
        shown = sys.stderr.getvalue()
        bar.advance(500, 2, 30, 6000, 3.0)
    assert "loading the model" in shown
    last = sys.stderr.getvalue().split("\r")[-1]
    assert all(part in last for part in ("50%", "2/4 files", "30 documents", "2,000 tokens/s", "left"))


def test_files_that_are_known_already_say_nothing_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed half-way: what passes in no time is no measure, and the last file is not either."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ReadingBar(1000, 8) as bar:
        bar.advance(500, 4, 30, 0, 0.0)
        known = sys.stderr.getvalue().split("\r")[-1]
        bar.advance(90, 1, 30, 6000, 85.0)
        bar.advance(10, 1, 30, 600, 15.0)
    assert "? left" in known
    assert "06:40 left" in sys.stderr.getvalue().split("\r")[-1]


def test_where_there_is_no_terminal_a_line_is_written_from_time_to_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritrag.progress.EVERY", 0.0)
    with ReadingBar(1000, 4) as bar:
        bar.advance(250, 1, 30, 6000, 3.0)
    assert capsys.readouterr().err.startswith("25%: 1/4 files, 30 documents, 2,000 tokens/s, 0 min left\n")


# --- what an index remembers -----------------------------------------------------------------------------------------


def test_an_index_remembers_how_it_was_cut_and_asks_before_all_is_read_again(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*command, "--chunk-size", CHUNK, "--chunk-overlap", 4)
    before = stored(tmp_path)
    report = json.loads(run(*command).stdout)
    assert (report["added"], report["replaced"], report["removed"]) == (0, 0, 0)
    refused = run(*command, "--chunk-size", 60, code=2)
    assert "chunks of 40 tokens (overlap 4); with chunks of 60 (overlap 4)" in refused.stderr
    assert "pass --yes" in refused.stderr
    monkeypatch.setattr(options, "is_asked", lambda: True)
    assert "nothing was done" in run(*command, "--chunk-size", 60, code=1, stdin="n\n").stderr
    assert stored(tmp_path) == before
    run(*command, "--chunk-size", 60, stdin="y\n")
    assert len(stored(tmp_path)) < len(before)
    monkeypatch.undo()
    assert json.loads(run(*command).stdout)["added"] == 0
    run(*command, "--chunk-size", CHUNK, "--chunk-overlap", 4, "--yes")
    assert stored(tmp_path) == before


def test_what_was_said_of_text_files_is_remembered(command: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    (folder / "old.txt").write_bytes("süß".encode("latin-1"))
    run(*command, "--encoding", "latin-1")
    (folder / "old.txt").write_bytes("süßer".encode("latin-1"))
    run(*command)
    assert stored(tmp_path)["old.txt"] == "süßer"


@pytest.mark.parametrize("arguments", [("search", "q"), ("ask", "q"), ("stats",), ("list",), ("chat",)])
def test_an_index_that_is_not_there_is_told_before_a_model_is_loaded(
    arguments: tuple[str, ...], tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(GritModel, "from_pretrained", refuse)
    model = ("--model", model_folder) if arguments[0] in ("search", "ask", "chat") else ()
    result = run(*arguments, "--index", tmp_path / "nowhere", *model, code=2)
    assert "there is no index at" in result.stderr
    assert "gritrag index FOLDER --index" in result.stderr
    with pytest.raises(ValueError, match="there is no index at"):
        Index.open(tmp_path / "nowhere", model=model_folder)
    assert "no such file" in run("index", tmp_path / "gone", "--model", model_folder, code=2).stderr


# --- size ------------------------------------------------------------------------------------------------------------


def test_it_says_what_it_will_take_and_asks_where_that_is_much(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "ASK_BYTES", 1000)
    refused = run(*command, code=2)
    assert "12 files: about " in refused.stderr
    assert "of states (int8)" in refused.stderr
    assert "pass --yes to go on, or choose --states none" in refused.stderr
    assert not (tmp_path / "index").exists()
    monkeypatch.setattr(options, "is_asked", lambda: True)
    run(*command, code=1, stdin="n\n")
    assert not (tmp_path / "index").exists()
    run(*command, "--yes")
    with Index.open(tmp_path / "index") as index:
        assert index.stats()["codec"] == "int8"
    monkeypatch.undo()
    assert "0 files: about 0 tokens" in run(*command).stderr


def test_a_single_file_is_one_in_words() -> None:
    one = Forecast(1, 1, 47, 867, 3830, 0.0, "int8", None, 10**9)
    assert str(one).startswith("1 file: about 47 tokens in 1 document; 867 B of text")
    assert str(one._replace(files=0, documents=2000)).startswith("0 files: about 47 tokens in 2,000 documents; ")


def test_a_forecast_is_near_what_comes(tiny_model: GritModel, folder: Path, tmp_path: Path) -> None:
    sources = list_sources([folder]).sources
    cutting = Cutting(CHUNK)
    expected = forecast(tiny_model, sources, tiny_model.count_tokens, cutting, free_bytes(tmp_path / "a" / "b"))
    with Index.create(tmp_path / "index", model=tiny_model, states="int8") as index:
        for part in read_files(sources, tiny_model.count_tokens, cutting):
            index.add(part.chunks)
        stats = index.stats()
    assert expected.tokens == pytest.approx(stats["tokens"], rel=0.3)
    assert expected.documents == pytest.approx(stats["documents"], rel=0.2)
    assert expected.state_bytes == pytest.approx(stats["bytes"]["states"], rel=0.5)
    assert expected.seconds == 0


def test_minutes_are_measured_where_there_is_much_to_read(
    tiny_model: GritModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritrag.forecast.TIMED", 10)
    sources = list_sources([folder]).sources
    expected = forecast(tiny_model, sources, tiny_model.count_tokens, Cutting(CHUNK), free_bytes(tmp_path))
    assert expected.seconds > 0
    assert "tokens/s" in str(expected)


@pytest.mark.parametrize(
    ("free", "codec", "quota"), [(10**12, "int8", None), (2 * 10**9, "int4", None), (10**8, "int4", 5 * 10**7)]
)
def test_codec_and_quota_follow_from_the_free_disk(free: int, codec: str, quota: int | None) -> None:
    assert choose_storage(tokens=100_000, elements=11_520, free=free) == (codec, quota)


def test_a_quota_keeps_the_states_of_the_hot_part(command: tuple[str, ...], tmp_path: Path) -> None:
    run(*command, "--chunk-size", CHUNK, "--states", "float32", "--state-quota", "40kB")
    with Index.open(tmp_path / "index", mode="rw") as index:
        stats = index.stats()
        assert 0 < stats["states"] < stats["documents"]
        assert stats["bytes"]["states"] <= 40_000
        cold = next(document for id in index if index.load_states([document := index[id]]) == [None])
        for _ in range(5):
            state = index.load_states([cold])[0]
            if state is None:
                index.states_of([cold])  # a miss: read, and stored in the place of one that nobody asks for
        assert index.load_states([cold]) != [None]
    assert "has a quota of 40000 bytes" in run(*command, "--state-quota", "1GB", code=2).stderr


@pytest.mark.parametrize("is_there", [False, True], ids=["a new index", "one that is there"])
def test_what_another_process_stored_meanwhile_is_not_taken_for_free(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """The other one reads a folder with the same ids while this one loads its model; both believe to be the first."""
    (tmp_path / "others").mkdir()
    for place, text in (("texts", "Ours."), ("others", "Theirs.")):
        for number in range(FILES):
            (tmp_path / place / f"{number}.md").unlink(missing_ok=True)
        (tmp_path / place / "rows.jsonl").write_text(json.dumps({"text": text, "id": "x"}))
    if is_there:
        (tmp_path / "before").mkdir()
        (tmp_path / "before" / "first.txt").write_text("There before.")
        run("index", tmp_path / "before", *command[2:])
    theirs = ("index", tmp_path / "others", *command[2:])
    name = "open_index" if is_there else "load_model"
    load = getattr(indexing, name)

    def load_slowly(*args: Any) -> Any:
        monkeypatch.setattr(indexing, name, load)
        run(*theirs)
        return load(*args)

    monkeypatch.setattr(indexing, name, load_slowly)
    refused = run(*command, code=2)
    assert "another process wrote into" in refused.stderr
    assert stored(tmp_path)["x"] == "Theirs."
    assert json.loads(run(*theirs).stdout)["skipped"] == 1, "its root is known as before"
    assert "'x' is that of a document in this index" in run(*command, code=2).stderr
    assert stored(tmp_path)["x"] == "Theirs."
