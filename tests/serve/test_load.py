"""Laws of load, at a size that a test can afford: nothing is lost, nobody waits for ever, and nothing grows."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Request
from serving import QUESTIONS, Running

from gritrag import GritModel
from gritrag.model.context import Context
from gritrag.model.ragged import PADDED, ragged
from gritrag.model.sampling import Sampling
from gritrag.serve.admission import Admission
from gritrag.serve.engine import GAP_TOKENS, Engine
from gritrag.serve.errors import ApiError
from gritrag.serve.generation import Generation
from gritrag.serve.http import streamed
from gritrag.serve.jobs import Event, Failed, FairQueue, Finished
from gritrag.serve.limits import Limits
from gritrag.serve.memory import Memory
from gritrag.serve.question import Asker
from gritrag.serve.reading import ReadingJob
from gritrag.serve.tenants import Tenant
from gritrag.tokens import TokenIds

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "tell me"}]}
LONG = {**CHAT, "max_tokens": 400, "temperature": 1.0, "logprobs": True, "seed": 65}
"""Eight texts with these seeds go on for at least 95 tokens. Drawn without a seed, one may end with its first token."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


# --- the engine by itself --------------------------------------------------------------------------------------------


class Events(list[Event]):
    """What the engine told of one job."""

    @property
    def is_over(self) -> bool:
        return bool(self) and isinstance(self[-1], Finished | Failed)


@pytest.fixture
def engine(tiny_model: GritModel) -> Iterator[Engine]:
    engine = Engine(tiny_model, Limits(rows=2, step_tokens=32), Memory(1 << 20))
    engine.start()
    yield engine
    engine.stop()


def job(
    engine: Engine, client: str = "a", tokens: int = 8, seconds: float = 60, **options: Any
) -> tuple[Generation, Events]:
    events = Events()
    context = Context.of(engine.model.prompts.prompt_ids("some words to go on from"))
    sampling = Sampling(max_new_tokens=tokens, temperature=2.0, seed=1, **options)
    return Generation(context, sampling, client, time.monotonic() + seconds, sink=events.append), events


def test_embedding_beside_answers_takes_whole_stretches_and_no_more(tiny_model: GritModel) -> None:
    """What was saved up is spent from `GAP_TOKENS` on, as far as texts can be cut there; a question that is expected
    waits for so many at most."""
    engine = Engine(tiny_model, Limits(step_tokens=256), Memory(1 << 20))
    ids = tiny_model.prompts.prompt_ids("a long text " * 100)
    prompts = [TokenIds(ids, [True] * len(ids))]
    assert len(ids) > 256
    engine._background.push(ReadingJob(prompts, "b", time.monotonic() + 60))
    engine._token_cost = 1.0

    def taken(is_busy: bool, saved: float = 0.0) -> int:
        engine._credit = saved
        engine._background.peek().texts[0].done = 0
        return engine._plan(is_busy)[1]

    assert taken(is_busy=True, saved=GAP_TOKENS - 1) == 0
    assert taken(is_busy=True, saved=GAP_TOKENS + 5) == GAP_TOKENS
    assert taken(is_busy=True, saved=GAP_TOKENS + PADDED + 5) == GAP_TOKENS + PADDED
    assert taken(is_busy=False) == 256, "nobody was answered yet"
    engine._account(0, 0.1, is_busy=True)
    assert taken(is_busy=False) == GAP_TOKENS
    engine._expects_until = time.monotonic() - 1
    assert taken(is_busy=False) == 256


def test_one_bad_request_never_stops_the_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad when it joins, in the forward that it shares with others, and when its token is chosen."""
    good, told = job(engine, tokens=60)
    engine.submit(good)
    too_long, told_long = job(engine, tokens=10_000)
    engine.submit(too_long)
    poisoned, told_poisoned = job(engine)

    def fails(step: Any, rows: Any) -> Any:
        if any(row.cache is getattr(poisoned, "_cache", None) for row in rows):
            raise RuntimeError("poison")
        return ragged(step, rows)

    monkeypatch.setattr("gritrag.serve.engine.ragged", fails)
    engine.submit(poisoned)
    broken, told_broken = job(engine)
    monkeypatch.setattr(broken, "take", lambda logits: 1 / 0)
    engine.submit(broken)
    wait_until(lambda: all(events.is_over for events in (told, told_long, told_poisoned, told_broken)))
    for events, kind in ((told_long, ValueError), (told_poisoned, RuntimeError), (told_broken, ZeroDivisionError)):
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, kind)
    assert isinstance(told[-1], Finished)
    alone, told_alone = job(engine, tokens=60)
    engine.submit(alone)
    wait_until(lambda: told_alone.is_over)
    assert told_alone[-1].completion == told[-1].completion  # type: ignore[union-attr]


def test_who_goes_away_frees_the_place(engine: Engine) -> None:
    jobs = [job(engine, tokens=450) for _ in range(2)]
    for each, _ in jobs:
        engine.submit(each)
    waiting, told = job(engine, tokens=1)
    engine.submit(waiting)
    wait_until(lambda: engine.running == 2)
    assert not told
    jobs[0][0].is_cancelled = True
    wait_until(lambda: told.is_over)
    assert isinstance(told[-1], Finished)


def test_a_deadline_ends_what_runs_and_what_waits(engine: Engine) -> None:
    jobs = [job(engine, tokens=450, seconds=0.05) for _ in range(3)]
    for each, _ in jobs:
        engine.submit(each)
    reading = ReadingJob([TokenIds([3] * 40, [True] * 40)], "a", time.monotonic() - 1)
    engine.submit(reading)
    with pytest.raises(TimeoutError):
        reading.future.result(20)
    wait_until(lambda: all(events.is_over for _, events in jobs))
    assert any(isinstance(events[-1], Failed) and isinstance(events[-1].error, TimeoutError) for _, events in jobs)
    wait_until(lambda: engine.running == 0)


def test_stopping_finishes_what_was_taken_on(tiny_model: GritModel) -> None:
    engine = Engine(tiny_model, Limits(rows=2), Memory(1 << 20))
    engine.start()
    jobs = [job(engine, tokens=20) for _ in range(6)]
    for each, _ in jobs:
        engine.submit(each)
    engine.stop()
    assert all(isinstance(events[-1], Finished) for _, events in jobs)
    with pytest.raises(RuntimeError, match="stopping"):
        engine.submit(jobs[0][0])


def test_clients_take_turns() -> None:
    queue = FairQueue[ReadingJob]()
    jobs = [ReadingJob([], client, 0) for client in "aaaabbc"]
    for each in jobs:
        queue.push(each)
    assert [each.client for each in queue] == list("abcabaa")
    assert len(queue) == 7
    assert queue.remove(lambda each: each is jobs[1]) == [jobs[1]]
    taken = [queue.pop() for _ in range(6)]
    assert [each.client for each in taken] == list("abcaba")
    assert [each for each in taken if each.client == "a"] == [jobs[0], jobs[2], jobs[3]]
    assert queue.peek() is None


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    admission = Admission(Limits(requests=4))
    admission.learn(11.0)
    with admission("a"), admission("a"):
        with pytest.raises(ApiError) as own, admission("a"):
            pass
        with admission("b"), admission("b"), pytest.raises(ApiError) as full, admission("c"):
            pass
    for error in (own.value, full.value):
        assert error.status == 429
        assert int(error.response.headers["retry-after"]) == 2
    assert admission.taken == 0
    with admission("c"):
        assert admission.taken == 1


def test_memory_is_bounded_and_forgets_what_was_not_asked_for(tiny_model: GritModel) -> None:
    (reading,) = tiny_model.read_documents(["some words"])
    size = reading.state.nbytes
    memory = Memory(3 * size)
    for number in range(5):
        memory.keep_document(b"s" * 32, [number], reading)
        memory.document(b"s" * 32, [0])
    assert memory.bytes == 3 * size
    assert memory.document(b"s" * 32, [0]) is not None
    assert memory.document(b"s" * 32, [1]) is None
    assert memory.document(b"t" * 32, [0]) is None


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_vanishes_frees_its_slot(
    is_stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for all of it, and in the middle of a stream."""
    service = server.service
    monkeypatch.setattr(service.engine, "on_step", lambda rows, seconds: time.sleep(0.02))
    body = {**LONG, "n": 8, "stream": is_stream}
    with server.client() as client:
        if is_stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()  # which ends the stream when it goes
                assert next(lines).startswith("data:")
                assert service.engine.running == 8
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=0.3)
    wait_until(lambda: service.engine.running == 0 and service.admission.taken == 0, 5)
    with server.client() as client:
        assert client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2}).status_code == 200


def test_a_client_that_vanishes_before_its_stream_begins_frees_its_place(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    """Its text is never begun."""
    server = start(tiny_model, {"docs": make_index(tiny_model)}, rows=1)
    service = server.service
    service.engine.on_step = lambda rows, seconds: time.sleep(0.02)
    first = {**LONG, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=first) as response:
        lines = response.iter_lines()  # which ends the stream when it goes
        next(lines)
        with server.client() as impatient, pytest.raises(httpx.ReadTimeout):
            impatient.post("/v1/chat/completions", json={**CHAT, "stream": True}, timeout=0.3)
        wait_until(lambda: service.admission.taken == 1 and service.engine.waiting == 0, 1.5)
        assert service.engine.running == 1, "the other one goes on"


async def test_a_client_that_does_not_take_its_stream_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves its connection open and reads nothing."""
    service, ended = SimpleNamespace(admission=Admission(Limits())), asyncio.Event()
    monkeypatch.setattr("gritrag.serve.http.GRACE", 0.1)

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(3):
                yield b"data: more\n\n"
        finally:
            ended.set()

    async def for_ever(*message: Any) -> Any:
        await asyncio.Event().wait()

    asker = Asker(Tenant("a", set(), set()), "a", time.monotonic() + 0.1)
    request = Request({"type": "http"}, receive=for_ever)
    response = await streamed(service, asker, request, events())  # type: ignore[arg-type]
    assert service.admission.taken == 1
    await asyncio.wait_for(response({"type": "http"}, for_ever, for_ever), 10)
    assert ended.is_set()
    assert service.admission.taken == 0


def test_too_many_requests_get_429_and_the_others_their_answers(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, requests=6, client_share=1.0, rows=2)

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            body = {**CHAT, "max_tokens": 60}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(24)))

    responses = asyncio.run(flood())
    refused = [response for response in responses if response.status_code == 429]
    assert refused
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert all(response.json()["error"]["type"] == "rate_limit_error" for response in refused)
    answered = [response for response in responses if response.status_code == 200]
    assert len(answered) + len(refused) == 24
    assert len(answered) >= 6
    assert len({response.json()["choices"][0]["message"]["content"] for response in answered}) == 1


async def mixed(url: str, count: int, abreast: int) -> list[int]:
    """Status codes of requests of all kinds."""
    gate = asyncio.Semaphore(abreast)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 4}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 4, "stream": True}),
        ("/v1/embeddings", {"input": QUESTIONS}),
        ("/v1/rag", {"question": QUESTIONS[0], "max_new_tokens": 4}),
        ("/v1/rag", {"question": QUESTIONS[1], "max_new_tokens": 4, "mode": "doc-query", "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": "one", "max_tokens": 4}),
        ("/v1/responses", {"model": "rag/docs", "input": QUESTIONS[2], "max_output_tokens": 4}),
        ("/rerank", {"query": QUESTIONS[3], "documents": QUESTIONS}),
        ("/v1/vector_stores/docs/search", {"query": QUESTIONS[4]}),
        ("/v1/indexes/docs/documents", {"documents": [{"id": "changing", "text": "this note is written again"}]}),
    ]

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        async with gate:
            path, body = bodies[number % len(bodies)]
            return (await client.post(path, json=body)).status_code

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(ask(client, number) for number in range(count)))


def test_five_hundred_mixed_requests_without_an_error_in_flat_memory(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, memory_bytes=1 << 20)
    assert set(asyncio.run(mixed(server.url, 100, 16))) == {200}
    before = resident_bytes()
    assert set(asyncio.run(mixed(server.url, 500, 16))) == {200}
    assert resident_bytes() - before < 48 << 20
    assert server.service.admission.taken == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def process(real_model: GritModel, make_index: Callable[..., Path]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`gritrag serve` as users start it."""
    folder, port = make_index(real_model), free_port()
    command = ["from gritrag.cli import app; app()", "serve", str(folder), "--port", str(port)]
    options = ["--model", "smollm2-135m", "--dtype", "float32", "--rows", "4"]
    server = subprocess.Popen([sys.executable, "-c", *command, *options], stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert server.poll() is None, server.stderr.read().decode()  # type: ignore[union-attr]
        try:
            return httpx.get(f"{url}/ready").status_code == 200
        except httpx.ConnectError:
            return False

    wait_until(is_ready, 90)
    yield server, url
    server.kill()
    server.wait()


def test_sigterm_under_load_finishes_what_was_accepted(process: tuple[subprocess.Popen[bytes], str]) -> None:
    server, url = process
    texts: list[str] = []
    errors: list[Exception] = []
    begun = threading.Barrier(7)

    def ask(number: int) -> None:
        body = {"question": QUESTIONS[number], "max_new_tokens": 24, "stream": True, "k": 2}
        try:
            with httpx.stream("POST", f"{url}/v1/rag", json=body, timeout=120) as response:
                lines = response.iter_lines()
                next(lines)
                begun.wait(60)
                texts.append("\n".join(lines))
        except Exception as error:  # told below
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert errors == []
    assert all("event: answer" in text for text in texts)
    assert server.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    assert b"Traceback" not in server.stderr.read()  # type: ignore[union-attr]
