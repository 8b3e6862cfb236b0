"""Answerability: how probable it is that the documents of a context do not hold the answer.

Two things tell it. Behind documents that do not answer, the word with which a model says so is rarely the likeliest
first one, but far likelier than behind documents that do. And the nearest of the documents is farther from the question
than one that answers. Both are there before anything is said: the logits of the answer's first token, and the vectors
of a search.

Shape letters: `V` vocabulary.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ANSWERABILITY_FILE = "answerability.json"
"""Name of the file inside a checkpoint."""

FORMAT = "gritrag-answerability-1"


def log_odds(logits_V: torch.Tensor, token_id: int) -> float:
    """Of a token as the next one, in nats."""
    logits_V = logits_V.float()
    others = torch.cat([logits_V[:token_id], logits_V[token_id + 1 :]]).logsumexp(-1)
    return float(logits_V[token_id] - others)


@dataclass(frozen=True)
class Answerability:
    """A logistic regression, fitted for one checkpoint.

    Args:
        log_odds: weight of the log-odds that the first token of the answer is the first one of "not in the documents".
        similarity: weight of the greatest similarity of a document's vector to that of the question.
        bias: added.
        above: the probability above which nothing else is answered, unless another is asked for; 1 for never.
        adapter: identity of the adapter of the checkpoint.
    """

    log_odds: float
    similarity: float
    bias: float
    above: float
    adapter: str

    def unanswerable(self, log_odds: float, similarity: float) -> float:
        """The probability that the documents do not hold the answer."""
        score = self.log_odds * log_odds + self.similarity * similarity + self.bias
        return float(torch.tensor(score, dtype=torch.float64).sigmoid())

    def save(self, path: Path) -> None:
        """Write it, as `load` reads it."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Answerability":
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, a broken one, or one of another format.
        """
        try:
            fields = json.loads(path.read_text("utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r}, this version reads {FORMAT!r}")
            odds, similarity, bias, above = (float(fields[n]) for n in ("log_odds", "similarity", "bias", "above"))
            return cls(odds, similarity, bias, above, str(fields["adapter"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read when documents hold no answer from {path}: {error}") from None


@dataclass(frozen=True)
class Refusal:
    """When to say of one context that its documents do not hold the answer, and how.

    Args:
        answerability: of the model.
        similarity: of the nearest document.
        above: the probability above which it is said; 1 for never.
        token_ids: what is said, with its end.
    """

    answerability: Answerability
    similarity: float
    above: float
    token_ids: tuple[int, ...]

    def judge(self, logits_V: torch.Tensor, most: int) -> tuple[float, tuple[int, ...]]:
        """By the logits of the first token: the probability, and what is to be said, in at most so many tokens; nothing
        where the model is to answer."""
        found = self.answerability.unanswerable(log_odds(logits_V, self.token_ids[0]), self.similarity)
        return found, self.token_ids[:most] if self.is_due(found) else ()

    def is_due(self, unanswerable: float | None) -> bool:
        """Whether that probability makes the answer."""
        return unanswerable is not None and unanswerable > self.above


def check_unanswerable_above(value: float | None) -> None:
    """Refuse what is no probability; None is for what the checkpoint says.

    Raises:
        ValueError: it is below 0 or above 1.
    """
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"unanswerable_above is a probability, 0 to 1 (1: never say so), got {value!r}")
