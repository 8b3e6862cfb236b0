"""Typed contents of `gritrag.json`, and how recipes in YAML are read. An unknown key is an error.  No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FORMAT = 1
CHECKPOINT_FILE = "gritrag.json"
DEFAULT_MODEL = "gritrag-smollm2-135m"
SEARCH_MODE = "hybrid"
"""By vectors and by words; how a search goes unless it is told otherwise."""

DENSE_WEIGHT = 0.4
"""Of vectors against words in a hybrid search. CHANGELOG tells how it was chosen."""

RELEVANCE_BIAS = 8.0
"""Of the scores of a search in an answer from several states; see `RAG`. CHANGELOG tells how it was chosen."""

ReadingMode = Literal["causal", "bidirectional"]


class PartsConfig(BaseModel):
    """What is trained beside the language model; see `gritrag.model.parts`.

    Args:
        latents, latent_heads: of the pooling ``latent_attention``.
        projection: a linear layer brings vectors to this length; None for none.
        contextual_encoder: a BERT-style encoder (as `GritModel.from_pretrained` takes names), whose summary of a text
            is put before it as one token; empty for none.
        demonstrations: a query can be given up to this many example pairs as soft tokens; 0 for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latents: int = Field(512, ge=1)
    latent_heads: int = Field(8, ge=1)
    projection: int | None = Field(None, ge=1)
    contextual_encoder: str = ""
    demonstrations: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_soft_prompt(self) -> Self:
        if self.contextual_encoder and self.demonstrations:
            raise ValueError("a model has a contextual token or demonstrations, not both: leave one out")
        return self


class Origin(BaseModel):
    """What a model was read from before it was saved whole, so that its indexes know it again.

    Args:
        files: hash of the files that were written. Where they have been changed since, the rest does not hold.
        weights, adapter: as in the fingerprint of the model that was saved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: str
    weights: str
    adapter: str


class CheckpointConfig(BaseModel):
    """How a model reads: what a checkpoint fixes, and a bare model can be given.

    Args:
        base: name of the base model, as `GritModel.from_pretrained` takes it.
        adapter: folder of a LoRA adapter inside the checkpoint, or None.
        template: name of a prompt template, or ``"auto"`` to go by the tokenizer.
        pooling: name of a pooling, or several joined by ``+``; see `gritrag.model.pooling.Pooler`.
        reading: attention of the read pass.
        instruction: given to queries that come without one; empty for none.
        link_tokens: so many end tokens close each document, for its state to hold what they have seen of it.
        parts: what is trained beside the language model.
        parts_file: its weights inside the checkpoint, or None where there are none.
        origin: of a model that `GritModel.save_pretrained` wrote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    base: str = ""
    adapter: str | None = None
    template: str = "auto"
    pooling: str = "mean"
    reading: ReadingMode = "causal"
    instruction: str = ""
    link_tokens: int = Field(0, ge=0, le=64)
    parts: PartsConfig = PartsConfig()
    parts_file: str | None = None
    origin: Origin | None = None

    @classmethod
    def load(cls, directory: Path) -> "CheckpointConfig":
        """Read `gritrag.json`.

        Raises:
            ValueError: the file is broken, has an unknown key, or is of a later format.
        """
        path = directory / CHECKPOINT_FILE
        try:
            config = cls.model_validate_json(path.read_text("utf-8"))
        except ValidationError as error:
            raise ValueError(f"{path} is not a checkpoint that this version understands: {error}") from None
        if config.format > FORMAT:
            raise ValueError(f"{path} has format {config.format}, this version reads up to {FORMAT}; upgrade gritrag")
        return config

    def save(self, directory: Path) -> None:
        """Write `gritrag.json`; what a checkpoint does not have is left out."""
        plain = set() if self.parts_file else {"parts", "parts_file"}
        if not self.link_tokens:
            plain.add("link_tokens")  # earlier versions read checkpoints without any
        if self.origin is None:
            plain.add("origin")
        (directory / CHECKPOINT_FILE).write_text(self.model_dump_json(indent=2, exclude=plain) + "\n", "utf-8")


class Recipe(BaseModel):
    """Base of every part of a recipe: nothing unknown, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a recipe.

        Args:
            path: YAML file. Its key ``extends`` may list files beside it that it builds on: each is laid over those
                before it, group by group, and the file itself over all.
            overrides: such as ``lr=1e-4`` or ``data.tokens_per_step=900``; values are YAML.

        Raises:
            ValueError: unreadable file, an override without ``=``, an unknown key or a value out of its range.
        """
        fields = _fields(path)
        for override in overrides:
            _override(fields, override)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"{path}: {error}") from None


def _fields(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Keys and values of a recipe, over those of the recipes that it extends."""
    if path in extended_by:
        raise ValueError(f"{path} extends itself; take it out of extends")
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no recipe: it must hold keys and values, see configs/")
    extends = fields.pop("extends", [])
    below: dict[str, Any] = {}
    for name in [extends] if isinstance(extends, str) else extends:
        below = merged(below, _fields(path.parent / name, (*extended_by, path)))
    return merged(below, fields)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: groups key by key, everything else as a whole."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        result[key] = merged(below[key], value) if both else value
    return result


def _override(fields: dict[str, Any], override: str) -> None:
    """Put ``a.b=value`` into nested fields."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set takes key=value, such as lr=1e-4 or data.tokens_per_step=900; got {override!r}")
    *groups, last = key.strip().split(".")
    for group in groups:
        fields = fields.setdefault(group, {})
        if not isinstance(fields, dict):
            raise ValueError(f"--set {override}: {group} is a value, not a group of keys")
    try:
        fields[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: the value is no YAML ({error})") from None
