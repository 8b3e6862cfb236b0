"""Questions asked of an index that is there: what its search finds, and answers from text and from states.

Rows need no passages: a question is answered from what the index finds, and what it finds is right where one of the
right answers stands in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.evaluate.kept import Kept
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.quality import RETRIEVED, Asked, Setting, answer, answer_rows, can_be_scored, described
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.session import Outputs, Rows, Session, conduct, distinct, read_files
from gritrag.evaluate.suite import Result
from gritrag.index.index import Index
from gritrag.index.search import MODES
from gritrag.model.grit import GritModel
from gritrag.records import Hit


def holds_answer(hits: Sequence[Hit], question: Question) -> float:
    """Whether one of the right answers stands in what was found: 1 or 0; normalised as in SQuAD."""
    return float(any(score_answer(hit.document.text, question.answers)["match"] for hit in hits))


class Found(NamedTuple):
    """What the search of an index gives for questions, by way to search, in their order."""

    questions: list[Question]
    hits: dict[str, list[list[Hit]]]

    def rows(self, name: str, of_model: Mapping[str, Any]) -> Rows:
        """A row for each way to search: whether a right answer stands in what was found."""
        scored = [number for number, question in enumerate(self.questions) if not question.is_unanswerable]
        return [
            (
                {"model": name, "part": "found", "way": way},
                {**of_model, "found": [holds_answer(hits[number], self.questions[number]) for number in scored]},
            )
            for way, hits in self.hits.items()
        ]

    @property
    def asked(self) -> list[Asked]:
        """Questions with what hybrid search found for them."""
        return [
            Asked(question, {RETRIEVED: hits})
            for question, hits in zip(self.questions, self.hits["hybrid"], strict=True)
        ]

    @property
    def content(self) -> str:
        """Equal where the same texts were found with the same scores."""
        return repr([(hit.document.text, f"{hit.score:.4f}") for hits in self.hits["hybrid"] for hit in hits])


def search(index: Index, questions: Sequence[Question], setting: Setting) -> Found:
    """Search for all questions."""
    ways: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in MODES}
    ways["hybrid"] |= {"dense_weight": setting.dense_weight, "rerank": setting.rerank}
    texts = [question.text for question in questions]
    return Found(
        list(questions), {way: index.search_many(texts, setting.k, **options) for way, options in ways.items()}
    )


def evaluate(index: Index, name: str, found: Found, setting: Setting, kept: Kept | None = None) -> Rows:
    """Rows of the search, and of answers to the questions that are not kept already.

    Args:
        index: of a GritModel.
        name: what the tables call its model.
        found: questions with right answers, or that are known to have none, and what was found for them.
        setting: `k`, `questions`, `max_new_tokens`, `dense_weight`, `relevance_bias`, `rerank`, `recompute` and `only`
            count.
        kept: gets each question that is answered; nothing is kept where None.
    """
    assert isinstance(index.model, GritModel)
    kept = Kept() if kept is None else kept
    if setting.has("answers"):
        answer(index, found.asked, setting, kept)
    return rows_of(index.model, name, found, setting, kept)


def rows_of(model: GritModel, name: str, found: Found, setting: Setting, kept: Kept) -> Rows:
    """A row for each way to search and each way to answer, of what is kept."""
    rows = found.rows(name, described(model)) if setting.has("retrieval") else []
    return rows + answer_rows(name, kept.in_order(), described(model))


def main(
    paths: Sequence[Path],
    folder: Path,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """Run; what is wrong with the files is found before a model is loaded.

    Args:
        paths: files of questions; see `gritrag.evaluate.question_rows`.
        folder: of the index, which is only read.
        model: where the one that the index remembers has moved.
        dtype, device: see `GritModel.from_pretrained`.
        setting: see `evaluate`.
        outputs: see there.

    Returns:
        the result; see `gritrag.evaluate.evaluation.main`.

    Raises:
        ValueError: no file can be evaluated, an index that is missing, empty or of a model that only embeds, answers
            would overwrite a file of questions, or another context than `retrieved`.
    """
    setting, outputs = setting or Setting(), outputs or Outputs()
    if not setting.has_context(RETRIEVED):
        raise ValueError("an index that is there is asked for what it finds: leave out --context, or give retrieved")
    outputs.check(paths)
    files, questions = read_files(distinct(paths), lambda path: _questions(path, setting))
    with Index.open(folder, model=model, dtype=dtype, device=device) as index:
        if not len(index):
            raise ValueError(f"the index {folder} is empty: there is nothing to find")
        reader = index.model
        if not isinstance(reader, GritModel):
            raise ValueError(f"answers need an index of a GritModel, and {folder} is one of a {type(reader).__name__}")
        name = str(reader.loaded_as.get("name", "model of the index"))
        counts = [len(each) * setting.has("answers") for each in questions.values()]
        named: dict[str, Any] = {"files": list(files.paths)}
        if files.is_one:
            named = {"file": paths[0].name}
        about = {"model": name, **named, "index": folder.name, "documents_indexed": len(index)}
        about["questions_answered"] = counts[0] if files.is_one else counts

        def measure(session: Session) -> Iterator[str]:
            for file, each in questions.items():
                found = search(index, each, setting)
                kept = session.kept(name, reader.fingerprint.digest, file, found.content)
                short = Path(name).name
                with session.measuring(file, short, lambda: rows_of(reader, short, found, setting, kept)):  # noqa: B023
                    session.rows[file] = {short: evaluate(index, short, found, setting, kept)}
                yield file

        return conduct(files, sum(counts), about, machine_of(reader), setting, outputs, measure)


def _questions(path: Path, setting: Setting) -> list[Question]:
    """Those of a file that can be scored, as many as the setting says."""
    known = [each for each in read_questions(path, needs_passages=False) if can_be_scored(each)]
    if not known:
        raise ValueError(f"no question of {path} has answers, so nothing can be scored; add the key 'answers'")
    return evenly(known, setting.questions)
