"""The processor: which instruction sets it has."""

from collections.abc import Mapping

import torch


def capabilities() -> Mapping[str, object]:
    """Instruction sets by torch's names, such as ``"avx2"`` or ``"amx_bf16"``, and whether the processor has them.

    The oldest releases of torch that we allow do not list them: those that GritRAG looks at are asked for one by one.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {
        "avx2": torch.cpu._is_avx2_supported(),
        "avx512_f": torch.cpu._is_avx512_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),  # no processor has the one without the other
    }


def has_bf16() -> bool:
    """Whether it computes in bfloat16, rather than emulating it."""
    able = capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
