"""What one call cost: seconds by part, and tokens, as results keep them."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from gritrag.records import Answer, Timings

T = TypeVar("T")

PARTS = ("retrieve", "load", "place", "question", "decode")
"""Of an answer, in their order: embedding and search, states from their files, rotation to their places, forward over
all tokens that no state stands for, and the tokens after the first."""


def parts_of(timings: Timings) -> dict[str, float]:
    """Seconds of each part; together they are the total. What no part claims of the first token is the forward."""
    given = {field.name: getattr(timings, field.name) for field in fields(timings)}
    first, total = given.pop("first_token"), given.pop("total")
    before = {part: given[part] for part in PARTS[:3]}
    return {**before, "question": first - sum(before.values()), "decode": total - first}


def cost_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of one answer, or of a batch: times are then those of its last row, tokens those of all its rows."""
    timings, usages = answers[-1].timings, [answer.usage for answer in answers]
    return {
        "first_token": timings.first_token,
        "total": timings.total,
        "parts": parts_of(timings),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
    }


def in_turn(cells: Sequence[T], warmup: int, rounds: int) -> Iterator[tuple[int, T]]:
    """`(round, cell)`: each round has every cell once, so that drift of the machine hits all alike, and begins with
    another cell than the one before, so that none always follows the same. Rounds below 0 warm up."""
    for number in range(-warmup, rounds):
        first = number % len(cells)
        yield from ((number, cell) for cell in (*cells[first:], *cells[:first]))
