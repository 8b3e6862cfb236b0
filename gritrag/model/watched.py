"""Watched: hidden states that forwards keep while they read.

Shape letters: `B` batch, `T` tokens, `D` hidden size.
"""

from collections.abc import Sequence

import torch


class Watched:
    """What forwards over a `PlacedCache` are to keep beside logits: hidden states of what they read.

    Args:
        layers: behind how many layers those of the last token are kept, from 1 to one less than all.
        all_of: behind how many layers those of all tokens are kept.
        start: column of the first of these tokens.
    """

    def __init__(self, layers: Sequence[int] = (), all_of: Sequence[int] = (), start: int = 0) -> None:
        self.layers, self.all_of, self.start = tuple(layers), tuple(all_of), start
        self._found: dict[int, torch.Tensor] = {}
        self._read: dict[int, list[torch.Tensor]] = {passed: [] for passed in all_of}

    def see(self, passed: int, hidden_BTD: torch.Tensor) -> None:
        """Keep what so many layers have made of the tokens of each row, if it is asked for."""
        if passed in self.layers:
            self._found[passed] = hidden_BTD[:, -1].clone()  # a view would keep all tokens
        if passed in self._read:
            self._read[passed].append(hidden_BTD.clone())

    def cut(self, length: int) -> None:
        """Forget tokens whose columns are cut off a cache."""
        for passed, parts in self._read.items():
            self._read[passed] = [torch.cat(parts, dim=1)[:, : max(0, length - self.start)]] if parts else []

    def read(self, row: int, tokens: int) -> dict[int, torch.Tensor] | None:
        """Of the last tokens that one row has read, by how many layers they have passed, `[T, D]`; None where forwards
        have not kept so many."""
        read = {passed: torch.cat([part[row] for part in parts]) for passed, parts in self._read.items() if parts}
        if len(read) < len(self._read) or any(len(each) < tokens for each in read.values()):
            return None
        return {passed: hidden_TD[len(hidden_TD) - tokens :] for passed, hidden_TD in read.items()}

    @property
    def hidden(self) -> torch.Tensor | None:
        """Of the latest forward, float32 `[B, layers * D]`, one layer behind the other; None of one that keeps none."""
        if not self.layers or not all(passed in self._found for passed in self.layers):
            return None
        return torch.cat([self._found[passed].float() for passed in self.layers], dim=-1)
