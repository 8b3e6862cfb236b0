"""Which attention heads of a model find what answers a question, and so tell questions that need several documents?

    python -m experiments.retrieval_heads nq.validation.jsonl fairytale.validation.jsonl

For each file: how well each head tells pairs of questions that need two documents ("A? And B?") from questions one by
one, and from pairs that need one document, which are as long and look the same: the area under the curve (AUC) of what
a further document adds to the best one's scores (`gritrag.complements`). Scores are the greatest products of a
question's queries with the un-rotated keys of each of the 5 documents that hybrid search finds. Beside them stand
log-probabilities of the question behind each document. The best heads of several files go into
`retrieval_heads.json` of a checkpoint.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from experiments.asked import ONE, SAME, TWO, K, documents_of, questions_by_kind
from experiments.script import run
from gritrag import GritModel, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.complements import gains
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.statistics import area
from gritrag.model.retrieval_heads import HeadScores, RetrievalHeads
from gritrag.progress import ProgressBar


class Gains(NamedTuple):
    """What the best further document adds for one question: by head, and by log-probabilities."""

    of_heads: np.ndarray
    of_logs: float


class AllHeads:
    """Gains of questions by every head of a model.

    Args:
        index: open, with states, of a GritModel.
    """

    def __init__(self, index: Index) -> None:
        assert isinstance(index.model, GritModel)
        self._index, self._model = index, index.model
        config = self._model.lm.config.get_text_config()
        self.heads = tuple(np.ndindex(config.num_hidden_layers, config.num_attention_heads))
        self._each = [HeadScores(self._model.lm, RetrievalHeads((head,), 1.0)) for head in self.heads]

    @torch.inference_mode()
    def gains(self, question: Question) -> Gains:
        """Of one question, behind what a search finds."""
        (hits,) = self._index.search_many([question.text], K)
        states, _ = self._index.states_of([hit.document for hit in hits])
        prompt = self._model.prompts.queries([question.text])[0]
        ids = torch.tensor([prompt.ids], device=self._model.device)
        hidden = self._model.lm(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        is_word = torch.tensor(prompt.is_pooled, device=ids.device)
        seen = {layer: hidden_BTD[0, is_word] for layer, hidden_BTD in enumerate(hidden)}
        keys_LHTK = torch.cat([state.keys for state in states], dim=2).to(ids.device)
        lengths = [len(state) for state in states]
        found = []
        for each in self._each:
            (place,) = each.keys
            scores_NS = each.scores(each.queries(seen), {place: keys_LHTK[place]}, lengths)
            found.append(gains(scores_NS.cpu().numpy(), 0).max())
        logs_NS = self._model.question_token_log_likelihoods(question.text, states)
        return Gains(np.array(found), float(gains(logs_NS, 0).max()))


def table(found: dict[str, list[Gains]], heads: Sequence[tuple[int, ...]], most: int) -> str:
    """The best heads of one file, and log-probabilities."""
    against = [kind for kind in (ONE, SAME) if found.get(kind)]
    if not found.get(TWO) or not against:
        return "nothing to compare"

    def areas(of: Any) -> list[float]:
        return [area([of(each) for each in found[TWO]], [of(each) for each in found[kind]]) for kind in against]

    rows = [
        (f"layer {layer}, head {head}", areas(lambda g, n=n: g.of_heads[n])) for n, (layer, head) in enumerate(heads)
    ]
    rows = sorted(rows, key=lambda row: -float(np.mean(row[1])))[:most]
    rows.append(("log-probabilities", areas(lambda g: g.of_logs)))
    lines = [[name, *(f"{100 * each:.1f}" for each in own)] for name, own in rows]
    return aligned(["AUC of pairs of two documents", *(f"against: {kind.lower()}" for kind in against)], lines)


def command(
    paths: Annotated[list[Path], typer.Argument(help="JSONL of questions with their passages and answers.")],
    questions: Annotated[int, typer.Option(help="Questions one by one.", min=0)] = 60,
    pairs: Annotated[int, typer.Option(help="Pairs of questions, of each kind.", min=1)] = 60,
    documents: Annotated[int, typer.Option(help="Passages to search, at least those that are needed.", min=1)] = 200,
    most: Annotated[int, typer.Option(help="Heads to show of each file.", min=1)] = 10,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say which heads find documents."""
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    facts = {"model": model, "documents": documents, "k": K, **machine_of(loaded)}
    typer.echo(header(facts))
    for path in paths:
        asked = questions_by_kind(path, questions, pairs)
        found: dict[str, list[Gains]] = {}
        with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=loaded) as index:
            index.add(documents_of(path, [question for _, question in asked], documents), show_progress_bar=True)
            heads = AllHeads(index)
            for kind, question in ProgressBar(asked, desc=path.stem, unit="question"):
                found.setdefault(kind, []).append(heads.gains(question))
        counts = ", ".join(f"{kind.lower()} {len(own)}" for kind, own in found.items())
        typer.echo(f"\n{path.stem}: {counts}\n\n{table(found, heads.heads, most)}")


if __name__ == "__main__":
    run(command)
