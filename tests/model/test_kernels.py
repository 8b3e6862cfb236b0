"""cuDNN's attention is left out where we compute on a GPU, and everybody else finds it as it was."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any

import pytest
import torch
from architectures import make_lm

from gritrag.model.forwards import Forwards
from gritrag.model.kernels import WithoutCudnn, without_cudnn

GPU, PROCESSOR = torch.device("cuda"), torch.device("cpu")


def is_on() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture(params=[True, False])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    found = is_on()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(found)


def test_it_is_off_inside_and_as_it_was_afterwards(before: bool) -> None:
    with without_cudnn(GPU):
        assert not is_on()
        with without_cudnn(GPU):
            assert not is_on()
        assert not is_on(), "the inner one does not turn on what the outer one needs off"
    assert is_on() == before
    with suppress(KeyError), without_cudnn(GPU):
        raise KeyError
    assert is_on() == before
    with without_cudnn(PROCESSOR):
        assert is_on() == before


def test_threads_that_overlap_leave_it_as_it_was(before: bool) -> None:
    """The first comes out while the second is still inside: neither order of entering and leaving matters."""
    both, first_out = Barrier(2), Barrier(2)

    def compute(leaves_first: bool) -> bool:
        with without_cudnn(GPU):
            both.wait()
            if leaves_first:
                return is_on()
            first_out.wait()
            return is_on()

    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(compute, False)
        assert not pool.submit(compute, True).result()
        first_out.wait()
        assert not late.result()
    assert is_on() == before


def test_forwards_on_a_gpu_leave_it_out_and_those_on_a_processor_are_as_they_are() -> None:
    class OnGpu:
        device, config = GPU, make_lm("llama").config

    forwards: Any = Forwards(OnGpu(), None)  # type: ignore[arg-type]
    seen: list[bool] = []

    class Watched:
        def logits(self, *inputs: object) -> None:
            seen.append(is_on())

    best = forwards.best
    assert isinstance(best, WithoutCudnn)
    best._forward = Watched()
    best.logits(None, None, None, None)
    assert seen == [False]
    lm = make_lm("llama")
    assert not isinstance(Forwards(lm, None).best, WithoutCudnn)
