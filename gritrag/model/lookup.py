"""Lookup: guesses how a text goes on from how it went on before. Answers quote their documents.

A forward over a few tokens costs less than one after the other, for much of it is reading the weights. So tokens that
are guessed for nothing and checked in one forward can make several of it (Saxena, "Prompt lookup decoding", 2023;
checked as in Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, which for greedy
choice means: kept up to the first that the model would not have chosen).
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

LONGEST_RUN, SURE_RUN, SHORTEST_RUN = 4, 3, 2
"""Tokens at the end of the text that must have stood there before, how many are good evidence, and how few are enough
for a guess of `FEW` tokens, which costs hardly more than none."""

MOST, FEW = 10, 3
"""Tokens guessed at once, at most."""


class Lookup:
    """Guesses for one text.

    How much is guessed follows what came of it: twice as much after a guess that was right, half after a long one that
    was wrong, until a longer run of tokens is asked for before more than `FEW` are guessed.

    Args:
        token_ids: the context, in order.
        words: size of the vocabulary. Ids behind it are soft tokens of a document, which nobody can say.
    """

    def __init__(self, token_ids: Sequence[int], words: int) -> None:
        self._ids, self._words = list(token_ids), words
        # for every run of tokens, where the text went on when it was seen last; built at the first guess, not before
        # the first token
        self._next: dict[tuple[int, ...], int] = {}
        self._known = SHORTEST_RUN
        self._width, self._run = MOST // 2, SURE_RUN

    def extend(self, token_ids: Iterable[int]) -> None:
        """The text has grown."""
        self._ids.extend(token_ids)

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that may come next; none where nothing like the end of the text was seen before."""
        for position in range(self._known, len(self._ids)):
            for run in range(SHORTEST_RUN, min(LONGEST_RUN, position) + 1):
                self._next[tuple(self._ids[position - run : position])] = position
        self._known = max(self._known, len(self._ids))
        for run in range(LONGEST_RUN, SHORTEST_RUN - 1, -1):
            start = self._next.get(tuple(self._ids[-run:]))
            if start is not None:
                guess = self._ids[start : start + min(most, self._width if run >= self._run else FEW)]
                return list(takewhile(lambda token: token < self._words, guess))
        return []

    def judge(self, guess: Sequence[int], chosen: Sequence[int]) -> int:
        """How many tokens of a guess, from its first on, are what was chosen in their place; learn from that."""
        pairs = enumerate(zip(guess, chosen, strict=False))
        right = next((number for number, (guessed, token) in pairs if guessed != token), len(guess))
        self.learn(len(guess), right)
        return right

    def learn(self, guessed: int, right: int) -> None:
        """What came of a guess."""
        if right == guessed:
            self._width, self._run = min(MOST, 2 * self._width), SURE_RUN
        elif right == 0 and guessed > FEW:
            self._width, self._run = max(1, self._width // 2), min(LONGEST_RUN, self._run + 1)
