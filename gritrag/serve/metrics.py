"""What the server counts, for Prometheus. No label says who asked what."""

from fastapi import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STEP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gritrag_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "gritrag_tokens",
            "Tokens of prompts that were read, that were reused, and that were generated.",
            ["kind"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "gritrag_first_token_seconds",
            "From a request to its first token.",
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.steps = Histogram("gritrag_step_seconds", "Steps of the engine.", buckets=STEP, registry=self.registry)
        self.rows = Counter("gritrag_step_rows", "Rows of all steps.", registry=self.registry)
        self.running = Gauge("gritrag_running", "Texts that are generated now.", registry=self.registry)
        self.waiting = Gauge("gritrag_waiting", "Requests that are waiting or running.", registry=self.registry)
        ProcessCollector(registry=self.registry)  # memory and time of the process, where the system tells them
        self.memory = Gauge("gritrag_memory_bytes", "Conversations and documents kept.", registry=self.registry)

    def step(self, rows: int, seconds: float) -> None:
        """One step of the engine."""
        self.steps.observe(seconds)
        self.rows.inc(rows)

    def answer(self, prompt: int, cached: int, generated: int, first_token: float | None) -> None:
        """One text that was written."""
        self.tokens.labels("read").inc(prompt - cached)
        self.tokens.labels("reused").inc(cached)
        self.tokens.labels("generated").inc(generated)
        if first_token is not None:
            self.first_token.observe(first_token)

    def response(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
