"""GritModel: one decoder-only language model that embeds, reads and generates.

Shape letters: `N` documents, `Q` queries, `B` batch, `T` tokens, `S` scored tokens, `D` hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import DEFAULT_MODEL, CheckpointConfig, PartsConfig, ReadingMode
from gritrag.model.answerability import Answerability, Refusal
from gritrag.model.checkpoint import save_checkpoint
from gritrag.model.context import Context
from gritrag.model.decoder import ContextDecoder
from gritrag.model.embedder import Embedder
from gritrag.model.forwards import Forwards
from gritrag.model.hardware import halves_weights, pick_device, pick_dtype
from gritrag.model.identity import facts_of, hash_parameters
from gritrag.model.kernels import without_cudnn
from gritrag.model.load import template_for
from gritrag.model.pages import give_back_heap
from gritrag.model.parts import load_parts
from gritrag.model.prepared import prepare
from gritrag.model.probed import Probe, Probed
from gritrag.model.probes import probe
from gritrag.model.prompt_builder import Prompt, PromptBuilder, prompts_of
from gritrag.model.reader import PromptReader
from gritrag.model.retrieval_heads import RetrievalHeads
from gritrag.model.rotation import Rotation
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState, Reading
from gritrag.model.step import Step
from gritrag.prompts import NOT_FOUND
from gritrag.records import Document, Fingerprint


class GritModel(Embedder):
    """One causal language model that embeds texts, reads documents into states, and generates.

    Use `from_pretrained`; the constructor is for models that are already in memory. A model can be used by several
    threads at once: nothing that it computes with changes after construction.

    Attributes:
        prompts: builds token ids from texts (`PromptBuilder`).
        reader: turns token ids into vectors and states (`PromptReader`).
        decoder: turns contexts into text (`ContextDecoder`).
        fingerprint: identifies everything that vectors and states depend on; an index checks it.
        probes: what was tried on this model at load, and how it came out.
        lm, tokenizer: of transformers.
        config: how texts are read.

    Args:
        lm: a causal LM in eval mode on its device.
        tokenizer: its tokenizer.
        config: how to read; see `CheckpointConfig`.
        weights, adapter: identities of the files for the fingerprint; hashed from memory where not given.
        parts: file of the weights of `config.parts`; they begin untrained where None.
        answerability: tells whether documents hold an answer; None where that is not calibrated.
        retrieval_heads: tell which documents a question needs beside the best one; None where they are not known.
        probed: what was proved of this model; it is probed where None.

    Raises:
        ValueError: the model cannot do what `config` asks; the message names the probe that failed.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: CheckpointConfig | None = None,
        weights: str = "",
        adapter: str = "none",
        parts: Path | None = None,
        probed: Probed | None = None,
        answerability: Answerability | None = None,
        retrieval_heads: RetrievalHeads | None = None,
    ) -> None:
        if probed is None:
            with without_cudnn(lm.device):
                probed = probe(lm)
        self.lm, self.tokenizer, self.config = lm, tokenizer, config or CheckpointConfig()
        self.probes: tuple[Probe, ...] = probed.probes
        self.rotation: Rotation | None = probed.rotation
        template = template_for(self.config.template, tokenizer, self.config.link_tokens)
        self.parts = load_parts(self.config, lm, tokenizer, template, parts)
        # our own step has the table of words only, and the embedding layer knows contextual tokens too
        self.forwards = Forwards(lm, probed.step if self.parts.contextual is None else None)
        self.prompts = PromptBuilder(tokenizer, template, self.parts, self.config.instruction, self.context_length)
        self.reader = PromptReader(lm, probed, self.forwards, self.parts, self.prompts.encoder, self.config.reading)
        self.decoder = ContextDecoder(lm, tokenizer, probed, self.forwards, self.context_length, retrieval_heads)
        self.answerability, self.retrieval_heads = answerability, retrieval_heads
        self._weights, self._adapter = weights or hash_parameters(lm), adapter
        facts = facts_of(lm, tokenizer, self.config, template, (self._weights, adapter))
        self.fingerprint = Fingerprint(facts if self.parts.is_empty else {**facts, "parts": self.parts.identity})
        self.loaded_as: Mapping[str, Any] = {}
        """Arguments of `from_pretrained` that load it again, as JSON holds them; empty where it came from memory."""

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
        link_tokens: int | None = None,
        parts: PartsConfig | None = None,
        trust_remote_code: bool = False,
    ) -> "GritModel":
        """Load a model.

        Args:
            name: a built-in name (``gritrag-smollm2-135m``, ``smollm2-135m``), a hub id, a directory (transformers
                model or GritRAG checkpoint), a ``.gguf`` file, or an installed package that holds weights.
            dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. ``"auto"`` is bfloat16 where the hardware
                computes in it, else float32 with the weights of linear layers rounded to half precision.
            device: ``"auto"`` (CUDA, else MPS, else the processor) or a torch device.
            reading: ``"causal"`` or ``"bidirectional"``: attention while documents and queries are read.
            pooling: how hidden states become a vector: ``"mean"``, ``"weighted_mean"``, ``"last"``, ``"first"``,
                ``"latent_attention"``, or several joined by ``+``.
            template: name of a prompt template, or ``"auto"`` to choose by the tokenizer.
            instruction: of queries that come without one.
            link_tokens: so many end tokens close each document, and hold what they have seen of it.
            parts: what is trained beside the language model.
            trust_remote_code: run code that comes with a hub model.

        A checkpoint fixes the six settings from `reading` to `parts`; they are for other models.

        Returns:
            The model, in eval mode on its device.

        Raises:
            ValueError: an unknown or broken model, or a setting that the checkpoint fixes to another value.
        """
        where = pick_device(device)
        halved = halves_weights(dtype, where)
        loaded, probed = prepare(name, pick_dtype(dtype, where), where, trust_remote_code, halved)
        asked: dict[str, object] = {"reading": reading, "pooling": pooling, "template": template}
        asked |= {"instruction": instruction, "link_tokens": link_tokens, "parts": parts}
        given = {key: value for key, value in asked.items() if value is not None}
        config = loaded.configured(name, given)
        identity = loaded.weights, loaded.adapter
        fitted = loaded.answerability, loaded.retrieval_heads
        model = cls(loaded.lm, loaded.tokenizer, config, *identity, loaded.parts, probed, *fitted)
        if parts is None:  # those would begin untrained again
            path = Path(name)
            model.loaded_as = {"name": str(path.resolve() if path.exists() else name), **given}
        give_back_heap()
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a checkpoint of its own, which `from_pretrained` loads: weights with the adapter merged,
        in the dtype at hand, tokenizer, trained parts and how it reads.

        The copy has the fingerprint of this model, so it opens the same indexes, for as long as its files stay as they
        are. Loaded in the same dtype it gives the same vectors, states and tokens.

        Args:
            folder: made, or written over.
        """
        identity = self._weights, self._adapter
        fitted = self.answerability, self.retrieval_heads
        save_checkpoint(Path(folder), self.lm, self.tokenizer, self.config, self.parts, identity, *fitted)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.lm.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.lm.dtype

    @property
    def context_length(self) -> int:
        """Longest context, in tokens."""
        return int(getattr(self.lm.config.get_text_config(), "max_position_embeddings", 1 << 20))

    @property
    def max_document_tokens(self) -> int:
        """Longest document one read pass takes, scaffold included."""
        return self.context_length

    @property
    def state_elements_per_token(self) -> int:
        """Numbers in the state of one token: 2 * layers * heads * head dim; 0 where there are no states."""
        if not self.decoder.has_states:
            return 0
        shape = self.decoder.shape
        return 2 * shape.layers * shape.heads * shape.head_dim

    def refusal(self, similarity: float | None, above: float | None = None) -> Refusal | None:
        """When to say that documents do not hold an answer; None where that cannot be told.

        Args:
            similarity: the greatest of a document's vector to that of the question; None where that is not known.
            above: the probability above which it is said; that of the checkpoint where None.
        """
        if self.answerability is None or similarity is None:
            return None
        above = self.answerability.above if above is None else above
        return Refusal(self.answerability, similarity, above, tuple(self.prompts.answer_ids(NOT_FOUND)))

    @property
    def step(self) -> Step | None:
        """Our own forward; None where only that of transformers will do."""
        return self.forwards.step

    # --- readings ---------------------------------------------------------------------------------------------------

    def read_documents(
        self, texts: Sequence[str | Document], *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> list[Reading]:
        """Read documents: one forward pass gives the vector and the state of each.

        Arguments and errors are those of `encode_document`, except that `texts` is a list.

        Returns:
            A `Reading(vector, state)` for each document, in order. States are in the model's dtype, in main memory.

        Raises:
            ValueError: the model has no states that could be reused.
        """
        return self.reader.readings(self.prompts.documents(texts), batch_size, show_progress_bar)

    def read_queries(
        self, texts: Sequence[str], instruction: str | None = None, *, batch_size: int = 32
    ) -> list[Reading]:
        """Read queries: one forward pass gives the vector and the state of each.

        A question whose state is kept need not be read again to be answered. Arguments and errors are those of
        `encode_query`, except that `texts` is a list.

        Returns:
            A `Reading(vector, state)` for each query, in order.
        """
        return self.reader.readings(self.prompts.queries(texts, instruction), batch_size)

    def question_log_likelihoods(self, question: str, states: Sequence[DocumentState]) -> np.ndarray:
        """How probable a question is behind each document, whose states are at hand; the documents are not read.

        A document that answers a question makes it more probable. All states are asked in one batched forward.

        Args:
            question: the question.
            states: `N` of them, as `read_documents` or an index gives them.

        Returns:
            float32 `[N]`: mean log-probability of the question's tokens, in nats. Where states were read causally it is
            that of reading document and question in full.

        Raises:
            ValueError: an empty question, a document that is too long beside it, or a model without states.
        """
        return self.question_token_log_likelihoods(question, states).mean(1)

    def question_token_log_likelihoods(self, question: str, states: Sequence[DocumentState]) -> np.ndarray:
        """How probable each token of a question is behind each document: float32 `[N, S]`, in nats.

        Documents that hold the answers to different parts of a question make different tokens of it probable. Arguments
        and errors are those of `question_log_likelihoods`.
        """
        return self.decoder.log_likelihoods(states, self.prompts.scored_question(question)).numpy()

    # --- text -------------------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: Prompt, **sampling: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[Prompt], **sampling: Any) -> list[str]: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], **sampling: Any) -> str | list[str]:
        """Text for one prompt, or a list of texts for a list of prompts, in one batch.

        Args:
            prompt: raw text to go on from, or a chat (a list of messages) to be answered; or a list of either.
            **sampling: fields of `gritrag.Sampling`: max_new_tokens, temperature, top_k, top_p, repetition_penalty,
                stop, seed, lookup.

        Returns:
            what follows the prompt, without it and without the token that ends it.

        Raises:
            ValueError: empty or too long prompt, broken message, sampling value out of range.
        """
        prompts, is_many = prompts_of(prompt)
        if not prompts:
            return []
        ids = [self.prompts.prompt_ids(each) for each in prompts]
        completions = self.decoder.complete(ids, Sampling.of(sampling))
        return [completion.text for completion in completions] if is_many else completions[0].text

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Generate text for one prompt piece by piece; arguments and errors are those of `generate`.

        Yields:
            Pieces of text as they become certain. Joined, they are what `generate` returns.
        """
        context = Context.of(self.prompts.prompt_ids(prompt))
        for pieces in self.decoder.decode([context], Sampling.of(sampling)):
            if pieces[0]:
                yield pieces[0]
