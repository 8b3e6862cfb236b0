"""Threads for what takes a while or waits for a file beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")

WORKERS = 4
WRITERS = 8
"""Threads of calls that write an index. They may take minutes and wait for each other, so they have threads of their
own: an answer must never wait for one of them."""


def compute_with(threads: int) -> None:
    """How many threads torch takes for what the calling thread computes.

    `torch.set_num_threads` sets the number of this thread, and that with which others begin. A thread begins when it
    first computes or asks for the number: one that has only set it takes over what another thread has set since.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


def apart(function: Callable[[], T]) -> T:
    """The outcome of a function, called in a thread that ends with it, and whose OpenMP threads end with it too.

    Every thread that computes has OpenMP threads of its own, as long as it lives. Where there are more of them than
    processors, libgomp lets each sleep after every product, and waking it takes longer than a product does: a server
    whose model had been loaded by its main thread took 1.5 times as long for an answer.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as executor:
        return executor.submit(function).result()


def _begin() -> None:
    # a team of threads for each worker would take the cores from the engine, whose own wait for each other
    compute_with(1)


_workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="worker", initializer=_begin)
_writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="writer", initializer=_begin)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The outcome of a function that is called in a thread; what writes an index belongs in `in_writer`."""
    return await asyncio.get_running_loop().run_in_executor(_workers, partial(function, *args, **kwargs))


async def in_writer(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As `in_thread`, for what waits until nobody else writes the same index, and may take long itself."""
    return await asyncio.get_running_loop().run_in_executor(_writers, partial(function, *args, **kwargs))
