"""Texts that are embedded or read: in chunks beside the tokens of answers where the model reads causally, else whole.

Shape letters: `B` batch, `T` tokens, `D` hidden.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from gritrag.model.caches import PlacedCache, RecordingCache
from gritrag.model.grit import GritModel
from gritrag.model.ragged import PADDED, Row, padded
from gritrag.model.state import DocumentState
from gritrag.serve.jobs import Awaited
from gritrag.tokens import TokenIds


class Outcome(NamedTuple):
    """Vector float32 `[dim]`, L2-normalised, and the state where it was wanted."""

    vector: np.ndarray
    state: DocumentState | None


@dataclass(eq=False)
class TextReading:
    """One text on its way through the model."""

    prompt: TokenIds
    wants_state: bool
    cache: PlacedCache | None = None
    hidden: list[torch.Tensor] = field(default_factory=list)
    done: int = 0
    outcome: Outcome | None = None

    @property
    def left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.prompt.ids) - self.done

    def next_row(self, model: GritModel, most: int) -> Row | None:
        """The next tokens of it, at most so many; None where it cannot be cut there."""
        length = len(self.prompt.ids)
        end = length if self.left <= most else self.done + max(most, 0) // PADDED * PADDED
        if end == self.done:
            return None
        is_whole = self.done == 0 and end == length
        if self.cache is None and (self.wants_state or not is_whole):
            buffers = model.decoder.shape.empty(1, padded(length))
            for buffer in buffers:
                buffer.zero_()  # attention sees what is hidden, too
            self.cache = PlacedCache(*buffers, 0)
        ids = torch.tensor([self.prompt.ids[self.done : end]], device=model.lm.device)
        positions = torch.arange(self.done, end, device=ids.device)[None]
        self.done = end
        return Row(ids, positions, self.cache, ids.shape[1], text_tokens=length)

    def take(self, model: GritModel, hidden_TD: torch.Tensor) -> None:
        """What its row gave; with the last of it, vector and state."""
        self.hidden.append(hidden_TD)
        if self.left:
            return
        mask_1T = torch.tensor([self.prompt.is_pooled], device=hidden_TD.device)
        vector_D = normalize(model.parts.pooler(torch.cat(self.hidden)[None], mask_1T), dim=-1)[0]
        state = None
        if self.wants_state:
            assert self.cache is not None
            state = self.cache.state(model.rotation, self.prompt.ids, model.config.reading)
        self.outcome = Outcome(vector_D.float().cpu().numpy(), state)
        self.cache, self.hidden = None, []


@dataclass(eq=False)
class ReadingJob(Awaited["list[Outcome]"]):
    """A job of the engine: texts to embed.

    Args:
        prompts: at least one.
        client: whose turn this takes.
        deadline: of `time.monotonic`.
        is_urgent: somebody waits for an answer that needs it; else it gets what time is left over.
        wants_states: not the vectors alone.
    """

    prompts: Sequence[TokenIds]
    client: str
    deadline: float
    is_urgent: bool = False
    wants_states: bool = False
    is_cancelled: bool = False
    future: "Future[list[Outcome]]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.texts = [TextReading(prompt, self.wants_states) for prompt in self.prompts]

    @property
    def is_done(self) -> bool:
        return all(text.outcome is not None for text in self.texts)

    def finish(self) -> None:
        """Hand the outcome over."""
        self.settle([text.outcome for text in self.texts if text.outcome is not None])


def read_whole(model: GritModel, texts: Sequence[TextReading]) -> None:
    """Read texts in one padded batch, as `GritModel.read_documents` does: for models that read bidirectionally."""
    batch = model.prompts.encoder.pad([text.prompt for text in texts]).to(model.lm.device)
    cache = RecordingCache() if any(text.wants_state for text in texts) else None
    vectors = model.reader.read_batch(batch, cache).float().cpu().numpy()
    ids = [text.prompt.ids for text in texts]
    states = [None] * len(ids) if cache is None else cache.states(model.rotation, ids, model.config.reading)
    for text, vector, state in zip(texts, vectors, states, strict=True):
        text.done, text.outcome = len(text.prompt.ids), Outcome(vector, state)
