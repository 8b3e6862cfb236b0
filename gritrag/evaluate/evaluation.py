"""`eval questions`: files whose rows bring their passages, by one model after the other, each loaded once."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine
from gritrag.evaluate.quality import (
    RETRIEVED,
    Asked,
    Setting,
    can_be_scored,
    described,
    evaluate,
    gold_contexts,
    restore,
    rows_of,
)
from gritrag.evaluate.rows import QuestionSet, choose, read_questions
from gritrag.evaluate.session import Outputs, Session, conduct, distinct, read_files
from gritrag.evaluate.suite import Result
from gritrag.model.encoders import MINILM, Encoder, check_names, load_encoder
from gritrag.model.hardware import pick_device, pick_dtype


class Sheet(NamedTuple):
    """The questions of a file to search for and those to answer, which are none where no right answer is known."""

    chosen: QuestionSet
    asked: list[Asked]


def sheet(path: Path, setting: Setting, is_one: bool) -> Sheet:
    """Choose from a file.

    Args:
        is_one: refuse a file without right answers, which is only searched where others are answered.

    Raises:
        ValueError: a broken row, too few documents or answers.
    """
    chosen = choose(read_questions(path), setting.documents)
    has_answers = any(map(can_be_scored, chosen.questions))
    if not setting.has("answers") or not (has_answers or is_one or not setting.has("retrieval")):
        return Sheet(chosen, [])
    return Sheet(chosen, gold_contexts(chosen, setting, path))


def main(
    paths: Sequence[Path],
    model: str = DEFAULT_MODEL,
    compare: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """Run; what is wrong with the files is found before a model is loaded.

    Args:
        paths: files of questions; see `gritrag.evaluate.rows`.
        model: to evaluate.
        compare: others, on the same questions and contexts.
        dtype, device: see `GritModel.from_pretrained`.
        setting: see there.
        outputs: see there.

    Returns:
        the result. Its facts name the files that `failed`, and say where it was `stopped`.

    Raises:
        ValueError: no file can be evaluated, answers would overwrite one, or the first model cannot answer.
    """
    setting, outputs = setting or Setting(), outputs or Outputs()
    if model == MINILM and setting.has("answers"):
        raise ValueError(f"{MINILM} only embeds: evaluate only retrieval (--only retrieval), or --compare it")
    outputs.check(paths)
    named = distinct(paths)
    files, sheets = read_files(named, lambda path: sheet(path, setting, len(named) == 1))
    names = tuple(dict.fromkeys((model, *compare)))
    check_names(names)
    where = pick_device(device)
    counts = _counts(sheets.values(), setting)
    about: dict[str, Any] = {"model": model, "files": list(files.paths), **counts}
    if files.is_one:
        about = {"model": model, "file": paths[0].name, **{name: each for name, (each,) in counts.items()}}
    total = sum(counts["questions_answered"]) * sum(name != MINILM for name in names)

    def measure(session: Session) -> Iterator[str]:
        first = ""
        for name in names:
            loaded = load_encoder(name, dtype, device)
            first = first or loaded.fingerprint.digest  # all models answer from what this one finds
            for file, each in sheets.items():
                if file not in session.failed:
                    _measure(session, file, each, name, loaded, setting, first)
                    if name == names[-1]:
                        yield file
            del loaded  # the next model needs its memory

    return conduct(files, total, about, machine(pick_dtype(dtype, where), where), setting, outputs, measure)


def _counts(sheets: Collection[Sheet], setting: Setting) -> dict[str, list[int]]:
    """What is asked of each file."""
    return {
        "documents_indexed": [len(each.chosen.documents) for each in sheets],
        "questions_searched": [len(each.chosen.questions) * setting.has("retrieval") for each in sheets],
        "questions_answered": [len(each.asked) for each in sheets],
    }


def _measure(
    session: Session, file: str, sheet: Sheet, name: str, model: Encoder, setting: Setting, finder: str
) -> None:
    """`finder` is the fingerprint of the model that contexts are found by: answers from those of another are others."""
    kept = session.kept(name, model.fingerprint.digest, file, finder if setting.has_context(RETRIEVED) else "")
    restore(sheet.asked, sheet.chosen.documents, kept)
    with (
        session.measuring(file, name, lambda: rows_of(name, kept, described(model))),
        tempfile.TemporaryDirectory(prefix="gritrag-eval-") as folder,
    ):
        rows = evaluate(model, name, sheet.chosen, sheet.asked, setting, Path(folder) / "index", kept)
        session.rows.setdefault(file, {})[name] = rows
