"""Kernels: which attention kernels of torch our forwards use, without a change that outlives them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import Cache

from gritrag.model.module_forward import Forward

_lock = threading.Lock()
_inside = 0
_was_enabled = True


@contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """Leave cuDNN's attention out while this is entered; afterwards it is as it was. Nothing to do but on CUDA.

    cuDNN plans attention anew for every shape, and no two contexts are of one: 10 ms a layer on an H200. The switch is
    one for the whole process (`torch.nn.attention.sdpa_kernel` sets it too), so threads that overlap count themselves:
    the first to come turns it off, the last to go gives back what was there.
    """
    global _inside, _was_enabled
    if device.type != "cuda":
        yield
        return
    with _lock:
        if _inside == 0:
            _was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.backends.cuda.enable_cudnn_sdp(_was_enabled)


class WithoutCudnn:
    """A forward that leaves cuDNN's attention out.

    Args:
        forward: that which computes.
        device: where.
    """

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward, self._device = forward, device

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        """See `Forward`."""
        with without_cudnn(self._device):
            return self._forward.logits(ids_BT, positions_BT, mask, cache, keep)

    def log_probabilities(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        targets_BS: torch.Tensor,
    ) -> torch.Tensor:
        """See `Forward`."""
        with without_cudnn(self._device):
            return self._forward.log_probabilities(ids_BT, positions_BT, mask, cache, targets_BS)

    @property
    def guesses_freely(self) -> bool:
        """See `Forward`."""
        return self._forward.guesses_freely

    def most_tokens(self, cache: Cache) -> int:
        """See `Forward`."""
        return self._forward.most_tokens(cache)

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """See `Forward`."""
        with without_cudnn(self._device):
            return self._forward.next_logits(ids_BT, positions_BT, is_real, cache)
