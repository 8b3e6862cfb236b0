"""GritModel: one decoder-only language model that embeds, reads and generates.

Shape letters: `N` documents, `Q` queries, `B` batch, `T` tokens, `D` hidden.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import DEFAULT_MODEL, CheckpointConfig, PartsConfig, ReadingMode
from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.load import (
    halves_weights,
    hash_config,
    hash_parameters,
    hash_tokenizer,
    load,
    pick_device,
    pick_dtype,
)
from gritrag.model.probes import probe
from gritrag.model.prompt_builder import Dresser
from gritrag.model.soft_prompts import Prompt
from gritrag.model.state import DocumentState, Reading, RecordingCache
from gritrag.progress import ProgressBar
from gritrag.records import Document, Fingerprint
from gritrag.tokens import Batch, TokenIds, length_sorted_batches

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768, "mps": 8192}
"""A processor is busy with a thousand tokens, and more only fall out of its caches."""

NO_DEMONSTRATIONS = (
    "this model reads no demonstrations; train one that does (configs/recipes/epic.yaml), or leave the prompt out"
)


class GritModel(Dresser):
    """One causal LM that embeds (vectors), reads (vectors and states) and generates.

    Everything it computes with is fixed at construction, and nothing shared is written later: embedding and generating
    threads do not disturb each other.

    Args:
        lm: a causal LM in eval mode on its device.
        tokenizer: its tokenizer.
        config: how to read; see `CheckpointConfig`.
        weights, adapter: identities of the files for the fingerprint; hashed from memory where not given.
        parts: file of the weights of `config.parts`; they begin untrained where None.

    Raises:
        ValueError: the model cannot do what `config` asks; the probe that failed is named.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: CheckpointConfig | None = None,
        weights: str = "",
        adapter: str = "none",
        parts: Path | None = None,
    ) -> None:
        probed = probe(lm)
        if not probed.is_causal:
            raise ValueError(f"{lm.config.model_type} is no causal language model: {probed.probes[0].detail}")
        super().__init__(lm, tokenizer, probed, config or CheckpointConfig(), parts)
        bidirectional = self.config.reading == "bidirectional"
        if bidirectional and not probed.attention:
            raise ValueError(f"this model cannot read bidirectionally: {self.probes[0].detail}")
        self._attention = Attention(decoder_stack(lm), probed.attention if bidirectional else "causal")
        facts = {
            "weights": f"{weights or hash_parameters(lm)}-{hash_config(lm)}",
            "adapter": adapter,
            "tokenizer": hash_tokenizer(tokenizer),
            "template": self.template.fingerprint,
            "pooling": self.config.pooling,
            "reading": self.config.reading,
        }
        self.fingerprint = Fingerprint(facts if self.parts.is_empty else {**facts, "parts": self.parts.identity})

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        reading: ReadingMode | None = None,
        pooling: str | None = None,
        template: str | None = None,
        instruction: str | None = None,
        links: int | None = None,
        parts: PartsConfig | None = None,
        trust_remote_code: bool = False,
    ) -> "GritModel":
        """Load a model.

        Args:
            name: a built-in name (``gritrag-smollm2-135m``, ``smollm2-135m``), a hub id, a directory (transformers
                model or GritRAG checkpoint), a ``.gguf`` file, or an installed package that holds weights.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 where the hardware computes
                in it, else float32 with the weights of linear layers rounded to half precision.
            device: ``auto`` or a torch device.
            reading, pooling, template, instruction, links, parts: for a bare model; a checkpoint fixes them (see
                `CheckpointConfig`).
            trust_remote_code: run code that comes with a hub model. Off unless you ask.

        Raises:
            ValueError: unknown or broken model, or a setting that the checkpoint fixes otherwise.
        """
        where = pick_device(device)
        loaded = load(name, pick_dtype(dtype, where), where, trust_remote_code, halves_weights(dtype, where))
        asked = {
            "reading": reading,
            "pooling": pooling,
            "template": template,
            "instruction": instruction,
            "links": links,
            "parts": parts,
        }
        given = {key: value for key, value in asked.items() if value is not None}
        is_checkpoint = loaded.config.base != str(name)
        for key, value in given.items():
            fixed = getattr(loaded.config, key)
            if is_checkpoint and value != fixed:
                raise ValueError(f"checkpoint {name} fixes {key}={fixed!r}, so it cannot be {value!r}; leave it out")
        config = CheckpointConfig.model_validate({**loaded.config.model_dump(), **given})
        return cls(loaded.lm, loaded.tokenizer, config, loaded.weights, loaded.adapter, loaded.parts)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.parts.pooler.dim

    @property
    def state_elements_per_token(self) -> int:
        """Numbers in the state of one token: 2 * layers * heads * head dim; 0 where there are no states."""
        shape = self._shape
        if shape is None:
            return 0
        return 2 * shape.layers * shape.heads * shape.head_dim

    # --- vectors ----------------------------------------------------------------------------------------------------

    def encode_query(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        *,
        prompt: Prompt | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Vectors of queries.

        Args:
            texts: `Q` queries.
            instruction: the task, such as "Given a question, retrieve passages that answer it"; read, not pooled. The
                checkpoint's own where None; an empty string for none.
            prompt: demonstrations, from `fit_prompt`, with an instruction that holds where none is given here.
            batch_size: at most so many at a time.

        Returns:
            float32 `[Q, dim]`, L2-normalised.

        Raises:
            ValueError: a query is empty, no valid text, or too long.
        """
        if prompt is None:
            return self._vectors(self._query_prompts(texts, instruction), batch_size, show_progress_bar)
        self._check_demonstrations(len(prompt.vectors) // 2)
        prompts = self._query_prompts(texts, prompt.instruction if instruction is None else instruction)
        prompts = [self.parts.slots.with_demonstrations(p, len(prompt.vectors) // 2) for p in prompts]
        return self._vectors(prompts, batch_size, show_progress_bar, torch.from_numpy(prompt.vectors))

    def fit_prompt(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> Prompt:
        """Show the model some queries of a task with their documents (EPIC, Lin et al. 2026, abstract).

        Nothing is trained: the pairs are embedded, and their vectors stand before each query that is given the prompt.

        Args:
            pairs: a few `(query, document)`.
            instruction: of the task; the checkpoint's own where None.

        Raises:
            ValueError: the model has not learnt to read demonstrations, or not so many.
        """
        self._check_demonstrations(len(pairs))
        queries = self.encode_query([query for query, _ in pairs], instruction)
        documents = self.encode_document([document for _, document in pairs])
        vectors = np.stack([queries, documents], axis=1).reshape(-1, self.dim)
        return Prompt(self.config.instruction if instruction is None else instruction, vectors)

    def _check_demonstrations(self, pairs: int) -> None:
        most = self.config.parts.demonstrations
        if not most:
            raise ValueError(NO_DEMONSTRATIONS)
        if not 1 <= pairs <= most:
            raise ValueError(f"this model reads 1 to {most} demonstrations, got {pairs}")

    def encode_document(
        self, texts: Sequence[str | Document], *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> np.ndarray:
        """Vectors of documents, float32 `[N, dim]`, L2-normalised: those that `read_documents` gives.

        Raises:
            ValueError: a document is empty, no valid text, or longer than `max_document_tokens`.
        """
        return self._vectors(self._document_prompts(texts), batch_size, show_progress_bar)

    def similarity(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Cosine similarities, float32 `[Q, N]`."""
        return queries @ documents.T

    def _vectors(
        self,
        prompts: list[TokenIds],
        batch_size: int,
        show_progress_bar: bool,
        demonstrations: torch.Tensor | None = None,
    ) -> np.ndarray:
        vectors = np.empty((len(prompts), self.dim), dtype=np.float32)
        for rows, batch in self._batches(prompts, batch_size, show_progress_bar, "embedding"):
            with torch.no_grad():
                soft = None if demonstrations is None else demonstrations.repeat(len(rows), 1)
                vectors[rows] = self.read_batch(batch, demonstrations=soft).cpu().numpy()
        return vectors

    # --- readings ---------------------------------------------------------------------------------------------------

    def read_documents(
        self, texts: Sequence[str | Document], *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> list[Reading]:
        """Vector and state of each document from one forward pass, in the order given.

        States are in the model's dtype, on the processor. `encode_document` tells the errors.
        """
        return self._readings(self._document_prompts(texts), batch_size, show_progress_bar)

    def read_queries(
        self, texts: Sequence[str], instruction: str | None = None, *, batch_size: int = 32
    ) -> list[Reading]:
        """Vector and state of each query from one forward pass: what embeds a question can be answered from too.

        `encode_query` tells the arguments and the errors.
        """
        return self._readings(self._query_prompts(texts, instruction), batch_size, show_progress_bar=False)

    def _readings(self, prompts: list[TokenIds], batch_size: int, show_progress_bar: bool) -> list[Reading]:
        shape = self.shape  # refuses models that have no states
        readings: list[Reading | None] = [None] * len(prompts)
        for rows, batch in self._batches(prompts, batch_size, show_progress_bar, "reading"):
            cache = RecordingCache()
            with torch.no_grad():
                vectors = self.read_batch(batch, cache).cpu().numpy()
                states = cache.states(self.rotation, [prompts[row].ids for row in rows], self.config.reading)
            for row, vector, state in zip(rows, vectors, states, strict=True):
                readings[row] = Reading(vector, _to_processor(state) if shape.device.type != "cpu" else state)
        return [reading for reading in readings if reading is not None]

    def read_batch(
        self, batch: Batch, cache: RecordingCache | None = None, demonstrations: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The read pass itself: normalised vectors, float32 `[B, dim]`; keys and values are left in `cache`.

        Gradients flow where they are enabled; training calls this too.

        Args:
            demonstrations: `[S, dim]`, a vector for each slot of the batch, row by row.
        """
        hidden_BTD = self.hidden_states(batch, cache, demonstrations)
        return torch.nn.functional.normalize(self.parts.pooler(hidden_BTD, batch.pool_mask), dim=-1)

    def hidden_states(
        self, batch: Batch, cache: RecordingCache | None = None, demonstrations: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of the read pass, before pooling; see `read_batch`."""
        if demonstrations is None:
            step = self.step if self._attention.kind == "causal" and not torch.is_grad_enabled() else None
            if step is not None:
                return step.read(batch.input_ids, cache)
            hidden_BTD: torch.Tensor = self._attention(batch.input_ids, batch.attention_mask, cache)
            return hidden_BTD
        assert self.parts.demonstrations is not None, "fit_prompt refuses models that read no demonstrations"
        is_slot_BT = batch.input_ids == self.parts.slots.demonstration
        words_BTD = self.lm.get_input_embeddings()(batch.input_ids.masked_fill(is_slot_BT, 0))
        soft_SD = self.parts.demonstrations(demonstrations.to(words_BTD.device)).to(words_BTD.dtype)
        embeddings_BTD = words_BTD.masked_scatter(is_slot_BT[..., None], soft_SD)
        return self._attention(batch.input_ids, batch.attention_mask, cache, embeddings=embeddings_BTD)

    def _batches(
        self, prompts: list[TokenIds], batch_size: int, show_progress_bar: bool, what: str
    ) -> Iterator[tuple[list[int], Batch]]:
        """Row numbers and padded batch, with a progress bar in tokens."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lengths = [len(prompt.ids) for prompt in prompts]
        budget = TOKENS_PER_BATCH.get(self.lm.device.type, TOKENS_PER_BATCH["cpu"])
        with ProgressBar(
            total=sum(lengths), desc=what, unit="tok", unit_scale=True, disable=not show_progress_bar
        ) as bar:
            for rows in length_sorted_batches(lengths, batch_size, budget):
                batch = self.encoder.pad([prompts[row] for row in rows]).to(self.lm.device)
                yield rows, batch
                bar.update(sum(lengths[row] for row in rows))


def _to_processor(state: DocumentState) -> DocumentState:
    return DocumentState(state.keys.cpu(), state.values.cpu(), state.token_ids, state.reading)
