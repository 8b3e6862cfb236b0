"""What graded rows say: GritLM's table of modes for our model, quality against speed, and where reuse costs answers."""

from collections.abc import Mapping, Sequence

from gritrag.evaluate import scores
from gritrag.evaluate.facts import Spread
from gritrag.evaluate.report import Section, Table
from gritrag.evaluate.scores import Interval
from gritrag.evaluate.speed_report import BASELINE, ms, name
from gritrag.evaluate.suite import Row
from gritrag.evaluate.svg import Point, Series, scatter_chart


class Graded:
    """Graded rows; `seed` is that of their resamples."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.styles = {mode: n for n, mode in enumerate(dict.fromkeys(row["cell"]["mode"] for row in rows))}

    def loss(self, row: Row, score: str) -> Interval | None:
        """Of a score, against the baseline on the same questions; None without one."""
        base = self._baseline(row)
        return None if base is None else scores.difference(row[score], base[score], self.seed)

    def share(self, row: Row, score: str) -> Interval | None:
        base = self._baseline(row)
        return None if base is None else scores.ratio(row[score], base[score], self.seed)

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
                *(scores.mean(row[score], graded.seed).show() for score in ("match", "F1")),
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
        label, mean = name(row["cell"], graded.rows), scores.mean(row["F1"], graded.seed)
        seconds = Spread.of(row["first_token"]).median
        point = Point(seconds, 100 * mean.mean, 100 * mean.low, 100 * mean.high)
        found = series.get(label)
        style = graded.styles[row["cell"]["mode"]]
        series[label] = Series(label, [*(found.points if found else ()), point], style, int(", " in label))
    axes = ("seconds to the first token", "F1, points of 100")
    return scatter_chart("Quality against speed", list(series.values()), *axes)
