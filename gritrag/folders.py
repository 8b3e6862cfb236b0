"""Folders that commands write to."""

from pathlib import Path


def check_new(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ValueError: it is there, and no empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not an empty folder; name another")
