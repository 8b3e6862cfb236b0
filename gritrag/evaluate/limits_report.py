"""What the ceilings say: the first token that this machine allows, beside the one that was measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gritrag.evaluate.facts import Spread
from gritrag.evaluate.limits import LONG, Limits
from gritrag.evaluate.report import Section, Table
from gritrag.evaluate.speed import BARE
from gritrag.evaluate.speed_report import BASELINE, Grid, context, from_hits, ms
from gritrag.evaluate.suite import Row


def section(grid: Grid, indexes: Sequence[Row], ceilings: Row) -> Section:
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
        limits = Limits.of(ceilings, cached, fresh, per_token * cached)
        same = [a["prompt_tokens"] - a["cached_tokens"] == b["prompt_tokens"] for a, b in _pairs(row, bare)]
        beside = [
            ms([each["first_token"] for each in bare["rounds"]]),
            Spread.of([each["first_token"] / limits.forward for each in bare["rounds"]]).show(".2f"),
            Spread.of([from_hits(a) / b["first_token"] for a, b in _pairs(row, bare)]).show(".2f"),
        ]
        sooner = [from_hits(a) / from_hits(b) for a, b in _pairs(base, row)] if base else []
        rows.append(
            [
                *(context(cell), cell["mode"], cell["codec"], f"{cached:.0f} + {fresh:.0f}"),
                *(f"{1e3 * seconds:.1f}" for seconds in (limits.compute, limits.weights, limits.load)),
                ms([from_hits(each) for each in row["rounds"]]),
                *(beside if all(same) else ["-"] * len(beside)),
                Spread.of(sooner).show(".1f") if sooner else "-",
                f"{limits.speedup:.0f}",
            ]
        )
    columns = ["documents x tokens", "mode", "codec", "tokens reused + read"]
    columns += [f"floor: {part}, ms" for part in ("arithmetic", "weights", "load")]
    columns += ["from hits, ms", "bare forward, ms", "bare over its floor", "from hits over bare"]
    return Table([*columns, "times sooner, from hits", "at most"], rows)


def _pairs(a: Row, b: Row) -> Iterator[tuple[Any, Any]]:
    """Samples of the same rounds."""
    return zip(a["rounds"], b["rounds"], strict=True)
