"""What probes of a model find, and what they are asked with.

Shape letters: `B` batch, `T` tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from gritrag.model.caches import CacheShape
from gritrag.model.native_forward import NativeForward
from gritrag.model.rotation import Rotation
from gritrag.model.step import Step

Name = Literal["bidirectional", "move", "continue", "step"]
Outcome = Literal["works", "falls back", "refused"]

NAMES: tuple[Name, ...] = ("bidirectional", "move", "continue", "step")

TOKENS = 8
SHIFT = 5


@dataclass(frozen=True)
class Probe:
    """What was proved. `detail` says what happens instead where it does not work."""

    name: Name
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Masks:
    """What holds of the masks of one model.

    Args:
        in_rows: texts of several lengths share a batch, padded in front of their states and behind them.
        by_token: it takes a mask that says of each token what it sees, and its attention can be watched.
        with_bias: it adds to its attention scores what such a mask holds.
    """

    in_rows: bool = True
    by_token: bool = True
    with_bias: bool = True


@dataclass(frozen=True)
class Probed:
    """The probes of one model and what they found: how to read bidirectionally, how to rotate, the shape of its caches.

    `attention` is ``"view"``, ``"mask"`` or ``""`` (cannot); `rotation` is None where keys cannot be moved; `shape` is
    None where states cannot be used at all, and texts are read by the `native` forward; `step` is None where the
    forward of transformers has to be used. `masks` are those of the forward that is used.
    """

    probes: tuple[Probe, ...]
    attention: str
    rotation: Rotation | None
    shape: CacheShape | None
    step: Step | None = None
    native: NativeForward | None = None
    masks: Masks = Masks()

    def require_shape(self) -> CacheShape:
        """The shape of the model's caches.

        Raises:
            ValueError: its states cannot be used.
        """
        if self.shape is None:
            raise ValueError(
                f"this model has no states to reuse: {self.probes[2].detail}. Answer with mode='doc-query', and build "
                "indexes with states='none'"
            )
        return self.shape


def probe_ids(lm: PreTrainedModel) -> torch.Tensor:
    """Two rows of tokens that are no specials, `[2, T]`, the same at every load."""
    generator = torch.Generator().manual_seed(0)
    size = int(lm.config.get_text_config().vocab_size)
    return torch.randint(size // 4, size, (2, TOKENS), generator=generator).to(lm.device)


def tolerance(dtype: torch.dtype) -> float:
    """Relative to the largest value; a wrong attention or a wrong rotation is off by a hundred times as much."""
    return 1e-4 if dtype == torch.float32 else 4e-2


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value of `b`."""
    scale = b.float().abs().max().clamp_min(1e-12)
    return float((a.float() - b.float()).abs().max() / scale)
