"""What a training recipe holds, group by group. An unknown key is an error.  No torch."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gritrag.config import PartsConfig, ReadingMode, Recipe, merged


class SourceConfig(Recipe):
    """One file or data set of training rows.

    Args:
        path: JSONL, Parquet, or a folder of such files as `datasets` reads it (``folder:split`` for another split than
            ``train``), relative to `DataConfig.data_dir`. Where nothing lies there, a name on the hub: ``owner/name``,
            ``owner/name:split`` or, in full, ``owner/name/config@revision:split``; a revision keeps it as it is now.
        weight: share of the steps, relative to the other sources of its kind (questions or chats).
        max_rows: read no more than this many.
        in_batch_negatives: whether other documents of the batch are negatives; if not, only a row's own negatives are.
        instruction: given to its queries; the recipe's where None.
        neighbours: so many documents that follow each other in the file go into a batch together. Above 1, texts about
            the same thing become each other's negatives and distractors.
        merged: up to so many of those neighbours, a random number of them, become one document with all their
            questions, unless their titles differ: for files of single sentences. Of such a file, cross-batch memory
            keeps the last batch only.
        order: of the rows: as in the ``file``, or ``similar``: each is followed by one that shares rare words with it,
            for a file whose order says nothing.
        cloze_questions: so many questions a document are made of the document itself, other ones each time. They are
            answered, and never queries. See `gritrag.train.data.cloze`.
        literal_answers: drop answers that do not occur in their passage (for machine-made rows).
        split_sentences: each sentence of a passage becomes a document of its own, and the answer needs all of them: for
            passages that are lists of facts.
        label_negatives: of rows with a label: each gets so many rows of other labels as negatives of its own.
        augment: leave the file's questions aside; the queries of a passage are its own text, changed by each of these
            rules. See `gritrag.train.data.augment`.
    """

    path: str
    weight: float = Field(1.0, gt=0)
    max_rows: int | None = Field(None, ge=1)
    in_batch_negatives: bool = True
    instruction: str | None = None
    neighbours: int = Field(1, ge=1)
    merged: int = Field(1, ge=1)
    order: Literal["file", "similar"] = "file"
    cloze_questions: int = Field(0, ge=0)
    literal_answers: bool = False
    split_sentences: bool = False
    label_negatives: int = Field(1, ge=1)
    augment: tuple[Literal["noise", "rewrite", "translate"], ...] = ()

    @model_validator(mode="after")
    def _merges_neighbours(self) -> Self:
        if self.merged > self.neighbours:
            raise ValueError(
                f"{self.path}: merged is {self.merged}, but only {self.neighbours} neighbours come into a batch "
                f"together; set neighbours to {self.merged} or more"
            )
        return self


class DataConfig(Recipe):
    """What a step is made of.

    Args:
        sources: question sources, one of which each step draws from.
        chat: chat sources.
        data_dir: what paths are relative to; itself relative to the working directory.
        tokens_per_step: about so many tokens of documents and queries are read in a step.
        max_document_tokens: longer passages are cut, where their answers survive it.
        questions_per_document: at most so many, so that one reading serves several; made ones fill what is free.
        queries_per_document: at most so many of these are queries too, compared with vectors of documents; all where
            None.
        answers_per_step: at most so many questions are answered in a step; made ones fill what is free.
        p_title: share of documents that are read with their title.
        max_chat_tokens: longer chats are left out.
        word_noise: share of words that the rule ``noise`` of `SourceConfig.augment` drops, doubles or swaps.
        workers: processes that make steps ahead of their time. With 0 a step is made while the model waits: not to be
            seen on a processor, and much of the time on a fast device.
        translator: ``module:function`` for the rule ``translate``: a list of texts in, their back-translations out.
    """

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    chat: tuple[SourceConfig, ...] = ()
    data_dir: str = "data"
    tokens_per_step: int = Field(1800, ge=1)
    max_document_tokens: int = Field(300, ge=8)
    questions_per_document: int = Field(2, ge=1)
    queries_per_document: int | None = Field(None, ge=1)
    answers_per_step: int = Field(12, ge=1)
    p_title: float = Field(0.5, ge=0, le=1)
    max_chat_tokens: int = Field(512, ge=8)
    word_noise: float = Field(0.1, gt=0, lt=1)
    workers: int = Field(0, ge=0)
    translator: str = ""


class ContrastiveConfig(Recipe):
    """See `gritrag.train.objectives.losses.Contrastive`. A `weight` of 0 switches it off.

    Without `in_batch_negatives` a query is compared with its own documents only, whatever the sources say.

    `cross_batch_memory` documents of earlier steps are further negatives of queries that have in-batch ones; see
    `gritrag.train.objectives.cross_batch_memory`.
    """

    weight: float = Field(1.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    in_batch_negatives: bool = True
    false_negative_margin: float | None = 0.1
    matryoshka_dims: tuple[int, ...] = ()
    symmetric: bool = False
    cross_batch_memory: int = Field(0, ge=0)


class GenerativeConfig(Recipe):
    """See `gritrag.train.objectives.losses.Generative`. A `weight` of 0 switches it off.

    Args:
        weight: of its loss, against the contrastive one.
        contexts: ``placed``: answers are decoded over the states that the one reading left. ``full``: each context is
            read anew with its question, beside the reading for vectors: GritLM's two streams, to compare with.
            ``none``: answers are learnt from chats alone.
        weighting: per ``token`` or per ``sample`` of the step, or ``mixed``: per token within a chunk, chunks alike.
        documents_per_context: a context has one of these numbers of documents.
        p_near: share of contexts whose other documents are those that stand nearest in the batch, which are neighbours
            in the file; of the rest chance draws them.
        p_relevance_bias: share of contexts of several documents that share positions and have a relevance bias, as
            `gritrag.RAG` gives it, from random scores: the documents that are needed have the best ones in most.
        max_context_tokens: distractors that would make a context longer are left out.
        max_start: contexts start at a random position up to this one.
        p_unanswerable: share of questions whose own document is left out; the answer is then `not_found`.
        p_two_documents: share of questions that are asked together with one on another document: "A? And B?", with the
            answer "a and b". The context holds both documents.
        not_found: that answer.
        p_full: share of steps that read the same segments as one ordinary context, so that this stays good.
        p_chat: share of steps on plain chat.
        p_question_state: share of answers that reuse the state of their own query, before or behind the documents.
        quantise: codec whose loss placed states are given in training; empty for none. See `gritrag.train.quantise`.
        p_quantise: share of steps with placed states in which they are.
    """

    weight: float = Field(1.0, ge=0)
    contexts: Literal["placed", "full", "none"] = "placed"
    weighting: Literal["token", "sample", "mixed"] = "token"
    documents_per_context: tuple[int, ...] = Field((1, 2, 3, 5), min_length=1)
    p_near: float = Field(0.0, ge=0, le=1)
    p_relevance_bias: float = Field(0.0, ge=0, le=1)
    max_context_tokens: int = Field(1200, ge=8)
    max_start: int = Field(0, ge=0)
    p_unanswerable: float = Field(0.08, ge=0, le=1)
    p_two_documents: float = Field(0.0, ge=0, le=1)
    not_found: str = "not in the documents"
    p_full: float = Field(0.15, ge=0, le=1)
    p_chat: float = Field(0.05, ge=0, le=1)
    p_question_state: float = Field(0.0, ge=0, le=1)
    quantise: str = ""
    p_quantise: float = Field(0.5, ge=0, le=1)


class MaskedConfig(Recipe):
    """See `gritrag.train.objectives.losses.MaskedNextToken`. A `weight` of 0 switches it off."""

    weight: float = Field(0.0, ge=0)
    share: tuple[float, float] = (0.2, 0.8)
    mask: str = "_"


class ViewsConfig(Recipe):
    """See `gritrag.train.objectives.losses.Views`. A `weight` of 0 switches it off."""

    weight: float = Field(0.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    dropout: float = Field(0.1, gt=0, lt=1)


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
