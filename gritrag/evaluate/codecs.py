"""What each codec costs and what it leaves: bytes, error, seconds to write and to place, and the answers.

Every document is read once, and every codec is given the same states. All codecs answer the same questions from the
same documents, so differences to bf16 are paired; what is timed takes turns.

Shape letters: `A` answer tokens, `V` vocabulary.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from gritrag.codecs import get_codec
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate import quality, scores, statistics
from gritrag.evaluate.machine import drop_from_page_cache, machine_of
from gritrag.evaluate.quality import Asked, gold_contexts
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.rows import choose, read_questions
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Result, Results, Row, in_turn, run
from gritrag.evaluate.workload import documents_of
from gritrag.index.storage.entries import StateRow
from gritrag.index.storage.packed import encode
from gritrag.index.storage.states import DocumentState, StateStore, relative_path, state_key
from gritrag.model.cache_names import given_cache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling
from gritrag.modes import MODES
from gritrag.plan import Retrieved, plan_context
from gritrag.progress import ProgressBar
from gritrag.records import Document

COMMAND = "bench codecs"
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


def measure(model: GritModel, asked: Sequence[Asked], setting: Setting, folder: Path, results: Results) -> None:
    """Measure in `folder`, which is new or empty; one row per codec."""
    codecs = list(dict.fromkeys((REFERENCE, *setting.codecs)))
    documents = {hit.document.id: hit.document for each in asked for hit in each.contexts["gold"]}
    states = _read(model, list(documents.values()))
    stored = {codec: Stored.write(folder / "asked" / str(n), codec, states, model) for n, codec in enumerate(codecs)}
    answered = _answers(model, stored, states, asked, setting)
    timed = _timed(model, codecs, setting, folder / "timed")
    read = {"documents_read": len(states), "tokens_read": sum(map(len, states.values()))}
    rows = [
        (
            {"codec": codec},
            {
                **read,
                "bytes_per_token": stored[codec].bytes_per_token,
                **_errors(stored[codec], states),
                "seconds": timed[codec],
                "ids": [each.question.id for each in asked],
                "F1": answered[codec].f1,
                **answered[codec].agreement(),
            },
        )
        for codec in codecs
    ]
    results.write("codecs", rows)


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
    """F1 of each question; and of each, for each token of its right answer `[A]`, the divergence from the reference in
    nats, and whether both find the same token likeliest."""

    f1: list[float]
    divergences: list[torch.Tensor]
    same: list[torch.Tensor]

    def agreement(self) -> dict[str, float]:
        """Mean KL divergence from the reference in nats, and the share of tokens that both find likeliest."""
        divergence_A, same_A = torch.cat(self.divergences), torch.cat(self.same)
        return {"KL": divergence_A.mean().item(), "same token": same_A.float().mean().item(), "tokens": len(same_A)}


def _answers(
    model: GritModel,
    stored: Mapping[str, Stored],
    states: Mapping[str, DocumentState],
    asked: Sequence[Asked],
    setting: Setting,
) -> dict[str, Answered]:
    """Of each codec. One question after the other, each from all codecs: the log-probabilities of hundreds of questions
    over a whole vocabulary would not fit a small machine."""
    stores = {codec: StateStore(each.folder) for codec, each in stored.items()}
    found = {codec: Answered([], [], []) for codec in stored}
    for each in ProgressBar(asked, desc="answering", unit="question"):
        theirs_AV: torch.Tensor | None = None
        for codec in stored:
            ids = [hit.document.id for hit in each.contexts["gold"]]
            f1, ours_AV = _answer(model, each, _loaded(stores[codec], stored[codec], ids, states), setting)
            theirs_AV = ours_AV if theirs_AV is None else theirs_AV  # the reference comes first
            found[codec].f1.append(f1)
            found[codec].divergences.append((theirs_AV.exp() * (theirs_AV - ours_AV)).sum(-1))
            found[codec].same.append(ours_AV.argmax(-1) == theirs_AV.argmax(-1))
    return found


def _answer(
    model: GritModel, asked: Asked, states: Sequence[DocumentState], setting: Setting
) -> tuple[float, torch.Tensor]:
    """F1 of the greedy answer from these states, and log-probabilities `[A, V]` along the right one."""
    options = Sampling(max_new_tokens=setting.max_new_tokens, stop=model.prompts.template.stop)
    retrieved = Retrieved(asked.question.text, asked.contexts["gold"], states)
    plan = plan_context(model, MODES["doc-cache"], retrieved, room=setting.max_new_tokens)
    decoding = model.decoder.decode([plan.context], options)
    for _ in decoding:
        pass
    text, right = decoding.completions[0].text.strip(), asked.question.answers
    along_AV = _along(model, plan.context, model.prompts.encoder.content_ids(right[0]))
    return scores.score_answer(text, right)["F1"], along_AV


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
            **given_cache(model.lm, cache),
            use_cache=True,
            logits_to_keep=len(answer_ids),
        ).logits[0]
    return logits.float().log_softmax(-1).cpu()


# --- seconds ----------------------------------------------------------------------------------------------------------


def _timed(
    model: GritModel, codecs: Sequence[str], setting: Setting, folder: Path
) -> dict[str, dict[str, list[float]]]:
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
    return seconds


def _seconds(work: Any) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


# --- what is printed --------------------------------------------------------------------------------------------------


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """One table, and the questions that a codec answers worse than bf16."""
    (reference,) = [row for row in rows if row["cell"]["codec"] == REFERENCE]
    seed, base, lines, lost = facts["settings"]["seed"], reference["seconds"], [], []
    for row in rows:
        ratio = statistics.ratio(row["F1"], reference["F1"], seed)
        change = statistics.difference(row["F1"], reference["F1"], seed)
        codec = row["cell"]["codec"]
        lines.append(
            [
                codec,
                f"{row['bytes_per_token']:,.0f}",
                *(f"{100 * row[f'error of {part}']:.2f}" for part in ("keys", "values")),
                *(
                    Spread.of_ratios(row["seconds"][part], base[part]).show(".2f")
                    for part in ("encode", "warm", "cold")
                ),
                statistics.mean(row["F1"], seed).show(),
                change.show("+.1f"),
                statistics.percent(ratio),
                f"{row['KL']:.4f}",
                f"{100 * row['same token']:.1f}",
            ]
        )
        pairs = zip(row["ids"], row["F1"], reference["F1"], strict=True)
        worse = [id for id, ours, theirs in pairs if ours < theirs]
        if worse:
            lost.append(f"{codec}: {len(worse)} of {len(row['F1'])} questions, {', '.join(worse[:10])}")
    columns = ["codec", "bytes/token", "error of keys, %", "of values, %", "encode, x bf16"]
    columns += ["load and place, x bf16: warm", "cold", "F1", "F1 against bf16", "F1, % of bf16", "KL, nats"]
    spent = {part: Spread.of(base[part], 1e3).show(".1f") for part in ("encode", "warm", "cold")}
    text = (
        f"bf16: encode {spent['encode']} ms, load and place {spent['warm']} ms warm, {spent['cold']} ms cold. Ratios "
        f"of times are medians [quartiles] of {facts['settings']['repetitions']} rounds, F1 a mean over "
        f"{len(reference['F1'])} questions [95% bootstrap interval], paired; KL from bf16 and the same likeliest token "
        f"along the {reference['tokens']} tokens of right answers."
    )
    return [
        Section("Codecs", text, (), [Table([*columns, "same token, %"], lines)]),
        losing(lost, "Questions with a lower F1 than from bf16, the first ten of a codec."),
    ]


def _answered_in(path: Path) -> list[Question]:
    """Questions that have right answers: others say nothing of codecs."""
    questions = [question for question in read_questions(path) if question.answers]
    if not questions:
        raise ValueError(f"no question of {path} has answers, and codecs are compared by answers; give another file")
    return questions


def main(
    paths: Sequence[Path],
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
) -> Result:
    """Run; what is wrong with files or codecs is said before a model is loaded.

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
        each for path in paths for each in gold_contexts(choose(_answered_in(path), setting.documents), options, path)
    ]
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    facts = {
        "model": model,
        "files": [path.name for path in paths],
        **machine_of(loaded),
        "questions_asked": len(asked),
    }

    def work(results: Results) -> None:
        with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as folder:
            measure(loaded, asked, setting, Path(folder), results)

    return run(COMMAND, asdict(setting), facts, work)
