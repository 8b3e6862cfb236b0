"""What rows of the grid say: the first token and its parts, memory, and what indexing costs."""

from collections.abc import Sequence

from gritrag.evaluate.report import Section, Table, ms
from gritrag.evaluate.speed import BASELINE, PARTS, Grid, context, from_hits, name
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Row
from gritrag.evaluate.svg import Point, Series, bar_chart, line_chart


def sections(grid: Grid, indexes: Sequence[Row]) -> list[Section]:
    return [
        Section(
            "First token",
            "From the question to the first token, embedding and search included. Median and quartiles of rounds; in "
            "each round all modes answer the same new question, so a ratio compares neighbours in time. 'From hits' "
            "leaves embedding and search out. A cold run opens the index anew, its files dropped from the page cache.",
            [_first_token_chart(grid)],
            [first_token_table(grid, grid.rows)],
        ),
        Section(
            "Where the time goes",
            "Retrieve: embedding the question and searching. Load: states from their files. Place: rotating them to "
            "their places. Question: the forward over every token that no state stands for. Decode: all tokens after "
            "the first. The charts show the longest context; the second leaves out modes that read documents again.",
            _parts_charts(grid),
            [_parts_table(grid)],
        ),
        Section(
            "Memory and decoding",
            "Peak memory while answering one question, in a round of its own, and how much there was before. A batch "
            "decodes all its rows at once.",
            (),
            [_memory_table(grid)],
        ),
        Section(
            "Indexing",
            "The read pass with everything that stores it, in a few calls; bytes as they lie on the disk.",
            (),
            [_index_table(indexes)],
        ),
    ]


def first_token_table(grid: Grid, rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        cell, rounds, sooner = row["cell"], row["rounds"], grid.sooner(row)
        tokens = Spread.of([each["prompt_tokens"] for each in rounds]).median
        reused = Spread.of([each["cached_tokens"] for each in rounds]).median
        lines.append(
            [
                context(cell),
                str(cell["batch"]),
                cell["mode"],
                cell["codec"],
                cell["cache"],
                ms([each["first_token"] for each in rounds]),
                "-" if sooner is None or cell["mode"] == BASELINE else sooner.show(".2f"),
                ms([from_hits(each) for each in rounds]),
                ms([each["total"] for each in rounds]),
                f"{reused:.0f} of {tokens:.0f}",
            ]
        )
    columns = [
        "documents x tokens",
        "batch",
        "mode",
        "codec",
        "cache",
        "first token, ms",
        f"times sooner than {BASELINE}",
    ]
    return Table([*columns, "from hits, ms", "all, ms", "tokens reused"], lines)


def _first_token_chart(grid: Grid) -> str:
    alone = [row for row in grid.rows if row["cell"]["batch"] == min(r["cell"]["batch"] for r in grid.rows)]
    points: dict[str, list[Point]] = {}
    looks: dict[str, tuple[int, int]] = {}
    dashes: dict[tuple[str, str], int] = {}
    for row in alone:
        cell, label = row["cell"], name(row["cell"], alone)
        spread = Spread.of([each["first_token"] for each in row["rounds"]])
        tokens = cell["documents"] * cell["tokens"]
        points.setdefault(label, []).append(Point(tokens, spread.median, spread.low, spread.high))
        dash = dashes.setdefault((cell["codec"], cell["cache"]), len(dashes))
        looks[label] = (grid.styles[cell["mode"]], dash)
    series = [Series(label, sorted(found, key=lambda point: point.x), *looks[label]) for label, found in points.items()]
    axes = ("tokens of documents in the context", "seconds to the first token")
    return line_chart("First token against context length", series, *axes, is_log=True)


def _longest(grid: Grid) -> list[Row]:
    longest = max(row["cell"]["documents"] * row["cell"]["tokens"] for row in grid.rows)
    at = [row for row in grid.rows if row["cell"]["documents"] * row["cell"]["tokens"] == longest]
    batch, first = min(row["cell"]["batch"] for row in at), context(at[0]["cell"])
    return [row for row in at if row["cell"]["batch"] == batch and context(row["cell"]) == first]


def _parts_charts(grid: Grid) -> list[str]:
    rows = _longest(grid)
    bars = {
        name(row["cell"], rows): {
            part: 1e3 * Spread.of([each["parts"][part] for each in row["rounds"]]).median for part in PARTS
        }
        for row in rows
    }
    stored = {name(row["cell"], rows) for row in rows if row["cell"]["codec"] != "-"}
    where = f"{context(rows[0]['cell'])} tokens"
    label = "milliseconds (medians of the parts)"
    return [
        bar_chart(f"Parts of an answer, {where}", bars, label),
        bar_chart(f"Parts of an answer from states, {where}", {key: bars[key] for key in bars if key in stored}, label),
    ]


def _parts_table(grid: Grid) -> Table:
    rows = [
        [
            *(str(value) for value in (context(row["cell"]), row["cell"]["batch"], row["cell"]["mode"])),
            *(row["cell"][field] for field in ("codec", "cache")),
            *(ms([each["parts"][part] for each in row["rounds"]]) for part in PARTS),
        ]
        for row in grid.rows
    ]
    return Table(["documents x tokens", "batch", "mode", "codec", "cache", *(f"{part}, ms" for part in PARTS)], rows)


def _memory_table(grid: Grid) -> Table:
    rows = []
    for row in grid.rows:
        cell, rounds = row["cell"], row["rounds"]
        speeds = [
            (each["generated_tokens"] - cell["batch"]) / each["parts"]["decode"]
            for each in rounds
            if each["generated_tokens"] > cell["batch"] and each["parts"]["decode"] > 0
        ]
        rows.append(
            [
                *(str(value) for value in (context(cell), cell["batch"], cell["mode"], cell["codec"], cell["cache"])),
                *(f"{row['memory'][field] / 1e6:.0f}" for field in ("peak", "before")),
                Spread.of(speeds).show(".1f") if speeds else "-",
            ]
        )
    columns = ["documents x tokens", "batch", "mode", "codec", "cache", "peak, MB", "before, MB", "decoding, tokens/s"]
    return Table(columns, rows)


def _index_table(indexes: Sequence[Row]) -> Table:
    rows = []
    for row in indexes:
        speeds = [tokens / seconds for tokens, seconds in zip(row["tokens_read"], row["seconds"], strict=True)]
        states = row["bytes"]["states"]
        rows.append(
            [
                str(row["cell"]["tokens"]),
                row["cell"]["codec"],
                Spread.of(speeds).show(".0f"),
                f"{states / sum(row['tokens_read']):,.0f}",
                f"{states / row['documents']:,.0f}",
                f"{(row['bytes']['catalog'] + row['bytes']['vectors']) / row['documents']:,.0f}",
            ]
        )
    columns = ["tokens per document", "codec", "tokens/s", "state bytes per token", "state bytes per document"]
    return Table([*columns, "other bytes per document"], rows)
