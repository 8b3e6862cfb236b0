"""GritModel: one decoder-only language model that embeds, reads and generates.

Shape letters: `N` documents, `Q` queries, `B` batch, `T` tokens, `D` hidden.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import DEFAULT_MODEL, CheckpointConfig, ReadingMode
from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.generator import Generator
from gritrag.model.load import hash_config, hash_parameters, hash_tokenizer, load, pick_device, pick_dtype, template_for
from gritrag.model.pooling import POOLINGS
from gritrag.model.probes import probe
from gritrag.model.state import DocumentState, Reading, RecordingCache
from gritrag.prompts import Segment
from gritrag.records import Document, Fingerprint, as_document
from gritrag.tokens import Batch, TokenIds, check_text, length_sorted_batches

T = TypeVar("T", str, str | Document)

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768, "mps": 8192}
"""A processor is busy with a thousand tokens, and more only fall out of its caches."""


class GritModel(Generator):
    """One causal LM that embeds (vectors), reads (vectors and states) and generates.

    Everything it computes with is fixed at construction, and nothing shared is written later: embedding and generating
    threads do not disturb each other.

    Args:
        lm: a causal LM in eval mode on its device.
        tokenizer: its tokenizer.
        config: how to read; see `CheckpointConfig`.
        weights, adapter: identities of the files for the fingerprint; hashed from memory where not given.

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
    ) -> None:
        probed = probe(lm)
        if not probed.is_causal:
            raise ValueError(f"{lm.config.model_type} is no causal language model: {probed.probes[0].detail}")
        super().__init__(lm, tokenizer, probed)
        self.config = config or CheckpointConfig()
        self.template = template_for(self.config.template, tokenizer)
        if self.config.pooling not in POOLINGS:
            raise ValueError(f"no pooling {self.config.pooling!r}; there are: {', '.join(POOLINGS)}")
        self._pool = POOLINGS[self.config.pooling]
        bidirectional = self.config.reading == "bidirectional"
        if bidirectional and not probed.attention:
            raise ValueError(f"this model cannot read bidirectionally: {self.probes[0].detail}")
        self._attention = Attention(decoder_stack(lm), probed.attention if bidirectional else "causal")
        self.fingerprint = Fingerprint(
            {
                "weights": f"{weights or hash_parameters(lm)}-{hash_config(lm)}",
                "adapter": adapter,
                "tokenizer": hash_tokenizer(tokenizer),
                "template": self.template.fingerprint,
                "pooling": self.config.pooling,
                "reading": self.config.reading,
            }
        )

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
        trust_remote_code: bool = False,
    ) -> "GritModel":
        """Load a model.

        Args:
            name: a built-in name (``gritrag-smollm2-135m``, ``smollm2-135m``), a hub id, a directory (transformers
                model or GritRAG checkpoint), a ``.gguf`` file, or an installed package that holds weights.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
            device: ``auto`` or a torch device.
            reading, pooling, template, instruction: for a bare model; a checkpoint fixes them.
            trust_remote_code: run code that comes with a hub model. Off unless you ask.

        Raises:
            ValueError: unknown or broken model, or a setting that the checkpoint fixes otherwise.
        """
        where = pick_device(device)
        loaded = load(name, pick_dtype(dtype, where), where, trust_remote_code)
        asked = {"reading": reading, "pooling": pooling, "template": template, "instruction": instruction}
        given = {key: value for key, value in asked.items() if value is not None}
        is_checkpoint = loaded.config.base != str(name)
        for key, value in given.items():
            fixed = getattr(loaded.config, key)
            if is_checkpoint and value != fixed:
                raise ValueError(f"checkpoint {name} fixes {key}={fixed!r}, so it cannot be {value!r}; leave it out")
        config = CheckpointConfig.model_validate({**loaded.config.model_dump(), **given})
        return cls(loaded.lm, loaded.tokenizer, config, loaded.weights, loaded.adapter)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def max_document_tokens(self) -> int:
        """Longest document one read pass takes, scaffold included."""
        return self.max_tokens

    @property
    def state_elements_per_token(self) -> int:
        """Numbers in the state of one token: 2 * layers * heads * head dim; 0 where there are no states."""
        shape = self._shape
        if shape is None:
            return 0
        return 2 * shape.layers * shape.heads * shape.head_dim

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as content, without any scaffold."""
        return len(self.encoder.content_ids(text))

    # --- vectors ----------------------------------------------------------------------------------------------------

    def encode_query(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Vectors of queries.

        Args:
            texts: `Q` queries.
            instruction: the task, such as "Given a question, retrieve passages that answer it"; read, not pooled. The
                checkpoint's own where None; an empty string for none.
            batch_size: at most so many at a time.

        Returns:
            float32 `[Q, dim]`, L2-normalised.

        Raises:
            ValueError: a query is empty, no valid text, or too long.
        """
        return self._vectors(self._query_prompts(texts, instruction), batch_size, show_progress_bar)

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

    def _vectors(self, prompts: list[TokenIds], batch_size: int, show_progress_bar: bool) -> np.ndarray:
        vectors = np.empty((len(prompts), self.dim), dtype=np.float32)
        for rows, batch in self._batches(prompts, batch_size, show_progress_bar, "embedding"):
            with torch.no_grad():
                vectors[rows] = self.read_batch(batch).cpu().numpy()
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

    def read_batch(self, batch: Batch, cache: RecordingCache | None = None) -> torch.Tensor:
        """The read pass itself: normalised vectors, float32 `[B, dim]`; keys and values are left in `cache`.

        Gradients flow where they are enabled; training calls this too.
        """
        hidden_BTD = self._attention(batch.input_ids, batch.attention_mask, cache)
        return torch.nn.functional.normalize(self._pool(hidden_BTD, batch.pool_mask), dim=-1)

    def document_token_ids(self, document: str | Document) -> list[int]:
        """The ids the read pass would read, scaffold included: `[T]`."""
        return self._document_prompts([document])[0].ids

    def question_token_ids(self, question: str, has_documents: bool) -> list[int]:
        """The question as it stands in a context, after documents or alone, up to where the answer starts: `[T]`."""
        segments = self.template.question_segments(question, has_documents)
        return self._encode(segments, question, "question", 0).ids

    def question_first_token_ids(self, question: str) -> list[int]:
        """The question as it stands in a context before the documents: `[T]`."""
        return self._encode(self.template.question_first_segments(question), question, "question", 0).ids

    def answer_start_ids(self, question_is_last: bool) -> list[int]:
        """What stands between a context and its answer, where that is not part of the question: `[T]`."""
        return self.encoder.encode(self.template.answer_start_segments(question_is_last)).ids

    def _query_prompts(self, texts: Sequence[str], instruction: str | None) -> list[TokenIds]:
        instruction = self.config.instruction if instruction is None else instruction
        return [self._encode(self.template.query_segments(t, instruction), t, "query", n) for n, t in _texts(texts)]

    def _document_prompts(self, texts: Sequence[str | Document]) -> list[TokenIds]:
        return [
            self._encode(self.template.document_segments(content), content, "document", number)
            for number, content in ((number, as_document(item).content) for number, item in _texts(texts))
        ]

    def _encode(self, segments: list[Segment], text: str, what: str, number: int) -> TokenIds:
        if not check_text(text, f"{what} {number}").strip():
            raise ValueError(f"{what} {number} is empty: there is nothing to embed; leave it out")
        prompt = self.encoder.encode(segments)
        if len(prompt.ids) > self.max_document_tokens:
            remedy = "cut it with gritrag.chunk_documents first" if what == "document" else "shorten it"
            raise ValueError(
                f"{what} {number} has {len(prompt.ids)} tokens, this model reads at most {self.max_document_tokens}; "
                f"{remedy}"
            )
        return prompt

    def _batches(
        self, prompts: list[TokenIds], batch_size: int, show_progress_bar: bool, what: str
    ) -> Iterator[tuple[list[int], Batch]]:
        """Row numbers and padded batch, with a progress bar in tokens."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lengths = [len(prompt.ids) for prompt in prompts]
        budget = TOKENS_PER_BATCH.get(self.lm.device.type, TOKENS_PER_BATCH["cpu"])
        with tqdm(total=sum(lengths), desc=what, unit="tok", unit_scale=True, disable=not show_progress_bar) as bar:
            for rows in length_sorted_batches(lengths, batch_size, budget):
                batch = self.encoder.pad([prompts[row] for row in rows]).to(self.lm.device)
                yield rows, batch
                bar.update(sum(lengths[row] for row in rows))


def _texts(texts: Sequence[T]) -> Iterator[tuple[int, T]]:
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one string; put it into a list")
    return enumerate(texts)


def _to_processor(state: DocumentState) -> DocumentState:
    return DocumentState(state.keys.cpu(), state.values.cpu(), state.token_ids, state.reading)
