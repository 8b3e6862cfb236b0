"""Files on S3 (moto's server) as sources of documents: they are as they are now, not as they were when first seen."""

from pathlib import Path

import pytest
import s3fs
from object_store import empty_bucket, object_server

from gritrag.index.storage.remote_files import list_remote


def contents(url: str) -> dict[str, str]:
    found = {}
    for source in list_remote(url).sources:
        with source.path.open("rb") as file:
            found[source.name] = file.read().decode()
    return found


def test_files_that_change_while_we_run_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server() as server:
        empty_bucket(server, tmp_path, monkeypatch)
        other = s3fs.S3FileSystem(skip_instance_cache=True)  # as another machine would write
        for number in range(4):
            texts = {"same.txt": "x" * (number + 1), f"{number}.txt": "new"}
            for name, text in texts.items():
                other.pipe_file(f"bucket/notes/{name}", text.encode())
            found = contents("s3://bucket/notes")
            assert {name: found[name] for name in texts} == texts
            assert len(found) == number + 2


def test_a_file_that_is_replaced_between_listing_and_reading_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server() as server:
        empty_bucket(server, tmp_path, monkeypatch)
        other = s3fs.S3FileSystem(skip_instance_cache=True)
        for _ in range(2):
            other.pipe_file("bucket/notes/a.txt", b"old")
            (source,) = list_remote("s3://bucket/notes").sources
            other.pipe_file("bucket/notes/a.txt", b"new and longer")
            with source.path.open("rb") as file:
                assert file.read() == b"new and longer"
