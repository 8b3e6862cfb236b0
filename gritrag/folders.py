"""Folders that commands write to, and what tells an index. No heavy import."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

FOR_OWNER = 0o600
"""Rights to read and write for the owner alone."""


def cache_folder() -> Path:
    """Where files are kept that can be made again: `GRITRAG_CACHE`, else `~/.cache/gritrag`.

    Raises:
        ValueError: neither is known, as in a container for a user that it does not know.
    """
    try:
        return Path(os.environ.get("GRITRAG_CACHE") or "~/.cache/gritrag").expanduser()
    except RuntimeError:
        raise ValueError("this user has no home folder; let GRITRAG_CACHE name one for what is kept") from None


def give_usual_rights(folder: Path) -> None:
    """Give weights in a folder, and in the folders in it, the rights of any file that is made there: those of the
    settings beside them.

    safetensors 0.8.0 writes files that nobody but their owner can read: a server that runs as another user could not
    load what was trained.
    """
    like = folder / f".rights-{os.getpid()}"
    like.touch()
    rights = like.stat().st_mode & 0o777
    like.unlink()
    for file in [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]:  # it may be a home folder
        if file.stat().st_mode & 0o777 == FOR_OWNER:
            with suppress(PermissionError):  # it is somebody else's
                file.chmod(rights)


def check_new(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ValueError: it is there, and no empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not an empty folder; name another")


def check_file(file: Path) -> None:
    """Refuse, before anything is computed for it, a file that cannot be written. Its folder is made if need be.

    Raises:
        ValueError: it is a folder, or its folder cannot be written.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): name another file") from error


def is_index(folder: Path) -> bool:
    """Whether there is an index to be gone on with."""
    return (folder / "manifest.json").exists()


def check_index(folder: Path) -> None:
    """Refuse to look for an index where none is, before a model is loaded for it.

    Raises:
        ValueError: there is none.
    """
    if not is_index(folder):
        raise ValueError(f"there is no index at {folder}: make one with `gritrag index FOLDER --index {folder}`")
