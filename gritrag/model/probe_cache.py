"""What was proved of a model is kept, so that its next load on this machine takes half the time.

A proof holds for the very weights, settings, dtype, device, threads and libraries with which it was made, and for the
code that made it: all of these are the name under which it lies in the cache folder. Only models of which everything
works are kept; where something falls back or fails, it is asked again at every load.
"""

import json
import logging
from functools import cache
from pathlib import Path

import torch
import transformers
import xxhash
from transformers import PreTrainedModel

from gritrag.folders import cache_folder
from gritrag.model.attention import decoder_stack
from gritrag.model.caches import CacheShape
from gritrag.model.identity import hash_config
from gritrag.model.kernels import without_cudnn
from gritrag.model.probed import NAMES, Probe, Probed
from gritrag.model.probes import probe
from gritrag.model.rotation import Rotation
from gritrag.model.step import Step
from gritrag.processor import capabilities

logger = logging.getLogger(__name__)

FOLDER = "probes"


def probe_once(lm: PreTrainedModel, files: str) -> Probed:
    """What `probe` finds, or has found before.

    Args:
        lm: the model, ready to be used.
        files: identity of its weights: of all files that they were made from, and what was done to them.

    Raises:
        ValueError: see `probe`.
    """
    kept = cache_folder() / FOLDER / f"{_identity(lm, files)}.json"
    known = _restored(lm, kept)
    if known is not None:
        return known
    with without_cudnn(lm.device):
        found = probe(lm)
    if found.step is not None and all(each.outcome == "works" for each in found.probes):
        _keep(found, kept)
    return found


def _identity(lm: PreTrainedModel, files: str) -> str:
    facts = {
        "files": files,
        "config": hash_config(lm),
        "attention": lm.config.get_text_config()._attn_implementation,
        "modules": sorted({type(module).__qualname__ for module in lm.modules()}),
        "dtype": str(lm.dtype),
        "device": torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type,
        "processor": sorted(name for name, able in capabilities().items() if able is True),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__],
        "code": _code(),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


@cache
def _code() -> str:
    """Of the modules beside this one."""
    digest = xxhash.xxh3_128()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _keep(found: Probed, file: Path) -> None:
    assert found.shape is not None
    assert found.step is not None
    written = {
        "probes": [[each.name, each.outcome, each.detail] for each in found.probes],
        "attention": found.attention,
        "shape": [found.shape.layers, found.shape.heads, found.shape.head_dim],
        "guesses_freely": found.step.guesses_freely,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{id(found)}")
        scratch.write_text(json.dumps(written), encoding="utf-8")
        scratch.replace(file)
    except OSError as error:  # it is asked again at the next load
        logger.debug("what was proved is not kept: %s", error)


def _restored(lm: PreTrainedModel, file: Path) -> Probed | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        probes = tuple(Probe(*each) for each in kept["probes"])
        layers, heads, head_dim = kept["shape"]
        attention, guesses_freely = str(kept["attention"]), bool(kept["guesses_freely"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or broken: asked again, and written anew
        return None
    if tuple(each.name for each in probes) != NAMES:
        return None
    step = Step(lm)
    step.guesses_freely = guesses_freely
    shape = CacheShape(int(layers), int(heads), int(head_dim), lm.dtype, lm.device)
    return Probed(probes, attention, Rotation(decoder_stack(lm)), shape, step)
