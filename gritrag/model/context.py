"""Context: what an answer is decoded from, states and runs of tokens in the order in which the model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

from gritrag.model.state import DocumentState


@dataclass(frozen=True)
class Part:
    """A stretch of a context.

    Args:
        content: a state, which is reused as it was read, or token ids, which are read now.
        relevance_bias: added to the attention scores of all tokens of a state, for whatever comes behind it.
        unbiased: so many of its first tokens have no bias all the same.
        shares_positions: neighbouring states that share positions all end where what comes behind them begins, as if
            each were there alone (Ratner et al. 2023, arXiv 2212.10947, section 2, where they begin together). The
            other parts stand one behind the other.
    """

    content: DocumentState | tuple[int, ...]
    relevance_bias: float = 0.0
    shares_positions: bool = False
    unbiased: int = 0

    def __post_init__(self) -> None:
        is_plain = not self.relevance_bias and not self.shares_positions
        assert is_plain or self.state is not None, "tokens have no bias and stand one behind the other"

    def __len__(self) -> int:
        """Tokens."""
        return len(self.content)

    @property
    def state(self) -> DocumentState | None:
        """The content, if it is a state."""
        return self.content if isinstance(self.content, DocumentState) else None

    @property
    def token_ids(self) -> Sequence[int]:
        """All tokens, those of a state included."""
        return self.content.token_ids.tolist() if isinstance(self.content, DocumentState) else self.content

    @property
    def fresh_ids(self) -> Sequence[int]:
        """Tokens that are still to be read: none of a state."""
        return () if isinstance(self.content, DocumentState) else self.content


class PlacedState(NamedTuple):
    """A state, the position of its first token, and what is added to the attention scores of its tokens, but for the
    first `unbiased`."""

    state: DocumentState
    position: int
    relevance_bias: float
    unbiased: int = 0


@dataclass(frozen=True)
class Context:
    """Parts in order. Each sees all that stand before it, but a state only as much as it saw when it was read.

    Args:
        parts: to be answered from, a context must end with tokens.
        start: position of the first token.
        seeks_complements: whether what stands behind states that share positions is a question, which may turn out to
            need several of them; see `gritrag.model.lifting`.
    """

    parts: tuple[Part, ...]
    start: int = 0
    seeks_complements: bool = False

    @classmethod
    def of(cls, *contents: DocumentState | Sequence[int]) -> "Context":
        """From states and lists of token ids, empty ones left out."""
        given = (each if isinstance(each, DocumentState) else tuple(each) for each in contents)
        return cls(tuple(Part(content) for content in given if len(content)))

    def __len__(self) -> int:
        """Tokens, those of states included."""
        return sum(map(len, self.parts))

    @cached_property
    def states(self) -> list[PlacedState]:
        """The states, in order."""
        placed = zip(self.parts, self._positions, strict=True)
        return [PlacedState(p.state, first, p.relevance_bias, p.unbiased) for p, first in placed if p.state is not None]

    @property
    def end(self) -> int:
        """Position of what comes behind it: `start` and its tokens, but for states that share positions."""
        last = self.start if not self.parts else self._positions[-1] + len(self.parts[-1])
        return max([last, *(placed.position + len(placed.state) for placed in self.states)])

    @property
    def behind_documents(self) -> int:
        """Tokens behind the last state that shares positions."""
        last = max((number for number, part in enumerate(self.parts) if part.shares_positions), default=-1)
        return sum(map(len, self.parts[last + 1 :]))

    @property
    def cached_tokens(self) -> int:
        """Tokens that are not read again."""
        return sum(len(placed.state) for placed in self.states)

    @property
    def token_ids(self) -> list[int]:
        """All tokens in order, those of states included: what the uncached run reads."""
        return [id for part in self.parts for id in part.token_ids]

    @property
    def fresh_ids(self) -> list[int]:
        """Tokens that are still to be read, in order."""
        return [id for part in self.parts for id in part.fresh_ids]

    @property
    def fresh_positions(self) -> list[int]:
        """Where they stand."""
        runs = (range(s, s + len(p.fresh_ids)) for p, s in zip(self.parts, self._positions, strict=True))
        return [position for run in runs for position in run]

    @property
    def is_interleaved(self) -> bool:
        """Whether a state stands behind a token that is still to be read."""
        is_state = [part.state is not None for part in self.parts]
        return is_state != sorted(is_state, reverse=True)

    def read_again(self, is_kept: Sequence[bool]) -> "Context":
        """The same tokens one behind the other, with no bias, and with only some of the states kept; one answer for
        each part (tokens are always kept)."""
        kept = zip(self.parts, is_kept, strict=True)
        return replace(self, parts=tuple(Part(p.content if k else tuple(p.token_ids)) for p, k in kept))

    @cached_property
    def _positions(self) -> list[int]:
        """Of the first token of each part."""
        firsts: list[int] = []
        start = self.start
        for shares_positions, group in groupby(self.parts, key=lambda part: part.shares_positions):
            own = list(map(len, group))
            end = start + (max(own) if shares_positions else sum(own))
            firsts += [end - length for length in own] if shares_positions else accumulate(own[:-1], initial=start)
            start = end
        return firsts
