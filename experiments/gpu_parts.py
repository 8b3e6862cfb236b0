"""Parts of a pack: cut where it was made, put together where it is used, which needs nothing but Python.

python experiments/gpu_parts.py build/gpu
"""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

MANIFEST, STAGE, ARCHIVE = "manifest.json", "stage", "pack.tar.xz"


def cut(archive: Path, folder: Path, part_bytes: int) -> list[str]:
    """Cut a file into parts in `folder`, with a manifest of their sizes and checksums; their names."""
    data = archive.read_bytes()
    parts = []
    for number, start in enumerate(range(0, len(data), part_bytes)):
        piece = data[start : start + part_bytes]
        name = f"part-{number}"
        (folder / name).write_bytes(piece)
        parts.append({"name": name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    (folder / MANIFEST).write_text(json.dumps(parts, indent=1), "utf-8")
    return [str(part["name"]) for part in parts]


def join(folder: Path) -> list[str]:
    """Unpack the parts of `folder` into its stage; the names of parts that are missing or broken, and then nothing is
    unpacked."""
    parts = json.loads((folder / MANIFEST).read_text("utf-8"))
    missing = [part["name"] for part in parts if not _is_whole(folder / part["name"], part["sha256"])]
    if missing or (folder / STAGE).is_dir():
        return missing
    archive, scratch = folder / ARCHIVE, folder / f"{STAGE}.new"
    with archive.open("wb") as file:
        for part in parts:
            file.write((folder / part["name"]).read_bytes())
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    scratch.rename(folder / STAGE)
    return []


def _is_whole(path: Path, checksum: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == checksum


if __name__ == "__main__":
    absent = join(Path(sys.argv[1]))
    print("still missing: " + ", ".join(absent) if absent else "all parts are there")
    sys.exit(1 if absent else 0)
