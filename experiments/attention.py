"""Where the pooled position looks: at the prompt (template and instruction), at the content, or at itself.

Per layer, before and after training. Roth et al. (arXiv 2507.22729) find that contrastive tuning moves the attention of
the last token off the prompt and onto the content. A mean over heads and texts; where more than one position is
pooled, the mean over these. The first token of a prompt takes much attention in any model (Xiao et al. 2023, attention
sinks), so its part of the prompt's share is told too.

Shape letters: `N` texts, `L` layers, `B` batch, `H` heads, `T` tokens, `P` parts.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.attention_report import draw, show, summarise
from gritrag.config import DEFAULT_MODEL, CheckpointConfig
from gritrag.evaluate.facts import as_json, machine
from gritrag.evaluate.labelled import keys_of, read_labelled, read_pairs
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar

BATCH = 8


@dataclass(frozen=True)
class Setting:
    """What is looked at.

    Args:
        texts: so many of a file, spread evenly over it.
        side: they are embedded as a ``query`` or as a ``document``.
        instruction: of queries; the checkpoint's own where None.
        seed: of resamples.

    Raises:
        ValueError: no text, an unknown side, or an instruction for documents.
    """

    texts: int = 64
    side: str = "query"
    instruction: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise ValueError(f"texts must be at least 1, got {self.texts}")
        if self.side not in ("query", "document"):
            raise ValueError(f"texts are embedded as query or as document, not as {self.side!r}")
        if self.side == "document" and self.instruction:
            raise ValueError("documents carry no instruction; embed as query, or leave the instruction out")


def shares(weights_BHTT: torch.Tensor, pool_mask_BT: torch.Tensor, only_last: bool) -> torch.Tensor:
    """How the attention of the pooled positions is spread.

    Args:
        weights_BHTT: attention, each row summing to one; the third axis looks at the fourth.
        pool_mask_BT: which positions hold pooled tokens; they are the content, and every other one is prompt.
        only_last: look from the last of them, else from all alike.

    Returns:
        `[B, P + 1]`: the shares of `attention_report.PARTS`, and of the first position where it belongs to the prompt.
    """
    weights_BTT = weights_BHTT.float().mean(1)
    width = weights_BTT.shape[-1]
    content_BT = looking_BT = pool_mask_BT.bool()
    if only_last:
        places_T = torch.arange(width, device=content_BT.device)
        looking_BT = places_T == (content_BT * places_T).argmax(1, keepdim=True)
    others_TT = ~torch.eye(width, dtype=torch.bool, device=content_BT.device)
    at_content_BTT = others_TT & content_BT[:, None, :]
    at_prompt_BTT = others_TT & ~content_BT[:, None, :]
    parts_BTP = torch.stack(
        [
            (weights_BTT * at_prompt_BTT).sum(-1),
            (weights_BTT * at_content_BTT).sum(-1),
            weights_BTT.diagonal(dim1=1, dim2=2),
            (weights_BTT * at_prompt_BTT)[..., 0],
        ],
        dim=-1,
    )
    looking_BT1 = looking_BT[..., None].float()
    return (parts_BTP * looking_BT1).sum(1) / looking_BT1.sum(1)


@contextmanager
def recorded(model: GritModel) -> Iterator[list[torch.Tensor]]:
    """Attention weights `[B, H, T, T]` of every layer, in order, that forwards inside the context leave in the list."""
    seen: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], torch.Tensor):
            raise ValueError(f"{type(module).__name__} does not show its attention; load the model with `watched`")
        seen.append(output[1].detach())

    layers = [m for m in decoder_stack(model.lm).modules() if type(m).__name__.endswith("Attention")]
    if not layers:
        raise ValueError(f"{model.lm.config.model_type} has no attention to look at")
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.enable_grad():  # the forward of inference runs past the modules, so there would be nothing to watch
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def watched(model: GritModel) -> GritModel:
    """The model in the implementation of attention that shows its weights; slower, and for nothing else.

    Its language model is changed in place, so load one for this.
    """
    model.lm.set_attn_implementation("eager")
    # a bidirectional view has a config of its own, made when the model is
    return GritModel(model.lm, model.tokenizer, model.config) if model.config.reading == "bidirectional" else model


def measure(model: GritModel, texts: Sequence[str], setting: Setting, only_last: bool) -> np.ndarray:
    """Shares `[N, L, P + 1]` of each text in each layer; see `shares`."""
    if setting.side == "query":
        instruction = model.config.instruction if setting.instruction is None else setting.instruction
        prompts = [model.query_prompt(text, instruction) for text in texts]
    else:
        prompts = [model.document_prompt(text) for text in texts]
    found = []
    for start in ProgressBar(range(0, len(prompts), BATCH), desc="looking", unit="batch"):
        batch = model.encoder.pad(prompts[start : start + BATCH]).to(model.lm.device)
        with recorded(model) as layers:
            model.read_batch(batch)
        found.append(torch.stack([shares(layer, batch.pool_mask, only_last) for layer in layers], dim=1).cpu().numpy())
    return np.concatenate(found)


def looks_from_the_last(config: CheckpointConfig) -> bool:
    """Whether the last pooled position is the one that a vector is taken from, rather than all of them."""
    return config.pooling.split("+")[-1] == "last"


def read_texts(path: Path, setting: Setting) -> list[str]:
    """Texts of a file of rows of any kind: of questions, the side that is asked for.

    Raises:
        ValueError: rows of no known kind, or a broken row.
    """
    keys = keys_of(path)
    if "question" in keys:
        rows = read_questions(path)
        texts = [row.text for row in rows] if setting.side == "query" else [row.document.content for row in rows]
    elif "sentence1" in keys:
        texts = [pair.first for pair in read_pairs(path)]
    else:
        texts = [row.text for row in read_labelled(path)]
    return evenly(texts, setting.texts)


def main(
    path: Path,
    model: str = DEFAULT_MODEL,
    before: str = "",
    out: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    as_json_text: bool = False,
    setting: Setting | None = None,
) -> str:
    """Run and return what to print.

    Args:
        path: JSONL of rows of any kind.
        model: to look into.
        before: what it was trained from, read with the same template, pooling and attention; the base of its adapter
            where empty, and nothing where it has none.
        out: the plot goes here.
        dtype, device: see `GritModel.from_pretrained`.
        as_json_text: JSON instead of tables.
        setting: see there.
    """
    setting = setting or Setting()
    texts = read_texts(path, setting)
    trained = GritModel.from_pretrained(model, dtype=dtype, device=device)
    config = trained.config
    only_last = looks_from_the_last(config)
    found: dict[str, np.ndarray] = {}
    before = before or _base(model, config)
    if before:
        base = GritModel.from_pretrained(
            before,
            dtype=dtype,
            device=device,
            reading=config.reading,
            template=config.template,
            instruction=config.instruction,
        )
        found[f"before: {before}"] = measure(watched(base), texts, setting, only_last)
        del base
    found[model] = measure(watched(trained), texts, setting, only_last)
    facts = {"file": str(path), **machine(trained.lm.dtype, trained.lm.device), **vars(setting)}
    facts |= {"reading": config.reading, "pooling": config.pooling, "template": trained.template.name}
    result = summarise(found, facts, setting.seed)
    if out is not None:
        out.write_text(draw(result), "utf-8")
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)


def _base(model: str, config: CheckpointConfig) -> str:
    """What an adapter was trained on, which may lie in the checkpoint's own folder; empty where there is no adapter."""
    beside = Path(model) / config.base
    return "" if not config.adapter else str(beside) if beside.is_dir() else config.base
