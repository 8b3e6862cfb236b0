"""Responses that were stored, so that a later request can go on from them or fetch them."""

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
    """The latest responses of all tenants, so many of them. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_id: OrderedDict[str, Stored] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, stored: Stored) -> None:
        with self._lock:
            self._by_id[stored.body["id"]] = stored
            while len(self._by_id) > self._most:
                self._by_id.popitem(last=False)

    def get(self, id: str, tenant: Tenant) -> Stored:
        """One response of this tenant.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            stored = self._by_id.get(id)
        if stored is None or stored.salt != tenant.salt:
            raise ApiError(404, "there is no response of that id; the oldest are forgotten", "response_not_found", "id")
        return stored

    def delete(self, id: str, tenant: Tenant) -> None:
        self.get(id, tenant)
        with self._lock:
            self._by_id.pop(id, None)
