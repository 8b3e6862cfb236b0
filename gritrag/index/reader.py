"""The model that an index was built with, loaded by the name that its manifest holds.

Only this file of `index/` knows what loads a model. It gives back a `Reader`, so the rest of an index still sees none
but that: stores are tested with random arrays, and a model is loaded when something has to be read, not before.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from gritrag.index.protocol import Reader
from gritrag.index.storage.manifest import Manifest
from gritrag.model.grit import GritModel
from gritrag.records import FingerprintMismatch

__all__ = ["given_reader", "named_reader"]

REMEDY = "open it with model=, or --model: a loaded model, or the folder or name under which it can be had now"

_loaded: WeakValueDictionary[str, GritModel] = WeakValueDictionary()
_loading = threading.Lock()


def given_reader(model: Reader | str | Path, dtype: str = "auto", device: str = "auto") -> Reader:
    """A model as it was given, or loaded if that is its name.

    Raises:
        ValueError: no model of that name, or something that is neither model nor name.
    """
    if isinstance(model, str | Path):
        return _load({"name": str(model)}, dtype, device)
    if not hasattr(model, "fingerprint"):
        raise ValueError(f"model must be a loaded GritModel or the name of one, not {model!r}")
    return model


def named_reader(root: Path, manifest: Manifest, dtype: str = "auto", device: str = "auto") -> Reader:
    """The model that the manifest of the index at `root` names.

    Raises:
        FingerprintMismatch: what goes by that name now is another model; names the fields that differ.
        ValueError: it names none, or none that can be loaded here.
    """
    if not manifest.model:
        raise ValueError(f"the index at {root} does not know the name of its model, which came from memory: {REMEDY}")
    name = manifest.model["name"]
    try:
        model = _load(manifest.model, dtype, device)
    except ValueError as error:
        message = f"the index at {root} was built with the model {name!r}, which cannot be loaded: {error}; {REMEDY}"
        raise ValueError(message) from error
    try:
        manifest.check_model(model.fingerprint, root)
    except FingerprintMismatch as mismatch:
        message = f"{name!r} is not the model that the index was built with any more: {mismatch}"
        raise FingerprintMismatch(message, mismatch.fields) from None
    return model


def _load(arguments: Mapping[str, Any], dtype: str, device: str) -> GritModel:
    """Loaded once for all indexes that use it at the same time."""
    key = json.dumps([arguments, dtype, device], sort_keys=True)
    with _loading:
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = GritModel.from_pretrained(**arguments, dtype=dtype, device=device)
        return model
