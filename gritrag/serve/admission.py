"""Admission: how many requests a server takes on at once, and how many of them may be one client's."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gritrag.serve.errors import ApiError
from gritrag.serve.limits import Limits


class Admission:
    """A bounded queue: what is not taken on is refused at once, with the time after which to come again.

    Used from the event loop only.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_client: Counter[str] = Counter()
        self._seconds = 1.0
        self.is_draining = False

    @property
    def taken(self) -> int:
        """Requests that are waiting or running."""
        return self._by_client.total()

    @contextmanager
    def __call__(self, client: str) -> Iterator[None]:
        """A place for one request.

        Raises:
            ApiError: 429 if there is none; 503 if the server is stopping.
        """
        if self.is_draining:
            raise ApiError(503, "the server is stopping", "stopping", retry_after=5)
        most = max(1, math.floor(self._limits.requests * self._limits.client_share))
        is_full = self.taken >= self._limits.requests
        if is_full or self._by_client[client] >= most:
            whose = "this server has" if is_full else "this client has"
            raise ApiError(
                429,
                f"{whose} {self.taken if is_full else most} requests waiting, which is the most; ask again later",
                "queue_full",
                retry_after=max(1, math.ceil(self._seconds)),
            )
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def learn(self, seconds: float) -> None:
        """How long a request took: what is refused may come again after about as long."""
        self._seconds += 0.1 * (seconds - self._seconds)
