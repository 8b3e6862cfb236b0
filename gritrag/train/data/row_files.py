"""Rows as they are written, of a file, of a folder, or of a data set on the hub. What they say is read in `rows`."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from datasets import DownloadManager, StreamingDownloadManager, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.utils.file_utils import xopen

from gritrag.train.data.config import SourceConfig

HUB_NAME = re.compile(
    r"(?P<path>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<name>[\w.-]+))?(@(?P<revision>[\w.-]+))?(:(?P<split>[\w.]+))?"
)
"""``owner/name``, then, as far as they are given, configuration, revision and split, as `load_dataset` calls them."""

WHERE = (
    "data_dir is what paths are relative to (--set data.data_dir=FOLDER). docs/how-to/train.md says where the files of "
    "configs/default.yaml come from; configs/quickstart.yaml trains on a sample that needs none of them"
)

FILES = {".jsonl", ".json", ".parquet"}
COMPRESSED = {".gz", ".bz2", ".xz"}
SPLIT = "train"


def read_rows(path: Path, config: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row.

    Args:
        path: where `config.path` lies if it is a file or a folder. Where nothing is there, it is a name on the hub.
        config: the source.

    Raises:
        ValueError: no such file or data set, or a row that is no JSON object (file and line are named).
    """
    if path.suffix == ".parquet" and not path.exists():
        raise ValueError(f"there is no file {path}; {WHERE}")
    if path.suffix != ".parquet" and (path.is_file() or (path.suffix in FILES and not path.exists())):
        yield from _lines(path)
        return
    where, arguments = _data_set(path, config)
    number = 0
    try:
        for number, row in enumerate(_of_data_set(arguments), start=1):
            yield f"{where}, row {number}", _said(row)
    except (OSError, ValueError, DatasetsError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"{where} cannot be read behind row {number}: {told}; a path is a file or a folder of data files below "
            "data_dir, or a name on the hub, owner/name:split. Where the hub cannot be reached, download the data set "
            "into a folder and name that"
        ) from None


def _of_data_set(arguments: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Rows as they are written. JSON is read here: `datasets` makes times of texts that look like dates, and other
    texts of these (findings/datasets-rewrites-dates-in-json.sh)."""
    files = _json_files(arguments)
    if not files:
        yield from load_dataset(**arguments)
        return
    for file in files:
        with _opened(file) as lines:
            if _first_line(lines).startswith("["):
                yield from (_object(row, file) for row in json.loads(lines.read()))
            else:
                yield from (row for _, row in _rows(lines, file))


def _json_files(arguments: Mapping[str, Any]) -> list[str]:
    """The files of a split, as `datasets` chooses them, where each holds a list or a row in every line; else none.
    Those of the hub are kept in its cache, unless they are streamed."""
    where = {key: value for key, value in arguments.items() if key not in ("split", "streaming")}
    builder = load_dataset_builder(**where)
    if builder.name != "json" or builder.config.field is not None:
        return []
    files = [str(file) for file in (builder.config.data_files or {}).get(arguments["split"], ())]
    if not arguments["streaming"]:
        files = DownloadManager().download(files)
    return files if all(map(_is_plain, files)) else []


def _is_plain(file: str) -> bool:
    """Whether it is no archive, and not one object over many lines."""
    suffixes = Path(file).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (".json", ".jsonl", ".ndjson"):
        return False
    with _opened(file) as lines:
        first = _first_line(lines).strip()
    return first.startswith("[") or (first.startswith("{") and first.endswith("}"))


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """A file here or on the hub, as text."""
    with xopen(StreamingDownloadManager().extract(file), "rt", encoding="utf-8-sig") as lines:
        yield lines


def _first_line(lines: TextIO) -> str:
    """The first that is not empty; the file is at its beginning afterwards."""
    first = next((line for line in lines if line.strip()), "")
    lines.seek(0)
    return first.lstrip()


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its nulls: of a data set and of what is exported from one, each row has all columns, and those that
    it has nothing to say in are null."""
    return {key: value for key, value in row.items() if value is not None}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from _rows(lines, str(path))
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); {WHERE}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason}") from None


def _rows(lines: TextIO, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}, line {number}", _said(_json(line, f"{file}, line {number}"))


def _data_set(path: Path, config: SourceConfig) -> tuple[str, dict[str, Any]]:
    """Name of a data set, and what `load_dataset` is called with. What lies here is streamed: no copy is kept."""
    if path.is_file():
        return str(path), {"path": "parquet", "data_files": str(path), "split": SPLIT, "streaming": True}
    folder, split = path, SPLIT
    if not path.is_dir() and ":" in path.name:
        name, _, split = path.name.rpartition(":")
        folder = path.parent / name
    if folder.is_dir():
        return str(path), {"path": str(folder), "split": split, "streaming": True}
    match = HUB_NAME.fullmatch(config.path)
    if match is None:
        raise ValueError(
            f"{path} is no file and no folder, and {config.path!r} is no name on the hub, owner/name:split; "
            "data_dir is what paths are relative to"
        )
    named = {key: value for key, value in match.groupdict().items() if value is not None}
    # all of it is kept in the cache of `datasets`, for the next time; of a large one some rows are enough
    return config.path, {"split": SPLIT, **named, "streaming": config.max_rows is not None}


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: broken row: {error}") from None
    return _object(row, where)


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: broken row: a row must be an object, not {type(row).__name__}")
    return row
