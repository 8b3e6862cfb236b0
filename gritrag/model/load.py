"""From a name to a causal LM and its tokenizer: hub id, directory, GGUF file, installed package or checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import CHECKPOINT_FILE, CheckpointConfig
from gritrag.model import ternary
from gritrag.model.answerability import ANSWERABILITY_FILE, Answerability
from gritrag.model.gguf_copy import converted, end_as_the_file_says
from gritrag.model.identity import hash_files
from gritrag.model.inner_errors import INNER_ERRORS, told
from gritrag.model.names import locate, model_in
from gritrag.model.packed import round_to_half
from gritrag.model.retrieval_heads import RETRIEVAL_HEADS_FILE, RetrievalHeads
from gritrag.model.weight_copy import WeightCopy
from gritrag.prompts import CHATML, FITTED, GEMMA, GRITLM, INSTRUCT, PLAIN, TEMPLATES, Template, fitted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model as it came from disk, with what its fingerprint needs to know of the files.

    `parts` is the file of its parts; None where there is none, so that they begin untrained. `answerability` is None
    where nothing is calibrated for these weights, `retrieval_heads` where they are not known. `copy` is where the
    weights may be kept as they are now; None where they may not, or lie there.
    """

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: CheckpointConfig
    weights: str
    adapter: str
    parts: Path | None = None
    answerability: Answerability | None = None
    retrieval_heads: RetrievalHeads | None = None
    copy: WeightCopy | None = None

    def configured(self, name: str | Path, given: Mapping[str, Any]) -> CheckpointConfig:
        """How it reads, with the settings that were given where a checkpoint does not fix them.

        Raises:
            ValueError: `name` is a checkpoint, which fixes one of them to another value.
        """
        is_checkpoint = self.config.base != str(name)
        for key, value in given.items():
            fixed = getattr(self.config, key)
            if is_checkpoint and value != fixed:
                raise ValueError(f"checkpoint {name} fixes {key}={fixed!r}, so it cannot be {value!r}; leave it out")
        return CheckpointConfig.model_validate({**self.config.model_dump(), **given})


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
        base, folder, config = path, None, _bare_config(str(name), path)
    else:
        config = CheckpointConfig.load(path)
        beside = path / config.base  # a base inside the checkpoint's folder, or next to it
        base = model_in(beside) if beside.is_dir() else locate(config.base)
        folder = path / config.adapter if config.adapter is not None else None
    weights, adapter = hash_files(base), "none" if folder is None else hash_files(folder)
    copy = None
    if not trust_remote_code and device.type == "cpu":
        copy = WeightCopy((weights, adapter, str(dtype), "halved" if has_half_weights else ""))
    lm, tokenizer, is_copy = _load_base(base, weights, dtype, trust_remote_code, copy)
    if folder is not None and not is_copy:
        lm = _adapted(lm, folder, base)
    lm = _ready(lm, device, has_half_weights and not is_copy)
    if config.adapter is None and config.origin is not None and config.origin.files == weights:
        weights, adapter = config.origin.weights, config.origin.adapter
    parts = path / config.parts_file if config.parts_file else None
    answerability = _answerability(path / ANSWERABILITY_FILE, adapter, lm)
    heads_file = path / RETRIEVAL_HEADS_FILE
    heads = RetrievalHeads.load(heads_file) if heads_file.is_file() else None
    return Loaded(lm, tokenizer, config, weights, adapter, parts, answerability, heads, None if is_copy else copy)


def _adapted(lm: PreTrainedModel, folder: Path, base: Path) -> PreTrainedModel:
    """A base with the change of an adapter.

    Raises:
        ValueError: the adapter is broken, or was trained over another base.
    """
    if (folder / ternary.TERNARY).is_file():
        ternary.add(lm, folder / ternary.TERNARY)
        return lm
    from peft import PeftModel  # a quarter of a second, and hardly a model needs it

    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(lm, str(folder)).merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, *INNER_ERRORS) as error:
        raise ValueError(
            f"the adapter {folder} cannot be merged into {base} ({told(error)}); take the base that it was trained "
            "over, or fetch the adapter again"
        ) from error
    return merged


def _answerability(path: Path, adapter: str, lm: PreTrainedModel) -> Answerability | None:
    """What lies in a checkpoint's folder, unless it belongs to weights that lay there before.

    Raises:
        ValueError: it cannot be read, or was fitted to a model of another shape.
    """
    found = Answerability.load(path) if path.is_file() else None
    if found is not None and found.adapter != adapter:
        logger.warning("%s was fitted to another adapter: answers have no probability of being unanswerable", path)
        return None
    if found is not None:
        config = lm.config.get_text_config()
        found.check_shape(config.hidden_size, config.num_hidden_layers, path)
    return found


def _bare_config(name: str, path: Path) -> CheckpointConfig:
    """How a model that is no checkpoint of ours reads. GritLM's own (GritLM/GritLM-7B) are told by the code that their
    config names; what that code does, attention in two ways, is done here without it."""
    file = path / "config.json"
    classes = json.loads(file.read_text("utf-8")).get("auto_map", {}) if file.is_file() else {}
    if any("gritlm" in str(value).lower() for value in classes.values()):
        return CheckpointConfig(base=name, template=GRITLM.name, reading="bidirectional", pooling="mean")
    return CheckpointConfig(base=name)


def _ready(lm: PreTrainedModel, device: torch.device, is_rounded: bool) -> PreTrainedModel:
    if is_rounded:
        round_to_half(lm)
    lm.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    return lm.eval()


def _load_base(
    path: Path, weights: str, dtype: torch.dtype, trust_remote_code: bool, copy: WeightCopy | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """The model and its tokenizer; and whether its weights are those of the copy, adapted and rounded already."""
    directory = converted(path, weights) if path.is_file() else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        lm = None if copy is None else copy.load(directory, dtype)
        is_copy, missing = lm is not None, set[str]()
        if lm is None:
            lm, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                AutoModelForCausalLM.from_pretrained(
                    directory, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
                ),
            )
            missing = info["missing_keys"]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot load a causal language model from {path}: {error}") from None
    except torch.OutOfMemoryError:
        raise
    except (*INNER_ERRORS, StrictDataclassError) as error:
        lacks = not (directory / "tokenizer.json").is_file()
        remedy = "; it has no tokenizer.json: put the model's own tokenizer files beside its weights" if lacks else ""
        raise ValueError(
            f"transformers cannot load a causal language model from {path} ({told(error)}){remedy}"
        ) from error
    if path.is_file():
        end_as_the_file_says(tokenizer, lm)
    _drop_tokens_without_a_row(tokenizer, lm, path)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ValueError(f"{path} lacks weights that a causal language model of its kind has: {some}")
    return lm, tokenizer, is_copy


def _drop_tokens_without_a_row(tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel, path: Path) -> None:
    """Forget special tokens that the table of embeddings has no row for: transformers adds its own default ones to a
    tokenizer whose file names none, behind the last row.

    Raises:
        ValueError: there are tokens of plain text without a row.
    """
    rows = len(cast(torch.Tensor, lm.get_input_embeddings().weight))
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    markers = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if str(token).strip()}
    words = sorted(beyond - markers)
    if words:
        raise ValueError(
            f"the tokenizer of {path} has {rows + len(beyond)} tokens and the model {rows} embeddings: {words[0]!r} "
            "has none. They do not belong together; use the tokenizer that came with the model"
        )
    dropped = [name for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if getattr(tokenizer, name, None) in beyond]
    for name in dropped:
        setattr(tokenizer, name, None)
    logger.warning("%s: no embedding for %s; not used", path.name, ", ".join(map(repr, sorted(beyond))))


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
