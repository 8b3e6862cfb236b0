"""GGUF files as transformers loads them: a copy in safetensors, converted once.

It lies in the cache folder (`GRITRAG_CACHE`, else `~/.cache/gritrag`): parsing a GGUF file takes twenty seconds,
loading the converted copy less than one.
"""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gritrag.folders import cache_folder, give_usual_rights
from gritrag.model.inner_errors import INNER_ERRORS, told

if TYPE_CHECKING:
    from gritrag.model.gguf_file import GgufFile

logger = logging.getLogger(__name__)

GGUF_COPIES = "gguf-2"
"""Folder of converted files in the cache. Copies in `gguf` had lost how their rotary angles are scaled."""


def converted(gguf: Path, digest: str) -> Path:
    """The safetensors copy of a GGUF file, made on first use and complete or absent, never half there.

    Args:
        gguf: the file.
        digest: hash of the file.

    Raises:
        ValueError: it cannot be converted, or the copy cannot be written.
    """
    target = cache_folder() / GGUF_COPIES / digest
    if target.is_dir():
        return target
    from gritrag.model.gguf_file import GgufFile  # what parses them takes a quarter of a second to import

    file = GgufFile(gguf)
    logger.warning("converting %s once, to %s (about half a minute)", gguf.name, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / "model"
            lm, tokenizer = _read(file, gguf)
            lm.save_pretrained(made)
            tokenizer.save_pretrained(made)
            give_usual_rights(made)
            made.rename(target)
    except (OSError, SafetensorError) as error:
        if target.is_dir():  # another process was faster
            return target
        raise ValueError(
            f"{gguf} cannot be kept in {target.parent} as it was converted ({told(error)}); make room there, or let "
            "GRITRAG_CACHE name a folder that can be written to"
        ) from error
    return target


def _read(file: "GgufFile", gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What a GGUF file holds, in float32, no longer quantised.

    Raises:
        ValueError: transformers cannot read it.
    """
    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        file.correct(config)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        lm = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, config=config, dtype=torch.float32)
    except (OSError, *INNER_ERRORS) as error:
        raise ValueError(f"{gguf} cannot be converted: {told(error)}. Take the same model as safetensors") from error
    split = file.split_tokens(tokenizer)
    if split:
        logger.warning(
            "%s: %d tokens that its file calls whole are cut into pieces here, unlike in llama.cpp: %s",
            gguf.name,
            len(split),
            ", ".join(map(repr, split[:5])),
        )
    del lm.config.quantization_config  # the weights are no longer quantised
    lm.hf_quantizer = None  # type: ignore[assignment]
    return lm, tokenizer


def end_as_the_file_says(tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel) -> None:
    """Let the end token of a GGUF file's tokenizer be that of its model: transformers 5.17 took the token that begins a
    turn for it, and whatever ends with it ended in another token than the model has learnt."""
    said = lm.config.get_text_config().eos_token_id
    if isinstance(said, int) and tokenizer.eos_token_id != said:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said)
