"""Quality beside speed: every mode answers the same questions from the same documents, scored and timed at once."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.answer import MODES, RAG
from gritrag.evaluate.config import QualityConfig
from gritrag.evaluate.quality import Asked, Setting, gold_contexts
from gritrag.evaluate.rows import QuestionSet, choose, invented_questions, read_questions
from gritrag.evaluate.scores import ANSWER, score_answer
from gritrag.evaluate.speed import NO_CODEC
from gritrag.evaluate.suite import Results
from gritrag.evaluate.timing import cost_of, in_turn
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar

INVENTED = Path("gritrag/corpus")
KEPT = (*ANSWER, "first_token", "total", "cached_tokens", "prompt_tokens")


class Cell(NamedTuple):
    """One way to answer; its fields are those of `QualityConfig`."""

    mode: str
    documents: int
    codec: str


class Sheet(NamedTuple):
    """What is asked, and from which documents, for one number of documents per context."""

    asked: list[Asked]
    chosen: QuestionSet


def sheets(setting: QualityConfig, seed: int) -> dict[int, Sheet]:
    """By number of documents per context. The same questions for each.

    Raises:
        ValueError: what `read_questions` and `gold_contexts` raise.
    """
    path = Path(setting.file) if setting.file else INVENTED
    chosen = choose(read_questions(path) if setting.file else invented_questions(), setting.indexed)
    found = {}
    for documents in dict.fromkeys(setting.documents):
        options = Setting(questions=setting.questions, distractors=documents - 1, seed=seed)
        found[documents] = Sheet(gold_contexts(chosen, options, path), chosen)
    return found


def measure(
    model: GritModel, setting: QualityConfig, modes: Sequence[str], seed: int, results: Results, scratch: Path
) -> None:
    """Measure what `results` do not have yet; indexes are made in `scratch`."""
    pending = {}
    for documents, sheet in sheets(setting, seed).items():
        cells = _cells(setting, modes, documents)
        if not all(results.has("quality", cell._asdict()) for cell in cells):
            pending[documents] = (sheet, cells)
    if not pending:
        return
    chosen = next(iter(pending.values()))[0].chosen
    with ExitStack() as stack:
        indexes = {}
        for codec in dict.fromkeys(setting.codecs):
            with Index.create(scratch / codec, model=model, states=codec) as index:
                index.add(chosen.documents, show_progress_bar=True)
            indexes[codec] = stack.enter_context(Index.open(scratch / codec, model=model, mode="r"))
        for sheet, cells in pending.values():
            found = _answered(setting, sheet.asked, cells, indexes)
            results.write("quality", [(cell._asdict(), found[cell]) for cell in cells])


def _cells(setting: QualityConfig, modes: Sequence[str], documents: int) -> list[Cell]:
    return [
        Cell(mode, documents, codec)
        for mode in modes
        for codec in (dict.fromkeys(setting.codecs) if MODES[mode].reuses_documents else [NO_CODEC])
    ]


def _answered(
    setting: QualityConfig, asked: Sequence[Asked], cells: Sequence[Cell], indexes: dict[str, Index]
) -> dict[Cell, dict[str, Any]]:
    """One number per question for each score and each time; the first question is asked once before, to warm up."""
    of = {cell: indexes.get(cell.codec, next(iter(indexes.values()))) for cell in cells}
    ids = [each.question.id for each in asked]
    found: dict[Cell, dict[str, Any]] = {
        cell: {"bytes": _stored(of[cell], cell.mode), "ids": ids, "answers": [], **{name: [] for name in KEPT}}
        for cell in cells
    }
    about = f"questions, {cells[0].documents} documents"
    for number, cell in ProgressBar(
        in_turn(cells, 1, len(asked)), total=len(cells) * (1 + len(asked)), desc=about, unit="answer"
    ):
        each = asked[max(number, 0)]
        rag = RAG(of[cell], mode=cell.mode, k=cell.documents)
        hits = each.contexts["gold"] if setting.context == "gold" and rag.mode.has_documents else None
        answer = rag.ask(each.question.text, hits=hits, max_new_tokens=setting.new_tokens)
        if number >= 0:
            figures = {**cost_of([answer]), **score_answer(answer.text, each.question.answers)}
            found[cell]["answers"].append(answer.text)
            for name in KEPT:
                found[cell][name].append(figures[name])
    return found


def _stored(index: Index, mode: str) -> int:
    """Bytes on disk that a mode answers from."""
    stored = index.stats()["bytes"]
    if not MODES[mode].has_documents:
        return 0
    return int(stored["catalog"] + stored["vectors"] + (stored["states"] if MODES[mode].reuses_documents else 0))
