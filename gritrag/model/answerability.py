"""Answerability: how probable it is that the documents of a context do not hold the answer.

Three things tell it. Behind documents that do not answer, the word with which a model says so is rarely the likeliest
first one, but far likelier than behind documents that do. The nearest of the documents is farther from the question
than one that answers. And the hidden state of the question's last token, in the middle of the model, knows more than
comes out at its end: a linear probe reads it. All are there before anything is said: the logits of the answer's first
token, the vectors of a search, and what layers hand on to each other.

Shape letters: `V` vocabulary, `D` hidden numbers of all layers that are probed.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from gritrag.arguments import real

ANSWERABILITY_FILE = "answerability.json"
"""Name of the file inside a checkpoint."""

FORMAT, FORMAT_WITHOUT_PROBE = "gritrag-answerability-2", "gritrag-answerability-1"


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
        layers: behind how many layers the hidden state of the last token of the question is probed; empty for nowhere.
        hidden: weights of the probe, for each number of these hidden states as it is, layer behind layer.
    """

    log_odds: float
    similarity: float
    bias: float
    above: float
    adapter: str
    layers: tuple[int, ...] = ()
    hidden: tuple[float, ...] = ()

    @cached_property
    def _probe(self) -> torch.Tensor:
        return torch.tensor(self.hidden)

    def unanswerable(self, log_odds: float, similarity: float, hidden_D: torch.Tensor | None = None) -> float | None:
        """The probability that the documents do not hold the answer.

        Args:
            log_odds: of the first word of "not in the documents" as the first token of the answer.
            similarity: of the nearest document.
            hidden_D: what is probed, float32; None where a forward does not give it.

        Returns:
            None where `hidden_D` is wanted and not there: without it the other weights mean something else.
        """
        score = self.log_odds * log_odds + self.similarity * similarity + self.bias
        if self.layers:
            if hidden_D is None:
                return None
            score += float(hidden_D.cpu() @ self._probe)
        return float(torch.tensor(score, dtype=torch.float64).sigmoid())

    def check_shape(self, size: int, layers: int, path: Path) -> None:
        """Refuse a model that the probe cannot read.

        Args:
            size: of a hidden state of the model.
            layers: of the model.
            path: of the file that this was read from.

        Raises:
            ValueError: its hidden states have another size, or it has too few layers.
        """
        if len(self.hidden) != size * len(self.layers):
            raise ValueError(
                f"{path} has {len(self.hidden)} weights for hidden states behind {len(self.layers)} layers, this model "
                f"needs {size} for each; take the file that was fitted to this checkpoint, or remove it"
            )
        if any(not 0 < passed < layers for passed in self.layers):
            raise ValueError(
                f"{path} probes behind layers {list(self.layers)}, this model has {layers}, and the last one cannot be "
                "probed; take the file that was fitted to this checkpoint, or remove it"
            )

    def save(self, path: Path) -> None:
        """Write it, as `load` reads it: a line for each field."""
        fields = {"format": FORMAT, **asdict(self)}
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items())
        path.write_text(f"{{\n{lines}\n}}\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Answerability":
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, a broken one, or one of another format. One of the format before has no probe.
        """
        try:
            fields = json.loads(path.read_text("utf-8"))
            if fields["format"] not in (FORMAT, FORMAT_WITHOUT_PROBE):
                raise ValueError(f"format {fields['format']!r}, this version reads {FORMAT!r}")
            odds, similarity, bias, above = (float(fields[n]) for n in ("log_odds", "similarity", "bias", "above"))
            layers, hidden = (fields[n] if fields["format"] == FORMAT else () for n in ("layers", "hidden"))
            probe = tuple(map(int, layers)), tuple(map(float, hidden))
            return cls(odds, similarity, bias, above, str(fields["adapter"]), *probe)
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

    @property
    def layers(self) -> tuple[int, ...]:
        """Behind how many layers the hidden state of the last token of the question is to be kept; see `Watched`."""
        return self.answerability.layers

    def judge(
        self, logits_V: torch.Tensor, hidden_D: torch.Tensor | None, most: int
    ) -> tuple[float | None, tuple[int, ...]]:
        """Before the first token.

        Args:
            logits_V: of the first token.
            hidden_D: what was `watched`.
            most: tokens that may be said.

        Returns:
            The probability, and what is to be said, which is nothing where the model is to answer. Where `hidden_D` is
            wanted and a forward did not give it, there is no probability, and the model answers.
        """
        found = self.answerability.unanswerable(log_odds(logits_V, self.token_ids[0]), self.similarity, hidden_D)
        return found, self.token_ids[:most] if self.is_due(found) else ()

    def is_due(self, unanswerable: float | None) -> bool:
        """Whether that probability makes the answer."""
        return unanswerable is not None and unanswerable > self.above


def check_unanswerable_above(value: float | None) -> None:
    """Refuse what is no probability; None is for what the checkpoint says.

    Raises:
        ValueError: it is below 0 or above 1.
    """
    if value is not None and not 0 <= real("unanswerable_above", value) <= 1:
        raise ValueError(f"unanswerable_above is a probability, 0 to 1 (1: never say so), got {value!r}")
