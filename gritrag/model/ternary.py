"""Ternary changes: what training did to every weight in three values a number, where a low rank would lose too much.

A change of weights by full fine-tuning has no low rank: an adapter that fits keeps what the texts of the training
needed, and loses what other texts would have. Its signs and a scale for each row carry nearly all of it (Liu et al.
2024, BitDelta, arXiv 2402.10193, with one bit); a third value, for changes that are small, halves what one bit loses.

<folder>/ternary.safetensors, for each layer:
    <layer>.scale   float16 [O]
    <layer>.codes   uint8: rows one after the other, five numbers to a byte in base 3 (0, 1, 2 for -1, 0, 1), zlib

Shape letters: `I` and `O` numbers that go into and come out of a layer.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from gritrag.model.weight_change import Extraction, linear_layers

TERNARY = "ternary.safetensors"
FORMAT = "gritrag-ternary-1"

SMALL = 1.0
"""Changes below this share of their row's mean size become 0: of a normal distribution 58%, 1.41 bits a number."""

POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
FIVES = (np.arange(3 ** len(POWERS))[:, None] // POWERS % 3).astype(np.float32) - 1
"""The numbers that a byte stands for: looked up, as dividing every byte takes most of the time of loading."""


def write(
    lm: PreTrainedModel,
    base: Mapping[str, torch.Tensor],
    folder: Path,
    moments: Mapping[str, torch.Tensor] | None = None,
) -> Extraction:
    """Write the change of the linear layers since `base` in ternary numbers.

    Args:
        lm: the trained model.
        base: weights it started from, by name, as in its state dict.
        folder: created where it does not exist.
        moments: of the layers' inputs, to tell what is lost of what layers put out; see `input_moments`.
    """
    tensors: dict[str, torch.Tensor] = {}
    sums = torch.zeros(4, dtype=torch.float64)  # weights lost, weights changed, outputs lost, outputs changed
    for name, layer in linear_layers(lm).items():
        weight_OI = layer.weight.detach().cpu().float()
        change_OI = weight_OI - base[f"{name}.weight"].cpu().float()
        codes_OI, scale_O = _ternary(change_OI)
        tensors[f"{name}.scale"] = scale_O
        tensors[f"{name}.codes"] = torch.frombuffer(bytearray(_packed(codes_OI)), dtype=torch.uint8)
        lost_OI = change_OI - codes_OI * scale_O[:, None].float()
        moment_II = moments[name].cpu() if moments else torch.eye(change_OI.shape[1])
        parts = [part.square().sum() for part in (lost_OI, change_OI)]
        parts += [((part @ moment_II) * part).sum() for part in (lost_OI, change_OI)]
        sums += torch.stack(parts).double()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TERNARY, metadata={"format": FORMAT})
    errors = [(sums[n] / sums[n + 1]).clamp_min(0).sqrt().item() if sums[n + 1] else 0.0 for n in (0, 2)]
    return Extraction((folder / TERNARY).stat().st_size, *errors)


@torch.no_grad()
def add(lm: PreTrainedModel, file: Path) -> None:
    """Add a change to the weights of a model, in place.

    Raises:
        ValueError: the file is broken, of a later format, or of another model.
    """
    layers = linear_layers(lm)
    try:
        with safe_open(file, framework="pt") as stored:
            if (stored.metadata() or {}).get("format") != FORMAT:
                raise ValueError(f"{file} is not in the format {FORMAT}: it is broken, or a later gritrag wrote it")
            names = {key.removesuffix(".codes") for key in list(stored.keys()) if key.endswith(".codes")}
            if names != set(layers):
                raise ValueError(f"{file} is a change of another model: it has {len(names)} layers, not {len(layers)}")
            for name, layer in layers.items():
                codes_OI = _unpacked(stored.get_tensor(f"{name}.codes"), layer.weight.shape)
                change_OI = codes_OI * stored.get_tensor(f"{name}.scale").float()[:, None]
                layer.weight += change_OI.to(layer.weight)
    except (SafetensorError, OSError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{file} is broken ({error}); fetch the checkpoint again") from None


def rounded(change_OI: torch.Tensor) -> torch.Tensor:
    """What is left of a change once it has been written: float32 `[O, I]`."""
    codes_OI, scale_O = _ternary(change_OI)
    return codes_OI * scale_O[:, None].float()


def _ternary(change_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-1, 0 or 1 for each number, and for each row what 1 stands for: the mean size of those that are not 0."""
    size_OI = change_OI.abs()
    is_kept_OI = size_OI > SMALL * size_OI.mean(1, keepdim=True)
    scale_O = (size_OI * is_kept_OI).sum(1) / is_kept_OI.sum(1).clamp_min(1)
    return change_OI.sign() * is_kept_OI, scale_O.half()


def _packed(codes_OI: torch.Tensor) -> bytes:
    digits = (codes_OI.flatten() + 1).to(torch.uint8).numpy()
    fives = np.pad(digits, (0, -len(digits) % len(POWERS))).reshape(-1, len(POWERS))
    coder = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)  # the numbers are noise: nothing repeats
    return coder.compress((fives * POWERS).sum(1, dtype=np.uint8).tobytes()) + coder.flush()


def _unpacked(stored: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """float32 `[O, I]` of -1, 0 and 1. Raises a ValueError where the bytes are not so many numbers."""
    count = -(-shape.numel() // len(POWERS))
    fives = np.frombuffer(zlib.decompressobj().decompress(stored.numpy().tobytes(), count + 1), dtype=np.uint8)
    if len(fives) != count or fives.max(initial=0) >= 3 ** len(POWERS):
        raise ValueError(f"a change holds {len(fives)} bytes where {count} belong, or bytes that are none of it")
    return torch.from_numpy(FIVES.take(fives, 0).reshape(-1)[: shape.numel()]).view(shape)
