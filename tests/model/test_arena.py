"""Laws of the arena: memory is used again, but never by two, and it waits in bounded amount."""

import gc
import threading
from collections.abc import Callable

import torch

from gritrag.model import arena as arena_module
from gritrag.model.arena import CACHE_LINE, GRAIN, KEPT, Arena
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling


def test_memory_is_used_again_when_the_last_tensor_of_it_is_gone() -> None:
    arena = Arena()
    taken = arena.take(1000)
    address = taken.data_ptr()
    assert address % CACHE_LINE == 0
    view = taken.view(torch.float32)[10:20]
    del taken
    other = arena.take(1000)
    assert other.data_ptr() != address
    del view
    gc.collect()
    assert arena.take(GRAIN // 2).data_ptr() == address


def test_memory_that_is_too_small_is_let_go() -> None:
    arena = Arena()
    del (small := [arena.take(10)])[:]
    assert not small
    assert arena.waiting_bytes == GRAIN
    large = arena.take(GRAIN)
    assert arena.waiting_bytes == 0
    del large
    assert arena.waiting_bytes == 2 * GRAIN
    arena.clear()
    assert arena.waiting_bytes == 0


def test_only_so_much_waits() -> None:
    arena = Arena()
    held = [arena.take(10) for _ in range(KEPT + 3)]
    held.clear()
    assert arena.waiting_bytes == KEPT * GRAIN


def test_threads_never_share_a_piece() -> None:
    arena, failures = Arena(), []

    def work(number: int) -> None:
        for _ in range(50):
            piece = arena.take(4096)
            piece.fill_(number)
            if not bool((piece == number).all()):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_answers_follow_each_other_in_one_place_and_leave_nothing_behind(
    make_model: Callable[..., GritModel],
) -> None:
    """NaN that the memory is full of reaches no answer."""
    model = make_model("qwen3")
    states = [reading.state for reading in model.read_documents(["the river", "a bridge over the river"])]
    context, sampling = Context.of(*states, [7, 8, 9]), Sampling(max_new_tokens=8)
    places, texts = set(), []
    for _ in range(3):
        gc.collect()
        cache = model.decoder.place([context], sampling)
        places.add(cache.buffers[0].data_ptr())
        decoding = model.decoder.decode_placed(cache, [context], sampling)
        assert all(pieces is not None for pieces in decoding)
        texts.append(decoding.completions)
        with torch.inference_mode():
            for buffer in cache.buffers:
                buffer.fill_(torch.nan)
        del cache, decoding, buffer
    assert len(places) == 1
    assert texts[0] == texts[1] == texts[2]
    assert arena_module.ARENA.waiting_bytes > 0
