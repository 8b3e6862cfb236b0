"""Parts: what is trained beside the language model, in a file of its own beside the adapter.

Which parts there are follows from the checkpoint's pooling and `PartsConfig`; a model whose pooling is plain has none.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import CheckpointConfig
from gritrag.model.identity import hash_files
from gritrag.model.names import ENCODERS, locate
from gritrag.model.pooling import Pooler
from gritrag.model.soft_prompts import ContextualToken, Slots, SoftToken, TextEncoder, embedding_scale, resolve
from gritrag.prompts import Template
from gritrag.tokens import Encoder

PARTS_FILE = "parts.safetensors"
FORMAT = "gritrag-parts-1"
PROJECTION = "pooler.projection.weight"
"""Name in that file of the layer behind the pooling, `[dim, D]`."""


class Parts(nn.Module):
    """Pooling, contextual token and projector of demonstrations of one checkpoint.

    Args:
        config: says which parts there are.
        lm: their sizes follow from it. If there is a contextual token, its embedding layer learns to resolve it.
        tokenizer: of the language model.
        template: must end texts with a control token where there is a contextual token.
        encoder: folder of the encoder of a contextual token, and its identity.

    Raises:
        ValueError: parts that do not go with the model or the template.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        encoder: tuple[Path, str] | None = None,
    ) -> None:
        super().__init__()
        hidden = int(lm.config.get_text_config().hidden_size)
        self.slots = Slots(lm)
        self._encoder_hash = encoder[1] if encoder else ""
        self.contextual: ContextualToken | None = None
        self.demonstrations: SoftToken | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a bare model with the same parts is the same model
            self.pooler = Pooler(config.pooling, hidden, config.parts)
            if encoder:
                end_id = _end_id(template, tokenizer)
                text_encoder = TextEncoder(encoder[0], lm.device)
                scale = embedding_scale(lm)
                self.contextual = ContextualToken(text_encoder, tokenizer, end_id, hidden, scale)
            if config.parts.demonstrations:
                self.demonstrations = SoftToken(self.pooler.dim, hidden, embedding_scale(lm))
        self.to(lm.device)
        if self.contextual is not None:
            resolve(lm, self.contextual, self.slots)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to train, to save or to tell apart."""
        return not self.state_dict()

    @property
    def identity(self) -> str:
        """Hash of all tensors and of the encoder, for the fingerprint."""
        digest = xxhash.xxh3_128(self._encoder_hash.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write all tensors, as `load` reads them."""
        save_parts(self.state_dict(), path)

    def load(self, path: Path) -> None:
        """Put saved tensors in.

        Raises:
            ValueError: no such file, one of another format, or of parts of other names or sizes.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("format")
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read the parts of a checkpoint from {path}: {error}") from None
        if found != FORMAT:
            raise ValueError(f"{path} has format {found!r}, this version reads {FORMAT!r}")
        own = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        theirs = {name: list(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(own.keys() | theirs.keys()):
            if own.get(name) != theirs.get(name):
                raise ValueError(
                    f"{path} does not fit its gritrag.json: {name} is {theirs.get(name, 'absent')}, "
                    f"expected {own.get(name, 'no such part')}"
                )
        self.load_state_dict(tensors)


def save_parts(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write what `Parts.load` reads."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": FORMAT})


def load_parts(
    config: CheckpointConfig,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    file: Path | None,
) -> Parts:
    """The parts that the config names, with the weights in `file` where there is one."""
    encoder = None
    if config.parts.contextual_encoder:
        folder = locate(config.parts.contextual_encoder, ENCODERS)
        encoder = folder, hash_files(folder)
    parts = Parts(config, lm, tokenizer, template, encoder)
    if file is not None:
        parts.load(file)
    return parts.requires_grad_(False)


def _end_id(template: Template, tokenizer: PreTrainedTokenizerBase) -> int:
    encoder = Encoder(tokenizer)
    ids = encoder.scaffold_ids(template.end)
    if len(ids) != 1 or ids[0] not in encoder.control_ids:
        raise ValueError(
            f"a contextual token needs a template that ends texts with a control token, and {template.name!r} ends "
            f"them with {template.end!r}: use template='instruct'"
        )
    return ids[0]
