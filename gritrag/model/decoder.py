"""ContextDecoder: contexts to text, from placed states and what remains to be read.

Shape letters: `B` batch, `T` tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.model.answerability import Refusal
from gritrag.model.caches import CacheShape, PlacedCache
from gritrag.model.context import Context
from gritrag.model.decode import Completion, Decoding
from gritrag.model.forwards import Forwards
from gritrag.model.kernels import without_cudnn
from gritrag.model.layers import needs_dense
from gritrag.model.lifting import Lifter
from gritrag.model.likelihood import Scored, log_likelihoods
from gritrag.model.native_forward import DecodingInTurn, NativeCache
from gritrag.model.placing import place, row_of
from gritrag.model.probed import Probed
from gritrag.model.recompute import Rereader, recompute
from gritrag.model.reread_modules import ModuleRereader
from gritrag.model.reread_step import StepRereader
from gritrag.model.retrieval_heads import RetrievalHeads
from gritrag.model.sampling import Sampling
from gritrag.model.slots import Slot, size_of
from gritrag.model.state import DocumentState
from gritrag.model.step import SPARE_COLUMNS, STEP_TOKENS
from gritrag.model.turning import turning_point

ANSWER_TOKENS = 128
"""Answers of up to so many tokens have a cache of one size, where attention is given all of it."""


WHOLE = {"full_attention", "global"}
"""Names of attention to all tokens before, in configs of transformers; the second one is GPT-Neo's."""


class ContextDecoder:
    """Goes on from contexts.

    Args:
        lm: a causal LM in eval mode on its device.
        tokenizer: its tokenizer.
        probed: what `probe(lm)` found.
        forwards: of the model.
        context_length: longest context in tokens, the answer included.
        heads: by which it finds what a question needs beside the best document; None where they are not known.

    Raises:
        ValueError: it has no such heads.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        probed: Probed,
        forwards: Forwards,
        context_length: int,
        heads: RetrievalHeads | None = None,
    ) -> None:
        self.context_length = context_length
        self._lm, self._tokenizer, self._probed, self._forwards = lm, tokenizer, probed, forwards
        self._turn = turning_point(lm)
        self.lifter = None
        if heads is not None and probed.rotation is not None:
            self.lifter = Lifter(lm, heads, probed.rotation)

    # --- what the model can do ---------------------------------------------------------------------------------------

    @property
    def has_states(self) -> bool:
        """Whether this model has states at all (state-space models and hybrids have none)."""
        return self._probed.shape is not None

    @property
    def shape(self) -> CacheShape:
        """Of its caches.

        Raises:
            ValueError: its states cannot be used.
        """
        return self._probed.require_shape()

    @property
    def has_window(self) -> bool:
        """Whether some layer sees only a part of the tokens before, such as the latest."""
        kinds = self._kinds
        return not kinds <= WHOLE if kinds else bool(getattr(self._lm.config.get_text_config(), "sliding_window", None))

    @property
    def _kinds(self) -> set[str]:
        """Of attention in its layers, where its config names them."""
        config = self._lm.config.get_text_config()
        return set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())

    @property
    def takes_biases(self) -> bool:
        """Whether states can have a relevance bias: all of them can be reused, wherever they stand."""
        return self._probed.rotation is not None and not self.has_window and self._probed.masks.with_bias

    @property
    def takes_recompute(self) -> bool:
        """Whether tokens of states can be read again: their mask would undo windows, and not every model takes it."""
        return not self.has_window and self._probed.masks.by_token

    @property
    def reads_alone(self) -> bool:
        """Whether contexts of several lengths are read one after the other: padding would eat into windows, some models
        count it, and others read texts of one batch according to the longest."""
        return self.has_window or self._is_row_by_row

    @property
    def _is_row_by_row(self) -> bool:
        counts_padding = not self._probed.masks.in_rows or "chunked_attention" in self._kinds  # Llama 4, in chunks
        return counts_padding or self._turn is not None

    def _shares_rows(self, contexts: Sequence[Context]) -> bool:
        """Whether one batch gives what each of these contexts gives alone."""
        has_gaps = any(context.states for context in contexts) and len({len(c) - c.cached_tokens for c in contexts}) > 1
        return len(contexts) == 1 or not (self._is_row_by_row or (self.has_window and has_gaps))

    def usable(self, context: Context) -> Context:
        """The same tokens, with those states that this model can reuse where they stand; the others are read again.

        Keys that cannot be moved are of use only where they were read, at the start of a context. A model with sliding
        windows counts columns, so its states must stand before all that is read now. Neither has biases: where most
        documents are read again they would be unjust, and the mask that carries them would undo windows. Nor do their
        states share positions. Keys that were computed with the angles of short texts are of no use in a long one.
        """
        if self.takes_biases:
            return context
        is_state = [part.state is not None for part in context.parts]
        leading = is_state.index(False) if False in is_state else len(is_state)
        kept = min(leading, 1) if self._probed.rotation is None else leading
        if kept and self._turn is not None and len(context.parts[0]) <= self._turn < context.end:
            kept = 0
        return context.read_again([number < kept for number in range(len(is_state))])

    # --- from contexts to text ---------------------------------------------------------------------------------------

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """Completions of prompts given as token ids, in one batch."""
        decoding = self.decode([Context.of(prompt) for prompt in prompts], sampling)
        for _ in decoding:
            pass
        return decoding.completions

    def decode(self, contexts: Sequence[Context], sampling: Sampling) -> Decoding:
        """Place the states of each context, read what remains, and go on; see `Decoding`."""
        contexts = [self.usable(context) for context in contexts]
        return self.decode_placed(self.place(contexts, sampling), contexts, sampling)

    def place(self, contexts: Sequence[Context], sampling: Sampling, slot: Slot | None = None) -> PlacedCache:
        """The states of `usable` contexts where they stand, with room for the rest and for new tokens.

        Args:
            contexts: one for each row.
            sampling: says how many tokens will follow.
            slot: where to, if that is given; it must be `columns` long at least. Only for one context.

        Raises:
            ValueError: a context and its answer together reach beyond the positions that the model takes. Documents
                that share positions need those of the longest only.
        """
        needed = max(context.end for context in contexts) + sampling.max_new_tokens
        if needed > self.context_length:
            raise ValueError(
                f"the context needs {needed} tokens, this model takes {self.context_length}; "
                "use fewer or shorter documents, a shorter prompt or fewer max_new_tokens"
            )
        room = max(len(context) - context.cached_tokens for context in contexts) + sampling.max_new_tokens
        buffers = None if slot is None else slot.buffers
        if self._probed.native is not None:
            return NativeCache()
        width = max(context.cached_tokens for context in contexts)
        room = self._columns(width + room - sampling.max_new_tokens, sampling.max_new_tokens) - width
        with torch.inference_mode():
            return place(contexts, self.shape, self._probed.rotation, room, buffers)

    def _columns(self, text: int, new_tokens: int) -> int:
        """Of a cache for the tokens of a text and an answer.

        Where attention is given all of them, their number follows from the text: a sum over more columns may be rounded
        otherwise, and an answer must not depend on how long it may become.
        """
        if not needs_dense(self.shape):
            return text + new_tokens + SPARE_COLUMNS
        return size_of(text + max(new_tokens, ANSWER_TOKENS) + STEP_TOKENS)

    def recompute(self, cache: PlacedCache, contexts: Sequence[Context], share: float) -> list[int]:
        """Read a share of the placed tokens again, with all documents in sight; see `gritrag.model.recompute`."""
        if self._probed.native is not None:
            return [0] * len(contexts)  # nothing is placed
        step = self._forwards.step
        reader: Rereader = ModuleRereader(self._forwards.best) if step is None else StepRereader(step)
        with without_cudnn(self._lm.device):
            return recompute(reader, cache, contexts, share)

    def log_likelihoods(self, states: Sequence[DocumentState], scored: Scored) -> torch.Tensor:
        """Mean log-probability of tokens behind each state, float32 `[N]`; see `gritrag.model.likelihood`.

        Raises:
            ValueError: the model's states cannot be used, or a state and the tokens are too long for it.
        """
        needed = max((len(state) for state in states), default=0) + len(scored.ids)
        if needed > self.context_length:
            raise ValueError(
                f"a document and the question have {needed} tokens, this model takes {self.context_length}; index "
                "shorter chunks"
            )
        best, rotation = self._forwards.best, self._probed.rotation
        if not states or not self._is_row_by_row:
            return log_likelihoods(best, self.shape, rotation, states, scored)
        return torch.cat([log_likelihoods(best, self.shape, rotation, [state], scored) for state in states])

    def decode_placed(
        self,
        cache: PlacedCache,
        contexts: Sequence[Context],
        sampling: Sampling,
        refusals: Sequence[Refusal | None] | None = None,
    ) -> Decoding:
        """Read the rest of contexts whose states `place` has placed, and go on, or refuse; see `Decoding`."""
        native, lm, tokenizer = self._probed.native, self._lm, self._tokenizer
        if native is not None:
            rows = zip(contexts, refusals or [None] * len(contexts), strict=True)
            own = [Decoding(native, lm, tokenizer, NativeCache(), [each], sampling, [r]) for each, r in rows]
            return own[0] if len(own) == 1 else DecodingInTurn(own)
        best = self._forwards.best
        if self._shares_rows(contexts):
            return Decoding(best, lm, tokenizer, cache, contexts, sampling, refusals, self.lifter)
        caches = [row_of(cache, row, context) for row, context in enumerate(contexts)]
        each = zip(caches, contexts, refusals or [None] * len(contexts), strict=True)
        own = [Decoding(best, lm, tokenizer, c, [one], sampling, [r], self.lifter) for c, one, r in each]
        return DecodingInTurn(own)
