"""One text that the engine writes: its cache, what is still to be read of it, and how its tokens are chosen.

Shape letters: `T` tokens, `V` vocabulary, `S` positions that are chosen for in one forward, `D` hidden.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from gritrag.model.answerability import Refusal
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context, Part
from gritrag.model.decode import Completion, watched_for
from gritrag.model.grit import GritModel
from gritrag.model.inputs import inputs
from gritrag.model.lifting import Lifter
from gritrag.model.lookup import Lookup
from gritrag.model.output import Output, ending_ids
from gritrag.model.ragged import Row
from gritrag.model.sampling import Sampler, Sampling
from gritrag.model.slots import Slot, Slots
from gritrag.serve.jobs import DeadlineError, Failed, Finished, Piece, Sink, TokenLogprob
from gritrag.serve.memory import ConversationState, Memory


@dataclass(eq=False)
class Generation:
    """A job of the engine: a context to go on from.

    Args:
        context: ends with tokens that are still to be read.
        sampling: how to choose and when to stop.
        client: whose turn this takes.
        deadline: of `time.monotonic`.
        salt: of the tenant, under which the conversation is remembered; None where nothing is to be reused or kept.
        top_logprobs: how many likeliest tokens to tell for each place; None to tell nothing.
        recompute: share of the tokens of states that is read again; see `gritrag.model.recompute`.
        refusal: when to say that the documents do not hold the answer.
        sink: told of every piece and of the end.
    """

    context: Context
    sampling: Sampling
    client: str
    deadline: float
    salt: bytes | None = None
    top_logprobs: int | None = None
    recompute: float = 0.0
    refusal: Refusal | None = None
    sink: Sink = lambda event: None
    is_cancelled: bool = False
    cached_tokens: int = 0
    read_again: int = 0
    place_seconds: float = 0.0
    slot: Slot | None = None
    _told: list[TokenLogprob] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Of the cache that it needs."""
        return len(self.context) + self.sampling.max_new_tokens

    @property
    def is_reading(self) -> bool:
        """Whether some of its context is still to be read."""
        return self._read < self._ids.shape[1] - 1 or not self._output.token_ids

    # --- joining and leaving ------------------------------------------------------------------------------------------

    def join(self, model: GritModel, memory: Memory, slots: Slots | None = None) -> None:
        """Place its states, and whatever of its conversation is remembered.

        Args:
            model: of the engine.
            memory: of conversations.
            slots: one of which it takes, until `leave`; if None it has memory of its own.

        Raises:
            ValueError: it is longer than the model takes.
        """
        began = time.perf_counter()
        self._recall(memory)
        self.context = model.decoder.usable(self.context)
        if slots is not None:
            self.slot = slots.take(self.columns, self.context.cached_tokens)
        self._cache: PlacedCache = model.decoder.place([self.context], self.sampling, self.slot)
        given = inputs([self.context], model.lm.device)
        self._ids, self._positions, self._mask = given.ids, given.positions, given.mask
        if self.recompute:
            (self.read_again,) = model.decoder.recompute(self._cache, [self.context], self.recompute)
        self._lifter = model.decoder.lifter if Lifter.is_due(self.context) else None
        self._complements: tuple[int, ...] = ()
        self._cache.watched = watched_for([self.refusal], self._lifter, self._cache)
        self._read, self._guess = 0, list[int]()
        self._columns_before = self._cache.length
        self._unanswerable: float | None = None
        ends = ending_ids(model.lm, model.tokenizer, self.sampling.stop)
        self._output = Output(model.tokenizer, self.sampling.stop, ends)
        self._sampler = Sampler(self.sampling, 1, model.lm.device)
        wanted = model.lm.dtype == torch.float32 if self.sampling.lookup is None else self.sampling.lookup
        can_guess = wanted and self._sampler.is_greedy and self.top_logprobs is None
        words = model.lm.config.get_text_config().vocab_size
        self._lookup = Lookup(self.context.token_ids, words) if can_guess else None
        self.place_seconds = time.perf_counter() - began

    def leave(self, slots: Slots | None) -> None:
        """Give its memory back."""
        if slots is not None and self.slot is not None:
            slots.give_back(self.slot)
            self.slot = None

    def _recall(self, memory: Memory) -> None:
        """Put what is remembered of the conversation in the place of its first tokens."""
        first, *rest = self.context.parts
        if self.salt is None or first.state is not None:
            return
        ids = first.fresh_ids[: len(first) - (not rest)]  # the last token is always read: what comes next is asked
        known = memory.conversation(self.salt, ids)
        if known is None:
            return
        self.cached_tokens = len(known)
        left = [Part(tuple(first.fresh_ids[len(known) :]))] if len(known) < len(first) else []
        self.context = replace(self.context, parts=(Part(known), *left, *rest))

    def remember(self, memory: Memory) -> None:
        """Keep the leading tokens for the next turn: all of a plain chat, else what stood before the documents."""
        if self.salt is None:
            return
        parts = list(self.context.parts)
        before = len(parts.pop(0)) if isinstance(parts[0].state, ConversationState) else 0
        buffers = [buffer[:, 0] for buffer in self._cache.buffers]
        if not any(part.state for part in parts):
            ids = [*self.context.token_ids, *self._output.token_ids][: self._cache.length]
            keys, values = (buffer[:, :, : len(ids)] for buffer in buffers)
            if self.slot is not None:  # which others will write over
                keys, values, buffers = keys.clone(), values.clone(), [keys, values]
            held = sum(buffer.nbytes for buffer in buffers)
        elif parts[0].state is not None:
            return
        else:  # these tokens saw no document, for documents stand behind them
            ids = self.context.token_ids[: before + len(parts[0])]
            columns = [slice(0, before), slice(self._columns_before, self._columns_before + len(parts[0]))]
            keys, values = (torch.cat([buffer[:, :, part] for part in columns], dim=2) for buffer in buffers)
            held = keys.nbytes + values.nbytes
        memory.keep_conversation(
            self.salt, ConversationState(keys, values, torch.tensor(ids), "causal", True, held_bytes=held)
        )

    def fail(self, error: Exception) -> None:
        self.sink(Failed(error))

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more; one whose time is over is told so."""
        if not self.is_cancelled and time.monotonic() > self.deadline:
            self.is_cancelled = True
            self.fail(DeadlineError("this request took longer than the server allows"))
        return self.is_cancelled

    # --- steps --------------------------------------------------------------------------------------------------------

    def next_row(self, most: int, piece: int, guesses: bool) -> Row | None:
        """What it reads in the next forward: some of its context, or the token chosen last and guesses behind it.

        Args:
            most: tokens of its context that may be read now; None is returned where it would read more.
            piece: its context is cut after every so many tokens.
            guesses: whether tokens may be guessed.
        """
        if self._output.token_ids:
            self._guess = self._lookup.guess(self._left - 1) if self._lookup and guesses else []
            ids = torch.tensor([[self._output.token_ids[-1], *self._guess]], device=self._ids.device)
            positions = torch.arange(self._position, self._position + ids.shape[1], device=ids.device)[None]
            return Row(ids, positions, self._cache, ids.shape[1], slot=self.slot)
        end = self._ids.shape[1]
        if self._mask is None:  # a mask by position is that of the whole context
            end = min(end, self._read + piece)
        if end - self._read > most:
            return None
        part = slice(self._read, end)
        self._read = end
        keep = 1 if end == self._ids.shape[1] else 0
        return Row(self._ids[:, part], self._positions[:, part], self._cache, keep, self._mask, self.slot)

    @property
    def _left(self) -> int:
        return self.sampling.max_new_tokens - len(self._output.token_ids)

    @property
    def _position(self) -> int:
        """Of the token that was chosen last."""
        return int(self._positions[0, -1]) + len(self._output.token_ids)

    def take(self, logits_SV: torch.Tensor) -> Finished | None:
        """Choose from what its row gave, and tell what became certain. The end is returned, and not yet told. Where
        documents were lifted while the question was read, nothing is chosen, and it is read once more."""
        if self._lifts():
            return None
        hidden_1D = self._cache.end_watch()
        if self.refusal is not None and not self._output.token_ids:
            hidden_D = None if hidden_1D is None else hidden_1D[0]
            self._unanswerable, said = self.refusal.judge(logits_SV[-1], hidden_D, self.sampling.max_new_tokens)
            if said:
                return self._told_of([self._output.push(token) for token in said], [])
        chosen, told = self._choose(logits_SV)
        right = self._count_right(chosen)
        # of a row of guesses the cache holds all: forget those behind the first wrong one
        self._cache.cut(self._cache.length - len(self._guess) + right)
        pieces = []
        taken = 0
        for token in chosen[: right + 1]:
            taken += 1
            pieces.append(self._output.push(token))
            if self._output.finish_reason is not None:
                break
        self._cache.cut(self._cache.length - (right + 1 - taken))
        if self._lookup is not None:
            self._lookup.extend(chosen[:taken])
        self._guess = []
        return self._told_of(pieces, told)

    def _lifts(self) -> bool:
        """Whether documents are lifted, now that the question has been read for the first time."""
        lifter, self._lifter = self._lifter, None
        if lifter is None:
            return False
        (self._complements,) = lifter.lift(self._cache, [self.context], self._cache.watched)
        if not self._complements:
            return False
        self._cache.cut(self._columns_before)
        self._cache.watched = watched_for([self.refusal], None, self._cache)
        self._read = 0
        return True

    def _told_of(self, pieces: list[str], told: Sequence[TokenLogprob]) -> Finished | None:
        """Tell what became certain; the end, if this is it, is returned."""
        self._told += told
        output = self._output
        if self._left == 0:
            pieces.append(output.end())
        text = "".join(pieces)
        if text or told:
            self.sink(Piece(text, tuple(told)))
        if output.finish_reason is None:
            return None
        completion = Completion(
            output.text, output.token_ids, output.finish_reason, self._unanswerable, self._complements
        )
        return Finished(completion, self.cached_tokens, self.place_seconds, tuple(self._told), self.read_again)

    def _count_right(self, chosen: Sequence[int]) -> int:
        """Guesses that were what would have been chosen."""
        if not self._guess or self._lookup is None:
            return 0
        return self._lookup.judge(self._guess, chosen)

    def _choose(self, logits_SV: torch.Tensor) -> tuple[list[int], list[TokenLogprob]]:
        (chosen,) = self._sampler.choose(logits_SV[None])
        if self.top_logprobs is None:
            return chosen, []
        return chosen, [_logprob(logits_SV[-1], chosen[-1], self.top_logprobs)]


def _logprob(logits_V: torch.Tensor, token: int, top: int) -> TokenLogprob:
    logprobs_V = logits_V.log_softmax(-1)
    values, ids = logprobs_V.topk(top) if top else (logprobs_V[:0], torch.zeros(0, dtype=torch.long))
    return TokenLogprob(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
