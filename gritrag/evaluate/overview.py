"""What several files of questions say together: tables over files, and the questions of all files pooled.

Questions are pooled, not means of files: each counts once, so a file with more questions counts more, and resamples
draw from the questions of all files. The better way to answer from text is chosen once for all that is pooled.
Questions of different kinds are not pooled with each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gritrag.evaluate import statistics, summary
from gritrag.evaluate.quality import BEST, UNANSWERABLE
from gritrag.evaluate.report import Section, Table, header, losing, markdown, ms
from gritrag.evaluate.scores import RANKED
from gritrag.evaluate.suite import Result, Row
from gritrag.evaluate.summary import CACHED, KINDS, READ, Evaluated, better_ways, evaluated, said
from gritrag.index.search import MODES
from gritrag.prompts import NOT_FOUND

POOLED = "all files"
NAMES = {"sparse": "BM25"}
"""Of ways to search, where tables over files call them otherwise."""

Groups = dict[str, dict[str, Evaluated]]
"""By model, what it did with each file, and with all together where there are several."""


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Of a single file, which its rows do not name, its report; of several each one's, and what they say together."""
    files = _files(rows)
    if "" in files:
        return summary.sections(facts, rows)
    every = []
    for file, own in files.items():
        every += [
            Section(f"{file}: {each.title}", each.text, each.charts, each.tables)
            for each in summary.sections(facts, own)
        ]
    return [*every, *together(facts, rows)]


def of_file(result: Result, file: str) -> str:
    """The report of one of several files, as a terminal shows it."""
    return markdown(file, summary.sections(result.facts, _files(result.rows)[file]))


def of_all(result: Result) -> str:
    """Facts, and what all files say together, as a terminal shows them."""
    told = markdown("All files", [Section("", result.warning()), *together(result.facts, result.rows)])
    return f"{header(result.facts)}\n\n{told}"


def together(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Tables over files, in points of 100, with 95% bootstrap intervals, and where states lose."""
    groups, seed = _groups(rows), facts["settings"]["seed"]
    found = [_answers(groups, seed), _retrieval(groups, seed), _not_found(groups, seed)]
    return [*(section for section in found if section.tables[0].rows), _losses(groups, seed)]


def _files(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["cell"].get("file", ""), []).append(row)
    return found


def _groups(rows: Sequence[Row]) -> Groups:
    groups: Groups = {}
    for file, own in _files(rows).items():
        for each in evaluated(own):
            groups.setdefault(each.model, {})[file] = each
    for model, files in groups.items():
        if len(files) > 1:
            groups[model] = {**files, POOLED: pool(list(files.values()))}
    return groups


def pool(runs: Sequence[Evaluated]) -> Evaluated:
    """The questions of all files as those of one. A way that some files lack has the questions of the others."""
    pooled = Evaluated(runs[0].model, {}, {}, {})
    for run in runs:
        for part in ("retrieval", "answers", "found"):
            for way, row in getattr(run, part).items():
                joined = getattr(pooled, part).setdefault(way, {})
                for name, values in row.items():
                    if isinstance(values, list):
                        joined[name] = [*joined.get(name, []), *values]
    return pooled


def _runs(groups: Groups) -> Iterator[tuple[str, Evaluated]]:
    """Each file of each model, and all together."""
    for files in groups.values():
        yield from files.items()


# --- answers ----------------------------------------------------------------------------------------------------------


def _answers(groups: Groups, seed: int) -> Section:
    lines = []
    for model, files in groups.items():
        for context in _contexts(files):
            for kind in KINDS:
                of_kind = {file: run for file, run in files.items() if _asks(run, kind, context)}
                if len(of_kind) == 2:  # one file, and all together, which is the same
                    del of_kind[POOLED]
                lines += [
                    [model, kind, context, file, *_line(run, kind, context, seed)] for file, run in of_kind.items()
                ]
    columns = [
        "model",
        "kind",
        "context",
        "file",
        "questions",
        "F1 from text",
        "F1 from states",
        "F1 from best document",
    ]
    columns += ["states, % of the better of text", "first token from text, ms", "from states, ms"]
    text = (
        "Questions told apart by what they need. From states, against the better of all text and the best single "
        f"document, paired. In {POOLED} the questions of all are pooled: each counts once, resamples draw from all, "
        "and the better of text is the one that is better over all of them. First tokens with quartiles."
    )
    return Section("Answers of all files", text, (), [Table(columns, lines)])


def _contexts(files: Mapping[str, Evaluated]) -> list[str]:
    return list(dict.fromkeys(context for run in files.values() for context in run.contexts()))


def _asks(run: Evaluated, kind: str, context: str) -> bool:
    return context in run.contexts() and kind in run.kinds()


def _line(run: Evaluated, kind: str, context: str, seed: int) -> list[str]:
    ways = [f"{way}, {context}" for way in (READ, CACHED, BEST)]
    f1 = [run.values("F1", way, [kind]) for way in ways]
    share = statistics.ratio(*against_the_better(run, kind, context), seed)
    seconds = [ms(run.values("first_token", way, [kind])) for way in ways[:2]]
    shown = [statistics.mean(values, seed).show() for values in f1]
    return [str(len(f1[0])), *shown, statistics.percent(share), *seconds]


def against_the_better(run: Evaluated, kind: str, context: str) -> tuple[list[float], list[float]]:
    """F1 of questions of a kind: from states, and by the better of two ways to answer from text."""
    ways = [run.values("F1", way, [kind]) for way in better_ways(run, context)]
    return run.values("F1", f"{CACHED}, {context}", [kind]), max(ways, key=sum)


def _losses(groups: Groups, seed: int) -> Section:
    lost = []
    for model, files in groups.items():
        for file, run in files.items():
            for kind, context in ((kind, context) for kind in run.kinds() for context in run.contexts()):
                change = statistics.difference(*against_the_better(run, kind, context), seed)
                if change.high < 0:
                    lost.append(f"{model}, {file}, {kind}, {context}: F1 {change.show('+.1f')}")
    return losing(lost, "Files whose F1 from states is below the better of text, by the whole paired interval.")


# --- retrieval --------------------------------------------------------------------------------------------------------


def _retrieval(groups: Groups, seed: int) -> Section:
    ways = [way for way in (*MODES, RANKED) if any(way in run.retrieval for _, run in _runs(groups))]
    lines = []
    for model, files in groups.items():
        for file, run in files.items():
            if run.retrieval:
                n = len(next(iter(run.retrieval.values()))["nDCG@10"])
                lines.append([model, file, str(n), *(_ndcg(run, way, seed) for way in ways)])
    columns = ["model", "file", "questions", *(NAMES.get(way, way) for way in ways)]
    text = "nDCG@10, each file among its own documents alone."
    return Section("Retrieval of all files", text, (), [Table(columns, lines)])


def _ndcg(run: Evaluated, way: str, seed: int) -> str:
    return statistics.mean(run.values("nDCG@10", way), seed).show() if way in run.retrieval else "-"


# --- not in the documents ---------------------------------------------------------------------------------------------


def _not_found(groups: Groups, seed: int) -> Section:
    lines = []
    for model, files in groups.items():
        for file, run in files.items():
            for context in run.contexts():
                told = [
                    said(run.values("not_found", f"{way}, {context}", kinds), seed)
                    for kinds in ([UNANSWERABLE], KINDS)
                    for way in (READ, CACHED)
                ]
                lines.append([model, file, context, *told])
    columns = ["model", "file", "context", "rightly, from text", "rightly, from states"]
    columns += ["wrongly, from text", "wrongly, from states"]
    text = f"How often an answer is “{NOT_FOUND}”: rightly, % of unanswerable questions; wrongly, % of answerable ones."
    return Section("Not in the documents, all files", text, (), [Table(columns, lines)])
