"""Servers of the tests: they run in this process, over a tiny model."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from gritrag import Document
from gritrag.serve.app import create_app
from gritrag.serve.service import Service

DOCUMENTS = [
    Document("the ferry leaves at noon", id="ferry", metadata={"kind": "boat", "year": 1990}),
    Document("the bridge is made of iron", id="bridge", title="Bridge", metadata={"kind": "bridge", "year": 2001}),
    Document("seven geese live by the river", id="geese", metadata={"kind": "bird"}),
    Document("a lamp burns in the tower", id="lamp"),
    Document("bread is baked before dawn", id="bread"),
    Document("the mill stands still in winter", id="mill"),
]
QUESTIONS = [
    "when does the ferry leave?",
    "what is the bridge made of?",
    "how many geese are there?",
    "what burns in the tower?",
    "when is bread baked?",
    "where does the mill stand?",
]


@dataclass(frozen=True)
class Running:
    """A server that runs in this process."""

    service: Service
    url: str

    def client(self, key: str = "", **options: object) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def running(service: Service) -> Iterator[Running]:
    config = uvicorn.Config(create_app(service), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(service, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
