"""PromptReader: the read pass, from prompts to vectors and states.

Shape letters: `N` prompts, `B` batch, `T` tokens, `D` hidden, `S` soft tokens of a batch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.caches import RecordingCache
from gritrag.model.forwards import Forwards
from gritrag.model.kernels import without_cudnn
from gritrag.model.parts import Parts
from gritrag.model.probed import Probed
from gritrag.model.state import DocumentState, Reading
from gritrag.model.turning import turning_point
from gritrag.progress import ProgressBar
from gritrag.tokens import Batch, Encoder, TokenIds, length_sorted_batches

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768, "mps": 8192}
"""A processor is busy with a thousand tokens, and more only fall out of its caches."""


class PromptReader:
    """Reads prompts, in one forward pass each.

    Args:
        lm: a causal LM in eval mode on its device.
        probed: what `probe(lm)` found.
        forwards: of the model.
        parts: pooling and soft tokens.
        encoder: pads prompts.
        reading: ``"causal"`` or ``"bidirectional"``.

    Raises:
        ValueError: the model cannot read bidirectionally.
    """

    def __init__(
        self, lm: PreTrainedModel, probed: Probed, forwards: Forwards, parts: Parts, encoder: Encoder, reading: str
    ) -> None:
        is_bidirectional = reading == "bidirectional"
        if is_bidirectional and not probed.attention:
            raise ValueError(f"this model cannot read bidirectionally: {probed.probes[0].detail}")
        self._attention = Attention(decoder_stack(lm), probed.attention if is_bidirectional else "causal")
        self._lm, self._probed, self._forwards, self._parts = lm, probed, forwards, parts
        self._encoder, self._reading, self._turn = encoder, reading, turning_point(lm)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._parts.pooler.dim

    def vectors(
        self,
        prompts: Sequence[TokenIds],
        batch_size: int = 32,
        show_progress_bar: bool = False,
        demonstrations: torch.Tensor | None = None,
    ) -> np.ndarray:
        """float32 `[N, dim]`, L2-normalised.

        Args:
            prompts: `N` of them.
            batch_size: at most so many at a time.
            show_progress_bar: in tokens.
            demonstrations: `[S, dim]`, for the slots of each prompt.
        """
        vectors = np.empty((len(prompts), self.dim), dtype=np.float32)
        for rows, batch in self._batches(prompts, batch_size, show_progress_bar, "embedding"):
            with torch.no_grad():
                soft = None if demonstrations is None else demonstrations.repeat(len(rows), 1)
                vectors[rows] = self.read_batch(batch, demonstrations=soft).cpu().numpy()
        return vectors

    def readings(
        self, prompts: Sequence[TokenIds], batch_size: int = 32, show_progress_bar: bool = False
    ) -> list[Reading]:
        """Vector and state of each prompt, in the order given; see `vectors`.

        States are in the model's dtype, on the processor.

        Raises:
            ValueError: the model's states cannot be used.
        """
        shape = self._probed.require_shape()
        readings: list[Reading | None] = [None] * len(prompts)
        for rows, batch in self._batches(prompts, batch_size, show_progress_bar, "reading"):
            cache = RecordingCache()
            with torch.no_grad():
                vectors = self.read_batch(batch, cache).cpu().numpy()
                states = cache.states(self._probed.rotation, [prompts[row].ids for row in rows], self._reading)
            for row, vector, state in zip(rows, vectors, states, strict=True):
                readings[row] = Reading(vector, _to_processor(state) if shape.device.type != "cpu" else state)
        return [reading for reading in readings if reading is not None]

    def read_batch(
        self, batch: Batch, cache: RecordingCache | None = None, demonstrations: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The read pass itself: normalised vectors, float32 `[B, dim]`; keys and values are left in `cache`.

        Gradients flow where they are enabled; training calls this too.

        Args:
            batch: padded prompts.
            cache: None where no states are wanted.
            demonstrations: `[S, dim]`, a vector for each slot of the batch, row by row.
        """
        hidden_BTD = self.hidden_states(batch, cache, demonstrations)
        return torch.nn.functional.normalize(self._parts.pooler(hidden_BTD, batch.pool_mask), dim=-1)

    def hidden_states(
        self, batch: Batch, cache: RecordingCache | None = None, demonstrations: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of the read pass, before pooling; see `read_batch`."""
        with without_cudnn(self._lm.device):
            return self._hidden_states(batch, cache, demonstrations)

    def _hidden_states(
        self, batch: Batch, cache: RecordingCache | None, demonstrations: torch.Tensor | None
    ) -> torch.Tensor:
        if demonstrations is None:
            step = self._forwards.step if self._attention.kind == "causal" and not torch.is_grad_enabled() else None
            if step is not None:
                return step.read(batch.input_ids, cache)
            hidden_BTD: torch.Tensor = self._attention(batch.input_ids, batch.attention_mask, cache)
            return hidden_BTD
        project = self._parts.demonstrations
        assert project is not None, "GritModel refuses demonstrations where the model reads none"
        is_slot_BT = batch.input_ids == self._parts.slots.demonstration
        words_BTD = self._lm.get_input_embeddings()(batch.input_ids.masked_fill(is_slot_BT, 0))
        soft_SD = project(demonstrations.to(words_BTD.device)).to(words_BTD.dtype)
        embeddings_BTD = words_BTD.masked_scatter(is_slot_BT[..., None], soft_SD)
        return self._attention(batch.input_ids, batch.attention_mask, cache, embeddings=embeddings_BTD)

    def _batches(
        self, prompts: Sequence[TokenIds], batch_size: int, show_progress_bar: bool, what: str
    ) -> Iterator[tuple[list[int], Batch]]:
        """Row numbers and padded batch, with a progress bar in tokens."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lengths = [len(prompt.ids) for prompt in prompts]
        budget = TOKENS_PER_BATCH.get(self._lm.device.type, TOKENS_PER_BATCH["cpu"])
        with ProgressBar(
            total=sum(lengths), desc=what, unit="tok", unit_scale=True, disable=not show_progress_bar
        ) as bar:
            for rows in self._alike(lengths, batch_size, budget):
                batch = self._encoder.pad([prompts[row] for row in rows]).to(self._lm.device)
                yield rows, batch
                bar.update(sum(lengths[row] for row in rows))

    def _alike(self, lengths: Sequence[int], batch_size: int, budget: int) -> Iterator[list[int]]:
        """Row numbers of each batch: short texts apart from those that a model reads with other angles."""
        is_long = [self._turn is not None and length > self._turn for length in lengths]
        for kind in sorted(set(is_long)):
            numbers = [number for number, own in enumerate(is_long) if own is kind]
            for rows in length_sorted_batches([lengths[number] for number in numbers], batch_size, budget):
                yield [numbers[row] for row in rows]


def _to_processor(state: DocumentState) -> DocumentState:
    return state.with_tensors(state.keys.cpu(), state.values.cpu())
