"""Where does the pooled position look, before and after training: at the prompt, at the content, or at itself?

Roth et al. (arXiv 2507.22729) find that contrastive tuning moves the attention of the last token off the prompt
(template and instruction) and onto the content. `python -m experiments.attention rows.jsonl --out attention.svg`
prints the shares of attention of each layer, their means over layers with intervals and the paired change, and draws
them. Shares are means over heads and texts; where more than one position is pooled, the mean over these. The first
token of a prompt takes much attention in any model (Xiao et al. 2023, attention sinks), so its part of the prompt's
share is told too.

Shape letters: `N` texts, `L` layers, `B` batch, `H` heads, `T` tokens, `P` parts.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import numpy as np
import torch
import typer

from experiments.script import run
from gritrag.cli.options import Device, Dtype, Instruction, Json, Model, Side
from gritrag.config import DEFAULT_MODEL, CheckpointConfig
from gritrag.evaluate.machine import machine
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.rows import evenly, keys_of, read_labelled, read_pairs, read_questions
from gritrag.evaluate.statistics import Sampled, as_json
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
        prompts = [model.prompts.query(text, instruction) for text in texts]
    else:
        prompts = [model.prompts.document(text) for text in texts]
    found = []
    for start in ProgressBar(range(0, len(prompts), BATCH), desc="looking", unit="batch"):
        batch = model.prompts.encoder.pad(prompts[start : start + BATCH]).to(model.lm.device)
        with recorded(model) as layers:
            model.reader.read_batch(batch)
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
    facts |= {"reading": config.reading, "pooling": config.pooling, "template": trained.prompts.template.name}
    result = summarise(found, facts, setting.seed)
    if out is not None:
        out.write_text(draw(result), "utf-8")
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)


def _base(model: str, config: CheckpointConfig) -> str:
    """What an adapter was trained on, which may lie in the checkpoint's own folder; empty where there is no adapter."""
    beside = Path(model) / config.base
    return "" if not config.adapter else str(beside) if beside.is_dir() else config.base


PARTS = ("prompt", "content", "self")
"""They sum to one."""
FIRST = "of prompt: first token"

WIDTH, HEIGHT, MARGIN = 320, 220, 40
COLOURS = {"prompt": "#c2571a", "content": "#1f5fa8", "self": "#2a7f3f"}


def summarise(found: dict[str, np.ndarray], facts: dict[str, Any], seed: int) -> dict[str, Any]:
    """Shares per layer, and their means over layers with intervals over texts, paired with the first model's.

    Args:
        found: by model, the one before training first; shares `[N, L, P + 1]` of the same texts.
        facts: what was looked at, and how.
        seed: of resamples.
    """
    models = []
    means = {name: shares_NLP.mean(1) for name, shares_NLP in found.items()}
    first = next(iter(means.values()))
    for name, shares_NLP in found.items():
        by_part = {part: Sampled.mean(means[name][:, n], seed) for n, part in enumerate((*PARTS, FIRST))}
        before = {part: Sampled.mean(first[:, n], seed) for n, part in enumerate((*PARTS, FIRST))}
        models.append(
            {
                "model": name,
                "layers": [dict(zip((*PARTS, FIRST), row, strict=True)) for row in shares_NLP.mean(0).tolist()],
                "mean": {part: value.interval() for part, value in by_part.items()},
                "change": {part: value.minus(before[part]).interval() for part, value in by_part.items()},
            }
        )
    return {"facts": facts, "models": models}


def show(result: dict[str, Any]) -> str:
    """Facts, means over layers, and every layer; points of 100."""
    names = (*PARTS, FIRST)
    means = [[model["model"], "mean", *(model["mean"][part].show() for part in names)] for model in result["models"]]
    means += [
        [model["model"], "change", *(model["change"][part].show("+.1f") for part in names)]
        for model in result["models"][1:]
    ]
    layers = [
        [model["model"], str(number), *(f"{100 * layer[part]:.1f}" for part in names)]
        for model in result["models"]
        for number, layer in enumerate(model["layers"])
    ]
    told = "attention of the pooled position, points of 100, with 95% bootstrap intervals over texts"
    return "\n\n".join(
        [
            header(result["facts"]),
            told,
            aligned(["model", "over layers", *names], means),
            aligned(["model", "layer", *names], layers),
        ]
    )


def draw(result: dict[str, Any]) -> str:
    """SVG: a panel per model, layers from left to right, the parts stacked from prompt (bottom) to self (top)."""
    panels = [_panel(model, number) for number, model in enumerate(result["models"])]
    legend = [
        f'<text x="{MARGIN + 90 * n}" y="{HEIGHT + 2 * MARGIN - 8}" fill="{colour}">{part}</text>'
        for n, (part, colour) in enumerate(COLOURS.items())
    ]
    body = "\n".join([*panels, *legend])
    width = len(panels) * (WIDTH + MARGIN) + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 2 * MARGIN}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(model: dict[str, Any], number: int) -> str:
    left, layers = MARGIN + number * (WIDTH + MARGIN), model["layers"]

    def at(layer: int, share: float) -> str:
        return f"{left + WIDTH * layer / max(1, len(layers) - 1):.1f},{MARGIN + HEIGHT * (1 - share):.1f}"

    below, areas = [0.0] * len(layers), []
    for part, colour in COLOURS.items():
        above = [low + layer[part] for low, layer in zip(below, layers, strict=True)]
        outline = [at(n, share) for n, share in enumerate(above)]
        outline += [at(n, share) for n, share in reversed(list(enumerate(below)))]
        areas.append(f'<polygon fill="{colour}" fill-opacity="0.7" points="{" ".join(outline)}"/>')
        below = above
    title = f'<text x="{left}" y="{MARGIN - 10}">{escape(model["model"])}</text>'
    axis = f'<text x="{left}" y="{MARGIN + HEIGHT + 14}">layer 0 to {len(layers) - 1}</text>'
    return "\n".join([*areas, title, axis])


def command(
    path: Annotated[Path, typer.Argument(help="JSONL of texts with labels, sentence pairs, or questions.")],
    texts: Annotated[int, typer.Option(help="Texts of the file, at most.", min=1)] = 64,
    instruction: Instruction = None,
    side: Side = "query",
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    before: Annotated[str, typer.Option(help="Model before training; the base of the adapter if left out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Draw the shares of every layer here, as SVG.")] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say how much the pooled position looks at prompt, content and itself, before and after training."""
    typer.echo(main(path, model, before, out, dtype, device, as_json, Setting(texts, side, instruction, seed)))


if __name__ == "__main__":
    run(command)
