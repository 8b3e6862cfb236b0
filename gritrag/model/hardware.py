"""Hardware: on which device and in which dtype a model computes."""

import torch

from gritrag.model.packed import can_pack
from gritrag.processor import has_bf16


def pick_device(device: str) -> torch.device:
    """A device by name; ``"auto"`` is CUDA, else MPS, else the processor.

    Raises:
        ValueError: there is no such device here.
    """
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no device {device!r} here ({reason}); use auto, cpu, cuda or mps") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A dtype by name. ``"auto"`` is bfloat16 where the hardware computes in it, else float32: a processor without
    bfloat16 instructions emulates them, six times slower than float32.

    Raises:
        ValueError: another than float32, bfloat16 and float16.
    """
    if dtype != "auto":
        found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
        if found not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"no dtype {dtype!r}; use auto, float32, bfloat16 or float16")
        return found
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def halves_weights(dtype: str | torch.dtype, device: torch.device) -> bool:
    """Whether weights are rounded to half precision at load: where ``"auto"`` computes in float32 and it can be used.

    Where it finds bfloat16, weights are rounded to that: eight times as coarsely.
    """
    return dtype == "auto" and can_pack(device) and not has_native_bf16(device)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and has_bf16()
