"""What the engine is asked for, by whom, and how it answers: jobs, events and the queue that is fair to clients."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from gritrag.model.decode import Completion


class TokenLogprob(NamedTuple):
    """A token that was chosen, and the likeliest ones of its place: `(id, natural logarithm of the probability)`."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """New text of a generation, and its tokens where logprobs are wanted."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(NamedTuple):
    """The end of a generation.

    Args:
        completion: all of it.
        cached_tokens: of the prompt, that were there from an earlier turn.
        place: seconds that placing states took.
        logprobs: of all tokens, where they are wanted.
        read_again: tokens of states that were recomputed.
    """

    completion: Completion
    cached_tokens: int
    place: float
    logprobs: tuple[TokenLogprob, ...] = ()
    read_again: int = 0


class Failed(NamedTuple):
    """A job that came to nothing."""

    error: Exception


Event = Piece | Finished | Failed
Sink = Callable[[Event], None]
"""Called in the engine's thread; must return at once."""


class Job(Protocol):
    """Something that waits for its turn."""

    client: str


J = TypeVar("J", bound=Job)
T = TypeVar("T")


class Awaited(Generic[T]):
    """A job with one outcome, that somebody waits for until a time of `time.monotonic`."""

    future: "Future[T]"
    deadline: float

    def settle(self, outcome: T) -> None:
        """Hand the outcome over."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more; one whose time is over is told so."""
        if not self.future.done() and time.monotonic() > self.deadline:
            self.fail(DeadlineError("this request took longer than the server allows"))
        return self.future.done()


@dataclass
class FairQueue(Generic[J]):
    """First come, first served within a client; clients take turns."""

    _by_client: "OrderedDict[str, deque[J]]" = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self._by_client.values()))

    def __iter__(self) -> Iterator[J]:
        """In the order in which they would be popped."""
        waiting = [deque(jobs) for jobs in self._by_client.values()]
        while waiting:
            for jobs in waiting:
                yield jobs.popleft()
            waiting = [jobs for jobs in waiting if jobs]

    def push(self, job: J) -> None:
        self._by_client.setdefault(job.client, deque()).append(job)

    def peek(self) -> J | None:
        """The job whose turn it is."""
        return next(iter(self._by_client.values()))[0] if self._by_client else None

    def pop(self) -> J:
        """Take it; its client goes to the end of the line."""
        client, jobs = next(iter(self._by_client.items()))
        job = jobs.popleft()
        if jobs:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return job

    def rotate(self) -> None:
        """The client whose turn it is has had it."""
        if self._by_client:
            self._by_client.move_to_end(next(iter(self._by_client)))

    def remove(self, is_gone: Callable[[J], bool]) -> list[J]:
        """Take out all that are gone."""
        gone = [job for jobs in self._by_client.values() for job in jobs if is_gone(job)]
        for client in list(self._by_client) if gone else ():
            kept = deque(job for job in self._by_client[client] if not any(job is each for each in gone))
            if kept:
                self._by_client[client] = kept
            else:
                del self._by_client[client]
        return gone


class DeadlineError(TimeoutError):
    """A request took longer than the server allows."""


class StoppingError(RuntimeError):
    """The server takes nothing more on."""
