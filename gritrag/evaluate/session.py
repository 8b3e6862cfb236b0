"""One run over files of questions: what is wrong with one stops no other, and what is known when it stops is told.

Given a folder, a run that was stopped goes on where it was: answers are kept question by question.
"""

import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import xxhash

from gritrag.evaluate.kept import LINE, Kept, Record
from gritrag.evaluate.quality import Setting
from gritrag.evaluate.suite import Result, Results, run
from gritrag.folders import check_file
from gritrag.progress import ProgressBar

COMMAND = "eval questions"
REPORT = "evaluation.json"
"""In the folder of a run: what `gritrag bench render` reads."""

T = TypeVar("T")

Rows = list[tuple[dict[str, str], dict[str, Any]]]


@dataclass(frozen=True)
class Outputs:
    """Where a run writes beside what it returns.

    Args:
        answers: gets every answer and its scores, as JSONL.
        folder: of a run that can be resumed; see `gritrag.evaluate.suite.Results`.
        out: gets the result, as JSON; of several files after each.
        tell: is called with the result so far and the name of each of several files that is done.
        warn: is called with what is wrong with one of several files, as soon as it is known.
    """

    answers: Path | None = None
    folder: Path | None = None
    out: Path | None = None
    tell: Callable[[Result, str], None] | None = None
    warn: Callable[[str], None] | None = None

    def check(self, paths: Iterable[Path]) -> None:
        """Raises ValueError where answers cannot be written, or would overwrite one of the files of questions."""
        known = [path for path in paths if path.exists()]
        if self.answers is not None and self.answers.exists() and any(map(self.answers.samefile, known)):
            raise ValueError(f"--answers {self.answers} is the file of questions itself; name another")
        if self.answers is not None:
            check_file(self.answers)

    def save(self, result: Result) -> None:
        for path in (self.out, self.folder / REPORT if self.folder is not None else None):
            if path is not None:
                result.save(path)

    def say_done(self, so_far: Result, file: str) -> None:
        self.save(so_far)
        if self.tell is not None:
            self.tell(so_far, file)

    def say_failed(self, error: str) -> None:
        if self.warn is not None:
            self.warn(f"{error}; the other files go on")


class Files(NamedTuple):
    """The files of a run, by the names that tables give them.

    Args:
        paths: of those that can be read.
        failed: what is wrong with the others.
    """

    paths: dict[str, Path]
    failed: dict[str, str]

    @property
    def is_one(self) -> bool:
        """A single file, which rows need not name."""
        return len(self.paths) + len(self.failed) == 1


def distinct(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by what tables call them: their name, or their path where two have the same. One given twice is one."""
    each = list({path.resolve(): path for path in paths}.values())
    names = [path.name for path in each]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in each}


def read_files(paths: Mapping[str, Path], read: Callable[[Path], T]) -> tuple[Files, dict[str, T]]:
    """Read all files, and say what is wrong with some.

    Raises:
        ValueError: none can be read.
    """
    found: dict[str, T] = {}
    failed: dict[str, str] = {}
    for name, path in paths.items():
        try:
            found[name] = read(path)
        except ValueError as error:
            failed[name] = str(error)
    if not found:
        raise ValueError("; ".join(failed.values()))
    return Files({name: paths[name] for name in found}, failed), found


@dataclass
class Session:
    """What the files of one run share.

    Args:
        files: that are evaluated.
        results: where everything is kept.
        bar: counts the questions of all files and models.
        lines: gets a line of JSON for each question that is answered.
        rows: what came of it so far, by file and model.
        failed: what is wrong with files.
        outputs: see there.
    """

    files: Files
    results: Results
    bar: ProgressBar
    lines: IO[str] | None
    failed: dict[str, str]
    outputs: Outputs
    rows: dict[str, dict[str, Rows]] = field(default_factory=dict)

    def kept(self, model: str, fingerprint: str, file: str, content: str = "") -> Kept:
        """What is kept of a file and a model.

        Args:
            model: its name.
            fingerprint: tells it from another of the same name.
            file: its name.
            content: what the answers depend on beside the file's own content.
        """
        self.bar.set_description(f"answering {file}")

        def hear(record: Record, is_earlier: bool) -> None:
            self.bar.initial += is_earlier  # what was done before says nothing of how long the others take
            self.bar.update(1)
            if self.lines is not None:
                about = {"model": model} if self.files.is_one else {"model": model, "file": file}
                line = {**about, **{key: record[key] for key in LINE}}
                self.lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                self.lines.flush()

        digest = xxhash.xxh3_64(self.files.paths[file].read_bytes())
        digest.update(content.encode())
        cell = {"model": model, "fingerprint": fingerprint, "file": file, "content": digest.hexdigest()}
        return Kept(self.results, cell, hear)

    @contextmanager
    def measuring(self, file: str, model: str, partly: Callable[[], Rows]) -> Iterator[None]:
        """What goes wrong with one file of several stops no other; what is known of it so far is told.

        Args:
            partly: rows of what is known.
        """
        try:
            yield
        except (KeyboardInterrupt, ValueError, OSError) as error:
            if not self.rows.get(file) and (known := partly()):  # of a second model only whole files can be compared
                self.rows[file] = {model: known}
            if isinstance(error, KeyboardInterrupt) or self.files.is_one:
                raise
            self.failed[file] = str(error)
            self.outputs.say_failed(str(error))

    def listed(self) -> list[dict[str, Any]]:
        """Rows of all files, as a result holds them."""
        return [
            {"kind": "questions", "cell": cell if self.files.is_one else {"file": file, **cell}, **figures}
            for file in self.files.paths
            for rows in self.rows.get(file, {}).values()
            for cell, figures in rows
        ]


def conduct(
    files: Files,
    total: int,
    about: Mapping[str, Any],
    facts: Mapping[str, Any],
    setting: Setting,
    outputs: Outputs,
    measure: Callable[[Session], Iterator[str]],
) -> Result:
    """Measure; a run that is stopped, by Ctrl-C or SIGTERM, gives what it has, and its facts say so.

    Args:
        files: to evaluate.
        total: questions to answer, of all files and models.
        about: facts of this command.
        facts: of the machine and the code: a run with others does not go on with this one.
        setting: see there.
        outputs: see there.
        measure: fills the rows of the session, and yields the name of each file that is done.
    """
    failed, told, stopped = dict(files.failed), set[str](), ""
    listed: list[dict[str, Any]] = []
    for error in failed.values():
        outputs.say_failed(error)

    def result(of: Mapping[str, Any]) -> Result:
        extra = {**({"failed": failed} if failed else {}), **({"stopped": stopped} if stopped else {})}
        return Result(COMMAND, {**about, **extra, **of}, listed)

    def tell(session: Session, file: str) -> None:
        listed[:] = session.listed()
        told.add(file)
        if not files.is_one and file in session.rows:
            outputs.say_done(result({**facts, "settings": asdict(setting)}), file)

    def work(results: Results) -> None:
        nonlocal stopped
        opened = outputs.answers.open("w", encoding="utf-8") if outputs.answers is not None else nullcontext()
        with opened as lines, ProgressBar(total=total, unit="question", disable=not total) as bar, _stoppable():
            session = Session(files, results, bar, lines, failed, outputs)
            try:
                for name in measure(session):
                    tell(session, name)
            except KeyboardInterrupt:
                stopped = f"after {bar.n} of {total} questions"
        for name in [name for name in session.rows if name not in told]:
            tell(session, name)
        listed[:] = session.listed()

    done = run(COMMAND, asdict(setting), facts, work, outputs.folder)
    last = result(done.facts)
    outputs.save(last)
    return last


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, where this is the main thread."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
