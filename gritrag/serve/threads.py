"""Threads for what takes a while or waits for a file beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")

WORKERS = 4


def _begin() -> None:
    # a team of OpenMP threads for each of them would take the cores from the engine, whose threads wait for each other
    torch.set_num_threads(1)


_workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="worker", initializer=_begin)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The outcome of a function that is called in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_workers, partial(function, *args, **kwargs))
