"""Rankings: how probable a question is behind the state of each candidate, computed between the steps of answers.

Shape letters: `N` states, `S` scored tokens.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from gritrag.model.grit import GritModel
from gritrag.model.likelihood import Scored
from gritrag.model.state import DocumentState
from gritrag.serve.jobs import Awaited


@dataclass(eq=False)
class RankingJob(Awaited[np.ndarray]):
    """A job of the engine: a question to read behind states.

    Args:
        question: its tokens, and which of them are scored.
        states: at least one.
        client: whose turn this takes.
        deadline: of `time.monotonic`.
    """

    question: Scored
    states: Sequence[DocumentState]
    client: str
    deadline: float
    is_urgent: bool = True
    is_cancelled: bool = False
    future: "Future[np.ndarray]" = field(default_factory=Future)
    """float32 `[N, S]`: log-probabilities of the question's tokens, in nats."""
    _found: list[np.ndarray] = field(default_factory=list)
    _done: int = 0

    @property
    def is_done(self) -> bool:
        return self._done == len(self.states)

    def count(self, most: int) -> int:
        """States behind which the question is read in the next step: as many as make `most` tokens, one at least. What
        else the step does must not count: numbers depend on who shares a batch."""
        return min(len(self.states) - self._done, max(1, most // max(1, len(self.question.ids))))

    def go_on(self, model: GritModel, states: int) -> None:
        """Read the question behind the next `states`."""
        part = self.states[self._done : self._done + states]
        self._found.append(model.decoder.log_likelihoods(part, self.question).numpy())
        self._done += len(part)

    def finish(self) -> None:
        """Hand the outcome over."""
        self.settle(np.concatenate(self._found))
