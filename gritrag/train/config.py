"""What a training recipe holds; its data and its objectives have files of their own. An unknown key is an error."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gritrag.config import PartsConfig, ReadingMode, Recipe, merged
from gritrag.train.data.config import DataConfig
from gritrag.train.objectives.config import ContrastiveConfig, GenerativeConfig, MaskedConfig, ViewsConfig


class StageConfig(Recipe):
    """A part of a run that differs from the rest in what is given here; groups are laid over the recipe's.

    Args:
        name: for the record.
        share: of the run's steps (and of its time, where that ends it), relative to the other stages.
        data, contrastive, generative, masked, views, lr, warmup_steps: as in `TrainConfig`.
    """

    name: str = ""
    share: float = Field(1.0, gt=0)
    data: dict[str, Any] = Field(default_factory=dict)
    contrastive: dict[str, Any] = Field(default_factory=dict)
    generative: dict[str, Any] = Field(default_factory=dict)
    masked: dict[str, Any] = Field(default_factory=dict)
    views: dict[str, Any] = Field(default_factory=dict)
    lr: float | None = Field(None, gt=0)
    warmup_steps: int | None = Field(None, ge=0)


class ValidationConfig(Recipe):
    """Small held-out samples that are looked at while training.

    Args:
        paths: files of question rows, relative to `DataConfig.data_dir`.
        documents: so many of each are read.
        answers: so many of their questions are answered, each from its own document and `distractors` others.
        distractors: see above.
        every: steps between two looks; 0 for never.
    """

    paths: tuple[str, ...] = ()
    documents: int = Field(48, ge=2)
    answers: int = Field(16, ge=1)
    distractors: int = Field(2, ge=0)
    every: int = Field(100, ge=0)


class AdapterConfig(Recipe):
    """The adapter that a checkpoint is shipped as.

    Args:
        method: ``full`` trains the weights themselves and extracts the adapter from their difference; ``lora`` trains a
            LoRA adapter.
        form: of an extracted adapter: ``lora``, by SVD; or ``ternary``, for changes of no low rank, which only GritRAG
            reads; see `gritrag.model.ternary`.
        quantisation_aware: share of the run, at its end, that computes with the weights that a ternary adapter will
            leave; see `gritrag.train.quantisation_aware`.
        rank: of every matrix of a LoRA adapter.
        alpha: scale of a trained adapter, over its rank.
        init: ``lora`` goes on with the adapter in this folder, such as an extracted one, instead of beginning anew.
        calibration_steps: an extracted adapter is the one nearest in what layers put out in this many steps of training
            data; with 0, the one nearest in the weights.
        embeddings: train the embeddings and norms too. An adapter of linear layers cannot carry them, so the whole
            model is written instead.
    """

    method: Literal["full", "lora"] = "full"
    form: Literal["lora", "ternary"] = "lora"
    quantisation_aware: float = Field(0.0, ge=0, le=1)
    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    init: str | None = None
    calibration_steps: int = Field(12, ge=0)
    embeddings: bool = False

    @model_validator(mode="after")
    def _quantises_ternary(self) -> Self:
        if self.quantisation_aware and (self.method, self.form, self.embeddings) != ("full", "ternary", False):
            raise ValueError(
                "adapter.quantisation_aware is of ternary adapters of full fine-tuning: method=full and form=ternary"
            )
        return self


class TrainConfig(Recipe):
    """A training recipe.

    Args:
        name: of the run; its files go into ``<runs_dir>/<name>/``.
        base: model to start from, as `GritModel.from_pretrained` takes it; ``model`` is another name for it.
        init: an earlier run to start from instead of the base's weights: ``.../weights.safetensors`` of its snapshot,
            or its checkpoint.
        average: other runs, named as in `init`: what is shipped is the mean of their weights and those of this run, of
            ``adapter.method=full``. A run that is done is shipped anew by the same command.
        reading, pooling, template, instruction, link_tokens, parts: what the checkpoint will fix; see
            `CheckpointConfig`.
        dtype: of the weights and of what the optimizer keeps.
        autocast: compute in bfloat16 on a GPU that does; on a processor with instructions for it, the products of
            linear layers.
        sharding: ``fsdp2``: of several processes each keeps a part of the language model; see `gritrag.train.sharding`.
        steps, seconds, tokens: the run ends at whichever comes first; the schedule goes by the same clock.
        stages: run one after the other, each with a schedule and an optimizer of its own; without any, the recipe is
            its only stage.
        lr, schedule, warmup_steps, min_lr_ratio, weight_decay, betas, max_grad_norm: AdamW. The schedule ends at
            ``min_lr_ratio * lr``.
        recompute: GradCache: read everything twice, keep the activations of one chunk only.
        chunk_tokens: documents and queries are read in chunks of this many tokens, padding included.
        answer_chunk_tokens: the same for answers, contexts included.
        checkpoint_seconds: between two checkpoints.
        keep: so many checkpoints are kept.
    """

    name: str
    base: str = "smollm2-135m"
    init: str | None = None
    average: tuple[str, ...] = ()
    reading: ReadingMode = "causal"
    pooling: str = "mean"
    template: str = "auto"
    instruction: str = ""
    link_tokens: int = Field(0, ge=0, le=64)
    parts: PartsConfig = PartsConfig()
    dtype: str = "float32"
    autocast: bool = True
    device: str = "auto"
    sharding: Literal["none", "fsdp2"] = "none"
    seed: int = 0
    runs_dir: str = "runs"
    steps: int = Field(400, ge=1)
    seconds: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, ge=1)
    stages: tuple[StageConfig, ...] = ()
    lr: float = Field(5e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(1.0, gt=0)
    recompute: bool = False
    chunk_tokens: int = Field(1024, ge=1)
    answer_chunk_tokens: int = Field(4096, ge=1)
    checkpoint_seconds: float = Field(600.0, gt=0)
    keep: int = Field(2, ge=1)
    data: DataConfig
    contrastive: ContrastiveConfig = ContrastiveConfig()
    generative: GenerativeConfig = GenerativeConfig()
    masked: MaskedConfig = MaskedConfig()
    views: ViewsConfig = ViewsConfig()
    validation: ValidationConfig = ValidationConfig()
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="before")
    @classmethod
    def _model_is_base(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "model" in fields:
            return {**{key: value for key, value in fields.items() if key != "model"}, "base": fields["model"]}
        return fields

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.parts.demonstrations and self.generative.p_question_state:
            raise ValueError("a query that is given demonstrations leaves no state to answer from: p_question_state=0")
        if self.average and self.adapter.method != "full":
            raise ValueError(
                "the mean of two LoRA adapters is not that of their changes: average=[] or adapter.method=full"
            )
        if self.adapter.quantisation_aware and self.sharding != "none":
            raise ValueError(
                "a weight that is sharded has no rows to round: adapter.quantisation_aware=0 or sharding=none"
            )
        self.in_stages()  # refuses a broken stage at once
        return self

    def in_stages(self) -> "tuple[TrainConfig, ...]":
        """The recipe of each stage, complete and without stages of its own."""
        if not self.stages:
            return (self,)
        recipe = self.model_dump(exclude={"stages"})
        own = [stage.model_dump(exclude={"name", "share"}, exclude_none=True) for stage in self.stages]
        return tuple(TrainConfig.model_validate(merged(recipe, fields)) for fields in own)
