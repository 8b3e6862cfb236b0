"""What rows of the grid say: the first token and its parts, memory, and what indexing costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gritrag.evaluate.machine import LONG
from gritrag.evaluate.report import Point, Section, Series, Table, bar_chart, line_chart, ms
from gritrag.evaluate.speed import BARE, BASELINE, PARTS, Grid, context, from_hits, name
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Row


def sections(grid: Grid, indexes: Sequence[Row]) -> list[Section]:
    return [
        Section(
            "First token",
            "From the question to the first token, embedding and search included. Median and quartiles of rounds; in "
            "each round all modes answer the same new question, so a ratio compares runs that are close in time. 'From "
            "hits' leaves embedding and search out. A cold run opens the index anew, its files dropped from the "
            "page cache.",
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


# --- limits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Floors of one cell that answers from states, in seconds, and the greatest speed-up (anchors: n document tokens
    that are reused, q tokens that are read, f FLOP and b state bytes per token, C FLOP/s, W bytes/s).

    Args:
        compute: q tokens at the FLOP/s of a long forward, attention to all n included.
        weights: every weight read once from memory.
        load: the states read once from warm files.
        speedup: min((n + q) / q, f W / (b C)), the speed-up of the first token that reuse can give at most.
    """

    compute: float
    weights: float
    load: float
    speedup: float

    @property
    def forward(self) -> float:
        """No forward over the question is sooner."""
        return max(self.compute, self.weights)

    @classmethod
    def of(cls, ceilings: Mapping[str, Any], cached: float, fresh: float, state_bytes: float) -> "Limits":
        """For `cached` tokens whose states are `state_bytes` in all, and `fresh` ones that are read."""
        flops = ceilings["matmul_flops"][str(LONG)]
        bandwidth = ceilings["file_bytes_per_second"]["warm"]
        pair = ceilings["flop_per_pair"]
        # a token sees what is cached and, on average, half of those that are read with it
        compute = fresh * (ceilings["flop_per_token"] + pair * (cached + fresh / 2)) / flops
        per_cached = ceilings["flop_per_token"] + pair * cached / 2
        return cls(
            compute,
            ceilings["weight_bytes"] / ceilings["memory_bytes_per_second"],
            state_bytes / bandwidth,
            min((cached + fresh) / fresh, per_cached * bandwidth / (state_bytes / cached * flops)),
        )


def limits(grid: Grid, indexes: Sequence[Row], ceilings: Row) -> Section:
    file = ceilings["file_bytes_per_second"]
    told = [
        [f"matrices over {tokens} tokens, GFLOP/s", f"{flops / 1e9:.1f}"]
        for tokens, flops in ceilings["matmul_flops"].items()
    ]
    told += [
        ["memory, GB/s read", f"{ceilings['memory_bytes_per_second'] / 1e9:.1f}"],
        ["state files, warm, GB/s", f"{file['warm'] / 1e9:.2f}"],
        ["state files, cold, GB/s", f"{file['cold'] / 1e9:.2f}"],
        ["weights read by a forward, MB", f"{ceilings['weight_bytes'] / 1e6:.3g}"],
        ["MFLOP per token, attention not counted", f"{ceilings['flop_per_token'] / 1e6:.3g}"],
    ]
    per_token = {
        (row["cell"]["tokens"], row["cell"]["codec"]): row["bytes"]["states"] / sum(row["tokens_read"])
        for row in indexes
    }
    same = "Dropping files from the page cache had no effect here: cold figures are warm ones."
    return Section(
        "Limits",
        f"Ceilings of this machine, measured in this run: each is the best of a few. The forward's floor is the "
        f"greater of its arithmetic at the FLOP/s of {LONG} tokens and of reading every weight once; the load's floor "
        f"reads the states once. A bare forward over the question alone took turns with the modes; it is shown "
        f"beside those that read the same tokens. The most that reuse can give is min((n + q) / q, f W / (b C)) for n "
        f"reused and q read tokens, f FLOP and b bytes of state per token, C FLOP/s and W bytes/s of warm files. "
        f"{same if file['cold'] > 0.8 * file['warm'] else ''}",
        (),
        [Table(["ceiling", "measured"], told), _distances(grid, per_token, ceilings)],
    )


def _distances(grid: Grid, bytes_per_token: Mapping[tuple[int, str], float], ceilings: Row) -> Table:
    rows = []
    for row in grid.rows:
        cell, bare, base = row["cell"], grid.beside(row, BARE), grid.beside(row, BASELINE)
        per_token = bytes_per_token.get((cell["tokens"], cell["codec"]))
        if cell["cache"] != "warm" or bare is None or per_token is None:
            continue
        cached = Spread.of([each["cached_tokens"] for each in row["rounds"]]).median
        fresh = Spread.of([each["prompt_tokens"] - each["cached_tokens"] for each in row["rounds"]]).median
        floors = Limits.of(ceilings, cached, fresh, per_token * cached)
        same = [a["prompt_tokens"] - a["cached_tokens"] == b["prompt_tokens"] for a, b in _pairs(row, bare)]
        beside = [
            ms([each["first_token"] for each in bare["rounds"]]),
            Spread.of([each["first_token"] / floors.forward for each in bare["rounds"]]).show(".2f"),
            Spread.of([from_hits(a) / b["first_token"] for a, b in _pairs(row, bare)]).show(".2f"),
        ]
        sooner = [from_hits(a) / from_hits(b) for a, b in _pairs(base, row)] if base else []
        rows.append(
            [
                *(context(cell), cell["mode"], cell["codec"], f"{cached:.0f} + {fresh:.0f}"),
                *(f"{1e3 * seconds:.1f}" for seconds in (floors.compute, floors.weights, floors.load)),
                ms([from_hits(each) for each in row["rounds"]]),
                *(beside if all(same) else ["-"] * len(beside)),
                Spread.of(sooner).show(".1f") if sooner else "-",
                f"{floors.speedup:.0f}",
            ]
        )
    columns = ["documents x tokens", "mode", "codec", "tokens reused + read"]
    columns += [f"floor: {part}, ms" for part in ("arithmetic", "weights", "load")]
    columns += ["from hits, ms", "bare forward, ms", "bare over its floor", "from hits over bare"]
    return Table([*columns, "times sooner, from hits", "at most"], rows)


def _pairs(a: Row, b: Row) -> Iterator[tuple[Any, Any]]:
    """Samples of the same rounds."""
    return zip(a["rounds"], b["rounds"], strict=True)
