"""The processor: which instruction sets it has."""

from collections.abc import Mapping

import torch

QUESTIONS = {
    "avx2": "_is_avx2_supported",
    "avx512_f": "_is_avx512_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_bf16": "_is_amx_tile_supported",  # no processor has the one without the other
}
"""What the oldest torch that we allow is asked, one by one, as it does not list what the processor can do."""


def capabilities() -> Mapping[str, object]:
    """Instruction sets by torch's names, such as ``"avx2"`` or ``"amx_bf16"``, and whether the processor has them."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {name: getattr(torch.cpu, question)() for name, question in QUESTIONS.items()}


def has_bf16() -> bool:
    """Whether it computes in bfloat16, rather than emulating it."""
    able = capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
