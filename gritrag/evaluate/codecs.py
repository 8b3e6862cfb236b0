"""What each codec costs and what it leaves: bytes, error, seconds to write and to place, and the answers.

Every document is read once, and every codec is given the same states. All codecs answer the same questions from the
same documents, so differences to bf16 are paired; what is timed takes turns.

Shape letters: `A` answer tokens, `V` vocabulary.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from gritrag.answer import MODES, Retrieved, plan_context
from gritrag.codecs import get_codec
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate import quality, scores
from gritrag.evaluate.facts import Spread, as_json, header, machine_of, table
from gritrag.evaluate.first_token import documents_of
from gritrag.evaluate.process import drop_from_page_cache
from gritrag.evaluate.quality import Asked, gold_contexts
from gritrag.evaluate.rows import choose, read_questions
from gritrag.evaluate.timing import in_turn
from gritrag.index.storage.catalog import StateRow
from gritrag.index.storage.packed import encode
from gritrag.index.storage.states import DocumentState, StateStore, relative_path, state_key
from gritrag.model.context import Context
from gritrag.model.decode import Sampling
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.records import Document

REFERENCE = "bf16"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        codecs: compared with bf16.
        questions: how many of each file are answered, each from its own document among `distractors` others.
        documents: how many distinct ones of a file the distractors are drawn from.
        distractors: see above.
        max_new_tokens: longest answer.
        placed, tokens: documents, and tokens in each, of the context that is loaded and placed against the clock.
        repetitions: rounds of that, after one to warm up.
        seed: of distractors, their order, resamples, and what is timed.
    """

    codecs: tuple[str, ...] = ("int8", "int4", "transform")
    questions: int = 60
    documents: int = 300
    distractors: int = 4
    max_new_tokens: int = 32
    placed: int = 10
    tokens: int = 200
    repetitions: int = 9
    seed: int = 0


class Stored(NamedTuple):
    """States of some documents in files of one codec."""

    folder: Path
    rows: dict[str, StateRow]

    @classmethod
    def write(cls, folder: Path, codec: str, states: Mapping[str, DocumentState], model: GritModel) -> "Stored":
        (folder / "states").mkdir(parents=True)
        keys = {state_key(model.fingerprint, state.token_ids.numpy()): state for state in states.values()}
        rows = {row.key: row for row in StateStore(folder).save(keys.items(), codec)}
        names = {id: state_key(model.fingerprint, state.token_ids.numpy()) for id, state in states.items()}
        return cls(folder, {id: rows[key] for id, key in names.items()})

    @property
    def files(self) -> list[Path]:
        return sorted({self.folder / relative_path(row.key) for row in self.rows.values()})

    @property
    def bytes_per_token(self) -> float:
        rows = {row.key: row for row in self.rows.values()}.values()
        return sum(row.bytes for row in rows) / sum(row.tokens for row in rows)


def compare(model: GritModel, asked: Sequence[Asked], setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure in `folder`, which is new or empty; what is in the result is what `show` prints."""
    codecs = list(dict.fromkeys((REFERENCE, *setting.codecs)))
    documents = {hit.document.id: hit.document for each in asked for hit in each.contexts["gold"]}
    states = _read(model, list(documents.values()))
    stored = {codec: Stored.write(folder / "asked" / str(n), codec, states, model) for n, codec in enumerate(codecs)}
    answered = {codec: _answers(model, codec, stored[codec], states, asked, setting) for codec in codecs}
    timed = _timed(model, codecs, setting, folder / "timed")
    reference = answered[REFERENCE]
    rows = {
        codec: {
            "bytes_per_token": stored[codec].bytes_per_token,
            **_errors(stored[codec], states),
            **timed[codec],
            "F1": scores.mean(answered[codec].f1, setting.seed),
            "F1 difference": scores.difference(answered[codec].f1, reference.f1, setting.seed),
            "F1 ratio": scores.ratio(answered[codec].f1, reference.f1, setting.seed),
            **_agreement(answered[codec].logits, reference.logits),
        }
        for codec in codecs
    }
    facts = {"documents_read": len(states), "tokens_read": sum(map(len, states.values()))}
    return {
        "machine": {**machine_of(model), **vars(setting), **facts, "questions": len(asked)},
        "rows": rows,
    }


def _read(model: GritModel, documents: Sequence[Document]) -> dict[str, DocumentState]:
    readings = model.read_documents(documents, show_progress_bar=True)
    return {document.id: reading.state for document, reading in zip(documents, readings, strict=True)}


# --- what is left of the numbers, and of the answers ------------------------------------------------------------------


def _loaded(store: StateStore, stored: Stored, ids: Sequence[str], states: Mapping[str, DocumentState]) -> list[Any]:
    return [store.load(stored.rows[id], states[id].token_ids.numpy()) for id in ids]


def _errors(stored: Stored, states: Mapping[str, DocumentState]) -> dict[str, float]:
    """Error of keys and of values over what they are, root mean squares over all documents."""
    store, sums = StateStore(stored.folder), torch.zeros(2, 2, dtype=torch.float64)
    for id, state in states.items():
        (back,) = _loaded(store, stored, [id], states)
        for part, (kept, read) in enumerate(((back.keys, state.keys), (back.values, state.values))):
            sums[part] += torch.stack([(kept.float() - read.float()).square().sum(), read.float().square().sum()])
    keys, values = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
    return {"error of keys": keys, "error of values": values}


class Answered(NamedTuple):
    """F1 of each question, and log-probabilities `[A, V]` of the next token along its right answer."""

    f1: list[float]
    logits: list[torch.Tensor]


def _answers(
    model: GritModel,
    codec: str,
    stored: Stored,
    states: Mapping[str, DocumentState],
    asked: Sequence[Asked],
    setting: Setting,
) -> Answered:
    store, found = StateStore(stored.folder), Answered([], [])
    options = Sampling(max_new_tokens=setting.max_new_tokens, stop=model.prompts.template.stop)
    for each in ProgressBar(asked, desc=f"answering, {codec}", unit="question"):
        hits = each.contexts["gold"]
        loaded = _loaded(store, stored, [hit.document.id for hit in hits], states)
        retrieved = Retrieved(each.question.text, hits, loaded)
        plan = plan_context(model, MODES["doc-cache"], retrieved, room=setting.max_new_tokens)
        decoding = model.decoder.decode([plan.context], options)
        for _ in decoding:
            pass
        text = decoding.completions[0].text.strip()
        found.f1.append(scores.score_answer(text, each.question.answers)["F1"])
        found.logits.append(_along(model, plan.context, model.prompts.encoder.content_ids(each.question.answers[0])))
    return found


def _along(model: GritModel, context: Context, answer_ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of what follows the context and each token of an answer but its last, `[A, V]`."""
    whole = Context.of(*(part.content for part in context.parts), answer_ids[:-1])
    cache = model.decoder.place([whole], Sampling(max_new_tokens=1))
    start = whole.cached_tokens
    ids = torch.tensor([whole.fresh_ids], device=model.lm.device)
    with torch.inference_mode():
        logits = model.lm(
            input_ids=ids,
            position_ids=torch.arange(start, start + ids.shape[1], device=ids.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=len(answer_ids),
        ).logits[0]
    return logits.float().log_softmax(-1).cpu()


def _agreement(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> dict[str, float]:
    """Mean KL divergence from the reference in nats, and the share of tokens that both find likeliest."""
    ours_AV, theirs_AV = torch.cat(list(found)), torch.cat(list(reference))
    divergence_A = (theirs_AV.exp() * (theirs_AV - ours_AV)).sum(-1)
    same_A = ours_AV.argmax(-1) == theirs_AV.argmax(-1)
    return {"KL": divergence_A.mean().item(), "same token": same_A.float().mean().item(), "tokens": len(same_A)}


# --- seconds ----------------------------------------------------------------------------------------------------------


def _timed(model: GritModel, codecs: Sequence[str], setting: Setting, folder: Path) -> dict[str, dict[str, Spread]]:
    """Seconds to encode a context of states, and to load and place it: from memory (warm) and from the disk (cold)."""
    pool = documents_of(model, setting.tokens, setting.placed, setting.seed)
    states = _read(model, pool)
    stored = {codec: Stored.write(folder / str(number), codec, states, model) for number, codec in enumerate(codecs)}
    stores = {codec: StateStore(stored[codec].folder) for codec in codecs}
    seconds: dict[str, dict[str, list[float]]] = {codec: {"encode": [], "warm": [], "cold": []} for codec in codecs}
    for number, codec in ProgressBar(list(in_turn(codecs, 1, setting.repetitions)), desc="measuring", unit="turn"):

        def place(codec: str = codec) -> None:
            loaded = _loaded(stores[codec], stored[codec], list(states), states)
            model.decoder.place([Context.of(*loaded, [0])], Sampling(max_new_tokens=1))

        def write(codec: str = codec) -> None:
            for state in states.values():
                encode(state, codec)

        place()  # the pages of these files, and nobody else's, are what the processor has seen last
        spent = {"warm": _seconds(place), "encode": _seconds(write)}
        drop_from_page_cache(stored[codec].files)
        spent["cold"] = _seconds(place)
        if number >= 0:  # the first round warms up
            for part, value in spent.items():
                seconds[codec][part].append(value)
    return {
        codec: {
            **{f"{part} s": Spread.of(values) for part, values in seconds[codec].items()},
            **{f"{part} ratio": _ratio(values, seconds[REFERENCE][part]) for part, values in seconds[codec].items()},
        }
        for codec in codecs
    }


def _seconds(work: Any) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _ratio(values: Sequence[float], reference: Sequence[float]) -> Spread:
    return Spread.of([ours / theirs for ours, theirs in zip(values, reference, strict=True)])


# --- what is printed --------------------------------------------------------------------------------------------------


def show(result: Mapping[str, Any]) -> str:
    columns = [
        "codec",
        "bytes/token",
        "error of keys, %",
        "of values, %",
        "encode, x bf16",
        "load and place, x bf16: warm",
        "cold",
        "F1",
        "F1, % of bf16",
        "KL, nats",
        "same token, %",
    ]
    rows = [
        [
            codec,
            f"{row['bytes_per_token']:,.0f}",
            *(f"{100 * row[f'error of {part}']:.2f}" for part in ("keys", "values")),
            *(row[f"{part} ratio"].show(".2f") for part in ("encode", "warm", "cold")),
            row["F1"].show(),
            "-" if row["F1 ratio"] is None else row["F1 ratio"].show(),
            f"{row['KL']:.4f}",
            f"{100 * row['same token']:.1f}",
        ]
        for codec, row in result["rows"].items()
    ]
    reference: Mapping[str, Any] = result["rows"][REFERENCE]
    spent = {part: f"{1e3 * reference[f'{part} s'].median:.1f} ms" for part in ("encode", "warm", "cold")}
    facts = {**result["machine"], "answer_tokens": reference["tokens"]}
    return "\n".join(
        [
            header(facts),
            "",
            table(columns, rows),
            "",
            f"bf16: encode {spent['encode']}, load and place {spent['warm']} warm, {spent['cold']} cold",
            "ratios of times: median [quartiles]; F1: mean [95% bootstrap interval], paired;",
            "KL from bf16 and same likeliest token as bf16: along the right answers",
        ]
    )


def main(
    paths: Sequence[Path],
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    as_json_text: bool = False,
    setting: Setting | None = None,
) -> str:
    """Run and return what to print; what is wrong with files or codecs is said before a model is loaded.

    Raises:
        ValueError: no file, a missing one, a broken row, an unknown codec, too few documents or answers.
    """
    setting = setting or Setting()
    for codec in setting.codecs:
        get_codec(codec)
    options = quality.Setting(
        questions=setting.questions, documents=setting.documents, distractors=setting.distractors, seed=setting.seed
    )
    asked = [
        each for path in paths for each in gold_contexts(choose(read_questions(path), setting.documents), options, path)
    ]
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as folder:
        result = compare(loaded, asked, setting, Path(folder))
    result["machine"] = {"model": model, "files": ", ".join(map(str, paths)), **result["machine"]}
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
