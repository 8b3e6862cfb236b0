"""A quota: which states an index keeps, namely as many as it has room for, and those that are asked for most.

How useful a state is: the requests for its document, each worth half after `HALF_LIFE` later requests, per byte. A new
state takes the place of less useful ones and never of equally useful ones, so reading a large corpus beyond the quota
evicts nothing, and two documents do not keep evicting each other. What is evicted is read again when it is needed.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.entries import Entry, StateRow
from gritrag.index.storage.garbage import remove_garbage
from gritrag.index.storage.packed import bytes_per_token
from gritrag.index.storage.states import DocumentState, StateFileWarning, StateStore, relative_path

__all__ = ["Room", "StateQuota"]

HALF_LIFE = 10_000
HEADER_BYTES = 512


class Room(NamedTuple):
    """Keys of the states that are to be stored, and of those that are to go for them."""

    chosen: set[str]
    evicted: set[str]


class StateQuota:
    """State files under a quota, and their rows. Uses are counted in memory and written with what is written anyway."""

    def __init__(self, catalog: Catalog, files: StateStore, codec: str, quota: int | None) -> None:
        """`codec` ``"none"`` stores nothing; `quota` in bytes, None for no limit."""
        self.catalog = catalog
        self.files = files
        self.codec = codec
        self._quota = quota
        self._warned = False
        self._requests = int(catalog.meta("requests") or 0)
        self._uses: dict[str, tuple[float, int]] = {}
        self._unsaved: set[str] = set()

    # Taking

    def load(self, entries: Sequence[Entry | None]) -> list[DocumentState | None]:
        """The states of these documents; None for no document, and where there is none that can be trusted."""
        with self.catalog.snapshot():
            rows = [None if entry is None else self.catalog.state(entry.state_key) for entry in entries]
        self.files.prefetch([row for row in rows if row is not None])
        states = []
        for entry, row in zip(entries, rows, strict=True):
            if entry is not None:
                self._count(entry.state_key, row)
            states.append(None if entry is None or row is None else self._load(row, entry))
        return states

    def _load(self, row: StateRow, entry: Entry) -> DocumentState | None:
        try:
            return self.files.load(row, entry.token_ids)
        except (OSError, ValueError) as error:
            known = self.catalog.state(row.key)
            if known is not None and known[:5] == row[:5]:  # else a writer has deleted or evicted it in between
                message = f"state file {relative_path(row.key)} is not used: {error}. It will be read anew."
                warnings.warn(message, StateFileWarning, stacklevel=4)
            return None

    def _count(self, key: str, row: StateRow | None) -> None:
        with self.catalog.lock:
            self._requests += 1
            self._uses[key] = self._now(key, row) + 1, self._requests
            self._unsaved.add(key)

    def _now(self, key: str, row: StateRow | None) -> float:
        """Requests for a state, aged until now."""
        uses, used = self._uses.get(key) or ((row.uses, row.used) if row is not None else (0.0, 0))
        return uses * 0.5 ** ((self._requests - used) / HALF_LIFE)

    # Putting

    def make_room(self, tokens: Mapping[str, int], elements_per_token: int) -> Room:
        """Which states, of these keys and numbers of tokens, to store and what has to go; warns once if not all."""
        if self.codec == "none":
            return Room(set(), set())
        if self._quota is None:
            return Room(set(tokens), set())
        per_token = bytes_per_token(self.codec, elements_per_token)
        sizes = {key: HEADER_BYTES + math.ceil(per_token * count) for key, count in tokens.items()}
        stored = {row.key: row for row in self.catalog.states()}
        sizes |= {key: stored.pop(key).bytes for key in tokens if key in stored}  # written anew, in its own place
        free = self._quota - sum(row.bytes for row in stored.values())
        if sum(sizes.values()) <= free:
            return Room(set(tokens), set())
        least = sorted(
            ((self._now(row.key, row) / row.bytes, row.key, row.bytes) for row in stored.values()), reverse=True
        )
        room = Room(set(), set())
        for key, needed in sizes.items():
            utility = self._now(key, None) / needed
            enough = free
            places = len(least)
            while enough < needed and places and least[places - 1][0] < utility:
                places -= 1
                enough += least[places][2]
            if enough < needed:
                self._warn()
                continue
            room.evicted.update(victim for _, victim, _ in least[places:])
            del least[places:]
            free = enough - needed
            room.chosen.add(key)
        return room

    def write(self, states: Iterable[tuple[str, DocumentState]]) -> list[StateRow]:
        """Write `(key, state)` pairs to files. Their rows are still to be committed."""
        return self.files.save(states, self.codec)

    def commit(self, rows: Sequence[StateRow], evicted: Iterable[str]) -> None:
        """Rows of new state files in the place of others, and all uses counted so far. Inside a transaction."""
        self.catalog.forget_states(evicted)
        self.catalog.put_states(row._replace(uses=self._now(row.key, None), used=self._requests) for row in rows)
        self._put_uses()

    def put(self, key: str, state: DocumentState) -> None:
        """Store one state if there is room, in place of a damaged one if need be: first its file, then its row."""
        room = self.make_room({key: len(state)}, 2 * state.keys.numel() // len(state))
        if not room.chosen:
            return
        rows = self.write([(key, state)])
        with self.catalog.transaction():
            self.commit(rows, room.evicted)
            garbage = self.catalog.forget_unread_states([key])  # its document was deleted in the meantime
        remove_garbage(self.catalog, self.files, [*room.evicted, *garbage])

    def save_uses(self) -> None:
        """Write what has been counted since the last commit, if anything."""
        if self._unsaved:
            with self.catalog.transaction():
                self._put_uses()

    def _put_uses(self) -> None:
        with self.catalog.lock:
            unsaved, self._unsaved = self._unsaved, set()
            self.catalog.put_uses([(*self._uses[key], key) for key in unsaved], self._requests)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the states of this index have reached their quota of {self._quota:,} bytes: further documents are "
                "stored without a state, which they get when they are asked for more than others",
                stacklevel=2,
            )
