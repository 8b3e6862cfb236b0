"""Rows of every kind are understood, from files and data sets; a broken one is refused with its file and line."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import Dataset
from datasets.packaged_modules.json.json import Json
from pythons import TOO_DEEP

from gritrag.train.data import row_files
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.rows import Passage, Question, read_source

Write = Callable[[Path, list[dict[str, Any]]], Path]


def read(path: Path, **settings: Any) -> tuple[list[Passage], list]:
    return read_source(path, SourceConfig(path=path.name, **settings))


def test_questions_of_one_passage_come_together_with_their_shortest_answer(tmp_path: Path, write: Write) -> None:
    rows = [
        {"question": "who?", "passage": "Ann came.", "answers": ["Ann herself", "Ann"], "title": "T"},
        {"question": "why?", "passage": "Bob left.", "answers": []},
        {"question": "came who?", "passage": "Ann came.", "answers": ["Ann"], "title": "T"},
    ]
    passages, chats = read(write(tmp_path / "a.jsonl", rows))
    assert chats == []
    assert [(p.text, p.title, [q.answer for q in p.questions]) for p in passages] == [
        ("Ann came.", "T", ["Ann", "Ann"]),
        ("Bob left.", "", [""]),
    ]


def test_retrieval_rows_plain_and_as_gritlm_writes_them(tmp_path: Path, write: Write) -> None:
    rows = [
        {"query": "q", "pos": ["p", "p2"], "neg": ["n1", "n2"], "instruction": "find"},
        {"query": ["told", "q"], "pos": [["", "p"]], "neg": [["", "n"]]},
    ]
    passages, _ = read(write(tmp_path / "a.jsonl", rows))
    assert passages == [
        Passage("p", "", (Question("q", "", "find", ("n1", "n2")), Question("q", "", "told", ("n",)))),
    ]


def test_rag_rows_have_their_answer_in_the_first_document(tmp_path: Path, write: Write) -> None:
    rows = [{"question": "q?", "documents": [{"text": "gold", "title": "G"}, "other"], "answers": ["a"]}]
    passages, _ = read(write(tmp_path / "a.jsonl", rows))
    assert passages == [Passage("gold", "G", (Question("q?", "a", None, ("other",)),))]


def test_chats_plain_and_as_gritlm_writes_them(tmp_path: Path, write: Write) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "good day"}]
    _, chats = read(write(tmp_path / "a.jsonl", [{"messages": messages}, {"text": ["hi", "good day"]}]))
    assert [list(chat.messages) for chat in chats] == [messages, messages]


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    Dataset.from_list([{"question": "q?", "passage": "p", "answers": ["a"], "title": ""}]).to_parquet(
        tmp_path / "a.parquet"
    )
    passages, _ = read(tmp_path / "a.parquet")
    assert passages == [Passage("p", "", (Question("q?", "a", None, ()),))]


def test_max_rows_and_literal_answers(tmp_path: Path, write: Write) -> None:
    rows = [{"question": f"{n}?", "passage": "Ann came.", "answers": [a]} for n, a in enumerate(("ANN", "Bob", "x"))]
    passages, _ = read(write(tmp_path / "a.jsonl", rows), max_rows=2, literal_answers=True)
    assert [q.answer for q in passages[0].questions] == ["ANN", ""]


def test_answers_of_several_passages_may_stand_in_any_of_them(tmp_path: Path, write: Write) -> None:
    rows = [
        {"question": f"{a}?", "documents": ["Ann", "Bob", "Cy"], "gold": [0, 1], "answers": [a]} for a in ["Bob", "Cy"]
    ]
    passages, _ = read(write(tmp_path / "a.jsonl", rows), literal_answers=True)
    assert [q.answer for q in passages[0].questions] == ["Bob", ""]


def test_a_mark_at_the_start_and_nulls_of_columns_say_nothing(tmp_path: Path) -> None:
    """As spreadsheets begin a file, and as data frames write rows of different kinds."""
    chat = {"messages": [{"role": "assistant", "content": "hi"}], "text": None, "label": None}
    question = {"question": "q?", "passage": "p", "answers": [], "documents": None, "gold": None, "title": None}
    for row, count in ((chat, (0, 1)), (question, (1, 0))):
        (tmp_path / "a.jsonl").write_text(json.dumps(row), "utf-8-sig")
        assert tuple(map(len, read(tmp_path / "a.jsonl"))) == count


GOOD = json.dumps({"question": "q?", "passage": "p", "answers": []})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "q?"', "delimiter"),
        ("[1]", "must be an object, not list"),
        ('{"question": "q?", "answers": []}', "lacks the key 'passage'"),
        ('{"question": "  ", "passage": "p", "answers": []}', "question must be a text that is not empty"),
        ('{"question": "q?", "passage": "p", "answers": "a"}', "answers must be a list, not str"),
        ('{"question": "q?", "passage": "p", "answers": [3]}', "an answer must be a text"),
        ('{"question": "q?", "passage": "p\\ud800", "answers": []}', "passage holds a lone surrogate at character 1"),
        ('{"question": "q?", "passage": "p", "answers": [], "title": 1999}', "title must be a text"),
        ('{"question": "q?", "documents": [{"text": "d", "title": 7}], "answers": []}', "title must be a text"),
        ('{"question": "q?", "passage": "p", "answers": [], "unanswerable": "false"}', "must be true or false"),
        ('{"query": "q", "pos": ["p"], "instruction": 3}', "an instruction must be a text"),
        ('{"query": "q", "pos": []}', "pos is empty"),
        ('{"query": ["i", "q", "x"], "pos": ["p"]}', "got 3 items"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "no turn of the assistant"),
        ('{"messages": [{"role": "user"}]}', "lacks the key 'content'"),
        ("[" * 100_000, "broken row: " + TOO_DEEP),
    ],
)
def test_a_broken_row_is_refused_by_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: broken row: ") as error:
        read(path)
    assert told in str(error.value)


def test_files_that_are_not_there_or_hold_nothing_or_both_kinds(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*gone.jsonl"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="there is no file"):
        read(tmp_path / "gone.parquet")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read(tmp_path / "latin.jsonl")
    both = [json.loads(GOOD), {"text": ["hi", "good day"]}]
    for rows in ([], both):
        with pytest.raises(ValueError, match="at least one"):
            read(write(tmp_path / "a.jsonl", rows))


# --- data sets --------------------------------------------------------------------------------------------------------


def row(text: str) -> dict[str, Any]:
    return {"question": f"{text}?", "passage": text, "answers": []}


def texts(data_dir: Path, name: str, **settings: Any) -> list[str]:
    return [passage.text for passage in read_source(data_dir / name, SourceConfig(path=name, **settings))[0]]


@pytest.fixture
def once_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> Callable[..., None]:
    """Puts rows into the cache of `datasets` as those of a data set on the hub, which cannot be reached."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(name: str, config: str, **splits: list[dict[str, Any]]) -> None:
        files = {split: [str(write(tmp_path / f"{split}.rows", rows))] for split, rows in splits.items()}
        own = name.split("/")[1]
        Json(str(cache), own, config, "0" * 40, data_files=files, config_id=config).download_and_prepare()
        (cache / own).rename(cache / name.replace("/", "___"))

    return put


def test_a_folder_is_a_data_set_with_splits(tmp_path: Path, write: Write) -> None:
    (tmp_path / "facts").mkdir()
    rows = [row("Ann came."), {"query": "q", "pos": ["Bob left."]}, row("Cem stayed.")]
    write(tmp_path / "facts" / "train.jsonl", rows)
    write(tmp_path / "facts" / "validation.jsonl", [row("Dee sang.")])
    assert texts(tmp_path, "facts") == texts(tmp_path, "facts:train") == ["Ann came.", "Bob left.", "Cem stayed."]
    assert texts(tmp_path, "facts", max_rows=2) == ["Ann came.", "Bob left."]
    assert texts(tmp_path, "facts:validation") == ["Dee sang."]


@pytest.mark.parametrize("as_list", [False, True])
def test_texts_of_a_folder_stay_what_they_are(tmp_path: Path, write: Write, as_list: bool) -> None:
    """`datasets` would make times of dates, and of numbers in them."""
    dates = ["1999-05-12", "1066-10-14", "2001-02-03T04:05:06"]
    rows = [{"question": f"{n}?", "passage": f"On {n}.", "answers": [date]} for n, date in enumerate(dates)]
    (tmp_path / "facts").mkdir()
    write(tmp_path / "facts" / "train.jsonl", rows)
    if as_list:
        (tmp_path / "facts" / "train.jsonl").unlink()
        (tmp_path / "facts" / "train.json").write_text(json.dumps(rows, indent=1))
    passages, _ = read(tmp_path / "facts")
    assert [passage.questions[0].answer for passage in passages] == dates


@pytest.mark.parametrize("kind", [".gz", ".bz2", ".xz"])
def test_compressed_files_of_a_folder_are_read_too(tmp_path: Path, kind: str) -> None:
    (tmp_path / "facts").mkdir()
    opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[kind]
    rows = [{**row(f"Ann came {n}."), "answers": ["1999-05-12"]} for n in range(3)]
    with opened(tmp_path / "facts" / f"train.jsonl{kind}", "wt") as file:
        file.write("".join(json.dumps(each) + "\n" for each in rows))
    passages, _ = read(tmp_path / "facts")
    assert [(each.text, each.questions[0].answer) for each in passages] == [
        (f"Ann came {n}.", "1999-05-12") for n in range(3)
    ]


@pytest.mark.parametrize("max_rows", [None, 3])
def test_texts_of_a_data_set_on_the_hub_stay_what_they_are(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, max_rows: int | None
) -> None:
    """Its files are those that `datasets` names, kept in the cache of the hub unless they are streamed."""
    there, kept = tmp_path / "there", tmp_path / "kept"
    dates = ["1999-05-12", "1066-10-14", "2001-02-03T04:05:06"]
    for folder, days in ((there, dates), (kept, dates[:2])):
        folder.mkdir()
        rows = [{"question": f"{n}?", "passage": f"On {n}.", "answers": [day]} for n, day in enumerate(days)]
        write(folder / "train.jsonl", [{"question": "a", "passage": "b", "answers": ["c"]}])
        write(folder / "test.jsonl", rows)

    def builder(path: str, name: str, revision: str) -> Any:
        assert (path, name, revision) == ("osk/facts", "old", "v2")
        return datasets.load_dataset_builder(str(there))

    class Cache:
        def download(self, files: list[str]) -> list[str]:
            return [str(kept / Path(file).name) for file in files]

    monkeypatch.setattr(row_files, "load_dataset_builder", builder)
    monkeypatch.setattr(row_files, "DownloadManager", Cache)
    passages, _ = read_source(
        tmp_path / "osk/facts/old@v2:test", SourceConfig(path="osk/facts/old@v2:test", max_rows=max_rows)
    )
    expected = dates if max_rows else dates[:2]
    assert [passage.questions[0].answer for passage in passages] == expected


def test_a_data_set_has_a_name_on_the_hub_unless_something_lies_there(
    tmp_path: Path, write: Write, once_loaded: Callable[..., None]
) -> None:
    once_loaded("osk/facts", "default", train=[row("Ann came."), row("Bob left.")], test=[row("Dee sang.")])
    once_loaded("osk/songs", "old", train=[row("Eve sang.")])
    assert texts(tmp_path, "osk/facts") == ["Ann came.", "Bob left."]
    assert texts(tmp_path, "osk/facts", max_rows=1) == ["Ann came."]
    assert texts(tmp_path, "osk/facts:test") == ["Dee sang."]
    assert texts(tmp_path, "osk/songs/old:train") == ["Eve sang."]
    (tmp_path / "osk" / "facts").mkdir(parents=True)
    write(tmp_path / "osk" / "facts" / "a.jsonl", [row("It lies here.")])
    assert texts(tmp_path, "osk/facts") == ["It lies here."]


def test_a_broken_row_of_a_data_set_is_refused_by_name_and_number(
    tmp_path: Path, write: Write, once_loaded: Callable[..., None]
) -> None:
    broken = [row("Ann came."), {"question": "q?", "answers": []}]
    once_loaded("osk/facts", "default", test=broken)
    (tmp_path / "facts").mkdir()
    write(tmp_path / "facts" / "train.jsonl", broken)
    for name in ("osk/facts:test", "facts"):
        with pytest.raises(ValueError, match=f"{name}, row 2: broken row: it lacks the key 'passage'"):
            texts(tmp_path, name)


def test_data_sets_that_cannot_be_had(tmp_path: Path, write: Write, once_loaded: Callable[..., None]) -> None:
    once_loaded("osk/facts", "default", train=[row("Ann came.")])
    (tmp_path / "facts").mkdir()
    for name in ("osk/gone", "osk/facts:gone", "osk/facts/gone:train", "facts"):
        with pytest.raises(ValueError, match=f"{name} cannot be read behind row 0: .* owner/name:split"):
            texts(tmp_path, name)
    write(tmp_path / "facts" / "train.jsonl", [row("Ann came.")])
    with pytest.raises(ValueError, match=r"facts:gone cannot be read behind row 0: .*gone"):
        texts(tmp_path, "facts:gone")
    for name in ("gone", "../gone/away", "osk/facts:"):
        with pytest.raises(ValueError, match=r"no file and no folder, and .* is no name on the hub"):
            texts(tmp_path, name)
