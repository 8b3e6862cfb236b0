"""What one server takes on: sizes, times and shares, in one place."""

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Args:
        requests: accepted at once, waiting or running; beyond that a request is refused with 429.
        client_share: part of these places that one client may hold, if there are several.
        rows: texts that are generated at once.
        step_tokens: read in one step of the engine, beside the tokens that are decoded. A request that comes waits for
            one step, so a small number keeps first tokens fast.
        background_share: part of the time that embedding and indexing get while somebody waits for an answer.
        cache_tokens: columns of all caches of running texts.
        input_tokens: of one text or context; that of the model where 0.
        new_tokens: of one answer, at most, and where the request does not say.
        seconds: a request that takes longer ends with an error.
        body_bytes, upload_bytes, files_bytes: of one request; of one uploaded file; of all of them.
        memory_bytes: of conversations and texts of requests that are kept for the next turn, all tenants together.
        inputs: texts of one embedding or rerank request.
        responses, responses_bytes: that are kept to be gone on from; of all of them, as JSON.
        choices: texts that one request may have written at once.
    """

    requests: int = 256
    client_share: float = 0.5
    rows: int = 32
    step_tokens: int = 256
    background_share: float = 0.08
    cache_tokens: int = 1 << 16
    input_tokens: int = 0
    new_tokens: int = 2048
    default_new_tokens: int = 256
    seconds: float = 300.0
    body_bytes: int = 4 * MEBIBYTE
    upload_bytes: int = 64 * MEBIBYTE
    files_bytes: int = 4096 * MEBIBYTE
    memory_bytes: int = 512 * MEBIBYTE
    inputs: int = 2048
    responses: int = 1000
    responses_bytes: int = 64 * MEBIBYTE
    choices: int = 8
