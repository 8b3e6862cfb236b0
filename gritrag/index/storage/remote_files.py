"""Files under URLs of fsspec, as sources of documents."""

import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec

from gritrag.documents.read import reason_to_refuse
from gritrag.documents.sources import Listing, Skipped, Source
from gritrag.index.storage.remote_states import OPTIONS, retried

__all__ = ["RemoteFile", "is_gone", "is_url", "list_remote"]


def is_url(path: str | Path) -> bool:
    """Whether it names a file system, as ``s3://bucket/notes`` does."""
    return isinstance(path, str) and "://" in path


class RemoteFile:
    """Opened as a path is: its bytes are fetched first, so that all that can go wrong on the way goes wrong there."""

    def __init__(self, url: str, size: int = 0) -> None:
        self._url = url
        self.st_size = size

    def stat(self) -> "RemoteFile":
        """What is known of it: ``st_size``, bytes."""
        return self

    def __str__(self) -> str:
        return self._url

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._url)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A temporary copy, which goes when it is closed.

        Raises:
            OSError: it cannot be had, after several attempts.
        """
        remote, path = _reached(self._url)
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it

        def fetch() -> None:
            file.seek(0)
            with remote.open(path, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)

        retried(fetch)
        file.truncate()
        file.seek(0)
        return file


def list_remote(url: str) -> Listing:
    """The file, or those of the folder, at a URL, in sorted order. Hidden, empty and unknown files are told.

    Raises:
        ValueError: there is nothing, or no such kind of URL.
        OSError: it cannot be listed.
    """
    remote, base = _reached(url)
    scheme = url.split("://")[0]
    found: dict[str, Any] = retried(lambda: remote.find(base, detail=True))
    if not found:
        raise ValueError(f"{url}: no such file or folder")
    root = base if base not in found else base.rpartition("/")[0]
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for path, facts in sorted(found.items()):
        name = path.removeprefix(root).lstrip("/")
        file = cast(Path, RemoteFile(f"{scheme}://{path}", facts["size"]))
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        reason = "hidden file" if hidden else reason_to_refuse(name) or ("" if facts["size"] else "empty file")
        if reason:
            skipped.append(Skipped(file, reason, "nothing"))
        else:
            sources.append(Source(file, name, f"{scheme}://{root}"))
    return Listing(sources, skipped)


def is_gone(root: str, name: str) -> bool:
    """Whether a file is no more, or empty. One that must not be looked at may still be there."""
    url = f"{root}/{name}" if is_url(root) else f"file://{root}/{name}"
    remote, path = _reached(url)
    remote.invalidate_cache()
    try:
        facts = retried(lambda: remote.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:
        return False
    return facts["type"] != "file" or not facts["size"]


def _reached(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url, **OPTIONS.get(url.split(":")[0], {}))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be reached: {error}; for s3:// install 'gritrag[s3]'") from error
