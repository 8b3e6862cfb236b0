"""Quality beside speed: every mode answers the same questions from the same documents, scored and timed at once."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from gritrag.answer import RAG
from gritrag.config import Recipe
from gritrag.evaluate import statistics
from gritrag.evaluate.quality import Asked, Setting, gold_contexts, scored
from gritrag.evaluate.report import Point, Section, Series, Table, ms, scatter_chart
from gritrag.evaluate.rows import QuestionSet, choose, invented_questions, read_questions
from gritrag.evaluate.scores import ANSWER
from gritrag.evaluate.speed import BASELINE, NO_CODEC, cost_of, name
from gritrag.evaluate.statistics import Interval, Spread
from gritrag.evaluate.suite import Results, Row, in_turn
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.modes import MODES
from gritrag.progress import ProgressBar

INVENTED = Path("gritrag/corpus")
KEPT = (*ANSWER, "first_token", "total", "cached_tokens", "prompt_tokens")


class QualityConfig(Recipe):
    """Questions that every mode answers, scored and timed at once.

    Args:
        file: JSONL of questions, as `gritrag eval` takes them; the package's own invented corpus where None.
        questions: how many are answered, spread evenly over those that have answers.
        indexed: distinct documents of the file that are searched in, at most.
        documents: per context; each number is a table of its own.
        codecs: of the states.
        context: ``retrieved``: what hybrid search finds, embedding and search timed too; ``gold``: the right document
            among distractors, in any order.
        new_tokens: longest answer.
    """

    file: str | None = None
    questions: int = Field(30, ge=1)
    indexed: int = Field(300, ge=1)
    documents: tuple[int, ...] = Field((1, 5), min_length=1)
    codecs: tuple[str, ...] = Field(("bf16",), min_length=1)
    context: Literal["retrieved", "gold"] = "retrieved"
    new_tokens: int = Field(16, ge=1)


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
            figures = {**cost_of([answer]), **scored(each, answer.text)}
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


class Graded:
    """Graded rows; `seed` is that of their resamples."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.styles = {mode: n for n, mode in enumerate(dict.fromkeys(row["cell"]["mode"] for row in rows))}

    def loss(self, row: Row, score: str) -> Interval | None:
        """Of a score, against the baseline on the same questions; None without one."""
        base = self._baseline(row)
        return None if base is None else statistics.difference(row[score], base[score], self.seed)

    def share(self, row: Row, score: str) -> Interval | None:
        base = self._baseline(row)
        return None if base is None else statistics.ratio(row[score], base[score], self.seed)

    def _baseline(self, row: Row) -> Row | None:
        cell = {**row["cell"], "mode": BASELINE, "codec": "-"}
        return next((other for other in self.rows if other["cell"] == cell), None)


def section(graded: Graded, told: Mapping[str, object]) -> Section:
    """`told` are the settings of the run."""
    n, where = len(graded.rows[0]["ids"]), told.get("file") or "the package's invented corpus"
    return Section(
        "Modes",
        f"The rows of GritLM's table 7 (arXiv 2402.09906), with as many documents as the first column says. {n} "
        f"questions of {where}, {told.get('context')} contexts, up to {told.get('new_tokens')} new tokens; every mode "
        "answers each question in turn. Scores in points of 100 with 95% bootstrap intervals, differences paired; "
        "times with quartiles. Storage is what a mode answers from: text, vectors, and states where it loads them.",
        [_chart(graded)],
        [table(graded)],
    )


def table(graded: Graded) -> Table:
    rows = []
    for row in graded.rows:
        cell, loss, share = row["cell"], graded.loss(row, "F1"), graded.share(row, "match")
        is_base = cell["mode"] == BASELINE
        rows.append(
            [
                *(str(cell["documents"]), cell["mode"], cell["codec"]),
                *(statistics.mean(row[score], graded.seed).show() for score in ("match", "F1")),
                "-" if loss is None or is_base else loss.show("+.1f"),
                "-" if share is None or is_base else share.show(".0f"),
                ms(row["first_token"]),
                ms(row["total"]),
                f"{row['bytes'] / 1e6:.1f}",
            ]
        )
    columns = ["documents", "mode", "codec", "match", "F1", f"F1 against {BASELINE}", f"match, % of {BASELINE}"]
    return Table([*columns, "first token, ms", "total, ms", "storage, MB"], rows)


def _chart(graded: Graded) -> str:
    series: dict[str, Series] = {}
    for row in graded.rows:
        label, mean = name(row["cell"], graded.rows), statistics.mean(row["F1"], graded.seed)
        seconds = Spread.of(row["first_token"]).median
        point = Point(seconds, 100 * mean.mean, 100 * mean.low, 100 * mean.high)
        found = series.get(label)
        style = graded.styles[row["cell"]["mode"]]
        series[label] = Series(label, [*(found.points if found else ()), point], style, int(", " in label))
    axes = ("seconds to the first token", "F1, points of 100")
    return scatter_chart("Quality against speed", list(series.values()), *axes)
