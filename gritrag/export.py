"""A model as a folder that sentence-transformers loads as it is, for the same vectors from `encode_query` and
`encode_document`.

Sentence-transformers knows a prompt in front of a text, which may be left out of the pooling, and a tokenizer. What a
template puts in front becomes such a prompt; what it puts behind and pools, the tokenizer appends; what it puts behind
and does not pool is dropped, which changes nothing where reading is causal. Text is tokenised apart from its prompt, as
here: the tokenizer cuts where a prompt ends. Whatever cannot be said so is refused, and the rest is compared before
anything is written.

The folder differs in two ways: a control token or a marker within a text acts as one, and white space around a text is
read. Vectors of hostile or unstripped text therefore differ.

Shape letters: `B` batch, `T` tokens, `D` hidden.
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gritrag.folders import check_new, give_usual_rights
from gritrag.model.attention import bidirectional_view, decoder_stack
from gritrag.model.grit import GritModel
from gritrag.model.parts import PROJECTION
from gritrag.model.probes import probe
from gritrag.prompts import Segment, content

POOLINGS = {"mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
"""Ours, in the order in which sentence-transformers concatenates them, and theirs."""

TRANSFORMER, POOLING, DENSE, NORMALIZE = "", "1_Pooling", "2_Dense", "3_Normalize"
MODULES = {TRANSFORMER: "Transformer", POOLING: "Pooling", DENSE: "Dense", NORMALIZE: "Normalize"}
"""Folders and types; the dense one only where there is a projection."""
OLDEST = "5.4.0"
"""The first release that gives the same vectors where tokens are averaged: older ones warn of a newer folder."""
PROBES = (
    "Owls click.",
    "(In brackets.) A second text, of 12 words or so; it ends\n\nafter a blank line!",
    "Instruct: été in 東京 — what?",
)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Dress:
    """What stands around the text of a query or of a document, scaffold and instruction alike."""

    before: tuple[Segment, ...]
    after: tuple[Segment, ...]

    @property
    def prompt(self) -> str:
        return "".join(segment.text.strip() if segment.is_content else segment.text for segment in self.before)

    def end(self, model: GritModel) -> list[int]:
        """Tokens behind the text, as they are when they stand there."""
        text = content("x")
        return _ids(model, [*self.before, text, *self.after])[len(_ids(model, [*self.before, text])) :]


def to_sentence_transformers(model: GritModel, folder: str | Path) -> Path:
    """Write the model, its adapter merged.

    Args:
        model: any whose vectors sentence-transformers can compute.
        folder: new or empty.

    Returns:
        the folder.

    Raises:
        ValueError: the folder holds something, or vectors would differ; the message says why.
    """
    folder = Path(folder)
    check_new(folder)
    poolings = _poolings(model)
    dresses = {
        "query": _dress(model, model.prompts.template.query_segments(PROBES[0], model.config.instruction), poolings),
        "document": _dress(model, model.prompts.template.document_segments(PROBES[0]), poolings),
    }
    ends = {name: dress.end(model) for name, dress in dresses.items()}
    if ends["query"] != ends["document"]:
        raise ValueError(
            f"template {model.prompts.template.name} ends queries and documents differently, and a tokenizer of "
            "sentence-transformers can append only the same to both"
        )
    tokenizer = _tokenizer(model, list(dresses.values()), ends["query"])
    for name, dress in dresses.items():
        _check_tokens(model, name, dress, tokenizer, is_last="mean" not in poolings)
        _check_vectors(model, name, dress, tokenizer, poolings)
    _write(model, tokenizer, {name: dress.prompt for name, dress in dresses.items()}, poolings, folder)
    return folder


def _poolings(model: GritModel) -> list[str]:
    names = model.config.pooling.split("+")
    if names != [name for name in POOLINGS if name in names]:
        raise ValueError(
            f"sentence-transformers cannot pool like {model.config.pooling!r}; it can: {', '.join(POOLINGS)} and "
            f"{'+'.join(POOLINGS)}"
        )
    return names


def _dress(model: GritModel, segments: Sequence[Segment], poolings: Sequence[str]) -> Dress:
    """Split at the text.

    Raises:
        ValueError: something that is not pooled is read behind the text, or pooled where it cannot be told apart.
    """
    (at,) = (number for number, segment in enumerate(segments) if segment.is_content and segment.is_pooled)
    before, after = segments[:at], segments[at + 1 :]
    if model.config.reading == "causal":  # what stands behind the last pooled token has no influence on it
        while after and not after[-1].is_pooled:
            after = after[:-1]
    name = model.prompts.template.name
    if after and not after[-1].is_pooled:
        raise ValueError(
            f"template {name} puts {after[-1].text!r} behind a text, which bidirectional attention reads and pooling "
            "leaves out; sentence-transformers can leave out only what stands in front"
        )
    dress = Dress(tuple(before), tuple(after))
    if "mean" in poolings and len(dress.end(model)) > 1:
        raise ValueError(
            f"template {name} ends a text with {after[-1].text!r}, of which only the last token is pooled; "
            "sentence-transformers would pool all of it"
        )
    return dress


def _ids(model: GritModel, segments: Sequence[Segment]) -> list[int]:
    return model.prompts.encoder.encode(segments).ids


def _tokenizer(model: GritModel, dresses: Sequence[Dress], end: Sequence[int]) -> PreTrainedTokenizerFast:
    """The model's tokenizer, adding nothing in front and `end` behind, and cutting where a segment of a prompt ends."""
    original = model.tokenizer
    if getattr(original, "backend_tokenizer", None) is None:
        raise ValueError(f"{type(original).__name__} is no fast tokenizer, so its ends cannot be set")
    backend: Tokenizer = copy.deepcopy(original.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    # control tokens are cut out of a text before any of this sees it
    control = "|".join(re.escape(token.content) for token in original.added_tokens_decoder.values()) or r"\Z."
    texts = [s.text.strip() if s.is_content else s.text for dress in dresses for s in dress.before]
    pieces = dict.fromkeys(piece for text in texts for piece in re.split(control, text) if piece)
    cuts = [pre_tokenizers.Split(Regex(r"\A" + re.escape(piece)), "isolated") for piece in pieces]
    if cuts:
        rest = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, *rest])
    special = [(f"end{n}", id) for n, id in enumerate(end)]
    single = " ".join(["$A", *(name for name, _ in special)])
    backend.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
    pad = original.convert_ids_to_tokens(model.prompts.encoder.pad_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=original.bos_token,
        eos_token=original.eos_token,
        pad_token=pad,
        padding_side="right",
        model_max_length=model.max_document_tokens,
    )


def _check_tokens(model: GritModel, name: str, dress: Dress, tokenizer: PreTrainedTokenizerFast, is_last: bool) -> None:
    """Compare the tokens of whole prompts, and of what sentence-transformers will take for the prompt's."""
    for text in PROBES:
        ours = _ids(model, [*dress.before, content(text), *dress.after])
        theirs = tokenizer(dress.prompt + text)["input_ids"]
        if ours != theirs:
            raise ValueError(
                f"the {name} {text!r} has other tokens in one piece with its prompt {dress.prompt!r} than apart from "
                "it, and this tokenizer cannot be told to cut there"
            )
    ids = tokenizer(dress.prompt)["input_ids"] if dress.prompt else []
    # theirs: a special token that ends a prompt is taken for one that the tokenizer appends
    counted = len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)
    if not is_last and counted != len(_ids(model, dress.before)):
        raise ValueError(
            f"the prompt of a {name}, {dress.prompt!r}, ends with a control token, which sentence-transformers would "
            "pool with the text"
        )


@torch.no_grad()
def _check_vectors(
    model: GritModel, name: str, dress: Dress, tokenizer: PreTrainedTokenizerFast, poolings: Sequence[str]
) -> None:
    """Compare vectors of the bare transformer, pooled as sentence-transformers will, with the model's own."""
    decoder = decoder_stack(model.lm)
    if model.config.reading == "bidirectional":
        if probe(model.lm).attention != "view":
            raise ValueError(f"{model.lm.config.model_type} reads bidirectionally only through a mask made for it")
        decoder = bidirectional_view(decoder)
    skipped = len(_ids(model, dress.before))
    vectors = []
    for text in PROBES:
        ids = torch.tensor([tokenizer(dress.prompt + text)["input_ids"]], device=model.lm.device)
        hidden_TD = decoder(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        parts = {"mean": hidden_TD[skipped:].mean(0), "last": hidden_TD[-1]}
        pooled = torch.cat([parts[pooling] for pooling in poolings])
        projected = pooled if (weight := _projection(model)) is None else weight.float() @ pooled
        vectors.append(torch.nn.functional.normalize(projected, dim=0))
    ours = model.encode_query(PROBES) if name == "query" else model.encode_document(PROBES)
    theirs = torch.stack(vectors).cpu().numpy()
    difference = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
    tolerance = TOLERANCE if model.lm.dtype == torch.float32 else 100 * TOLERANCE
    if difference > tolerance:
        raise ValueError(
            f"vectors of a {name} are not those of its transformer and pooling alone (difference {difference:.2g}): "
            "this model has parts that sentence-transformers does not know"
        )


def _projection(model: GritModel) -> torch.Tensor | None:
    """The layer behind the pooling `[dim, D]`, where there is one."""
    return dict(model.parts.named_parameters()).get(PROJECTION)


def _write(
    model: GritModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: dict[str, str],
    poolings: Sequence[str],
    folder: Path,
) -> None:
    model.lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model.config.reading == "bidirectional":
        config = json.loads((folder / "config.json").read_text("utf-8"))
        _json(folder / "config.json", {**config, "is_causal": False})
    weight = _projection(model)
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(m for m in MODULES.items() if weight is not None or m[0] != DENSE)
    ]
    _json(folder / "modules.json", modules)
    (folder / POOLING).mkdir()
    (folder / NORMALIZE).mkdir()
    hidden = int(model.lm.config.get_text_config().hidden_size)
    modes = {theirs: ours in poolings for ours, theirs in POOLINGS.items()}
    no_cls = {"pooling_mode_cls_token": False}
    pooling = {"word_embedding_dimension": hidden, **no_cls, **modes, "include_prompt": False}
    _json(folder / POOLING / "config.json", pooling)
    if weight is not None:
        (folder / DENSE).mkdir()
        sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
        _json(folder / DENSE / "config.json", {**sizes, "activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": weight.detach().cpu().contiguous()}, folder / DENSE / "model.safetensors")
    _json(folder / "sentence_bert_config.json", {"max_seq_length": model.max_document_tokens, "do_lower_case": False})
    about = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    needs = {"__version__": {"sentence_transformers": OLDEST}}
    _json(folder / "config_sentence_transformers.json", needs | about)
    give_usual_rights(folder)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
