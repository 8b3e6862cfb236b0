"""Responses that were stored, so that a later request can go on from them or fetch them."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from gritrag.serve.errors import ApiError
from gritrag.serve.tenants import Tenant


@dataclass(frozen=True)
class Stored:
    """A response and the messages that led to it.

    Args:
        salt: of the tenant whose it is.
        body: the response as it was sent.
        messages: all that was said, roles and texts, the answer last.
    """

    salt: bytes
    body: dict[str, Any]
    messages: list[dict[str, str]]


class Responses:
    """The latest responses of all tenants, as many as there may be and as fit. Safe to use from several threads.

    Args:
        most: responses.
        most_bytes: of them as JSON. Each holds all that was said before it, and whatever the client sent as metadata.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._by_id: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def keep(self, stored: Stored) -> None:
        size = len(json.dumps([stored.body, stored.messages]))
        with self._lock:
            self._by_id[stored.body["id"]] = stored, size
            self.bytes += size
            while len(self._by_id) > self._most or self.bytes > self._most_bytes:
                _, (_, freed) = self._by_id.popitem(last=False)
                self.bytes -= freed

    def get(self, id: str, tenant: Tenant) -> Stored:
        """One response of this tenant.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            stored, _ = self._by_id.get(id, (None, 0))
        if stored is None or stored.salt != tenant.salt:
            raise ApiError(404, "there is no response of that id; the oldest are forgotten", "response_not_found", "id")
        return stored

    def delete(self, id: str, tenant: Tenant) -> None:
        self.get(id, tenant)
        with self._lock:
            _, freed = self._by_id.pop(id, (None, 0))
            self.bytes -= freed
