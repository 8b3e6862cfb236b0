"""Identity: hashes of what a fingerprint is made of."""

import json
from pathlib import Path

import torch
import xxhash
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import CheckpointConfig
from gritrag.prompts import Template

HASHED_AT_ONCE = 1 << 20
"""Bytes: what has just been read is still in the processor's cache. 16 MB at a time took twice as long."""


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
    block = memoryview(bytearray(HASHED_AT_ONCE))
    for file in files:
        digest.update(file.name.encode() if len(files) > 1 else b"")
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(block):
                digest.update(block[:size])
    return digest.hexdigest()


def hash_parameters(lm: PreTrainedModel) -> str:
    """Identity of a model that came from no file."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(lm.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
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


def facts_of(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CheckpointConfig,
    template: Template,
    files: tuple[str, str],
) -> dict[str, str]:
    """What vectors and states depend on, but for trained parts. `files` are the identities of weights and adapter."""
    return {
        "weights": f"{files[0]}-{hash_config(lm)}",
        "adapter": files[1],
        "tokenizer": hash_tokenizer(tokenizer),
        "template": template.fingerprint,
        "pooling": config.pooling,
        "reading": config.reading,
    }
