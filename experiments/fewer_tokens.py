"""How much of an answer is left if only some tokens of each state are kept?

`python -m experiments.fewer_tokens FILE... --share 0.4` answers questions from states of all tokens, and from states of
the tokens that matter most by several measures. Numbers are not rounded, so this is the most that a codec could keep.
Those that need attention read each document a second time, behind its own state (KVzip, Kim et al. 2025, arXiv
2505.23416).

Shape letters: `L` layers, `H` key/value heads, `G` query heads of each, `A` tokens that are read again, `T` tokens,
`K` head dim, `S` tokens that are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from experiments.script import run
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate import scores, statistics
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.quality import Asked, Setting, gold_contexts
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.rows import choose, read_questions
from gritrag.model.cache_names import given_cache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState
from gritrag.modes import MODES
from gritrag.plan import Retrieved, plan_context
from gritrag.progress import ProgressBar

FIRST = 3
"""Tokens that all documents begin with are kept always, and so is the last."""

ALL = "all tokens"


class Read(NamedTuple):
    """A state, and the largest and the mean attention of its document, read again, to each token: `[L, H, T]`."""

    state: DocumentState
    largest: torch.Tensor
    mean: torch.Tensor


def read(model: GritModel, state: DocumentState) -> Read:
    """Read the document again behind its state."""
    ids = state.token_ids.tolist()
    cache = model.decoder.place([Context.of(state, ids)], Sampling(max_new_tokens=1))
    positions = torch.arange(len(ids), 2 * len(ids))[None]
    model.lm.set_attn_implementation("eager")  # the others tell no attention
    with torch.inference_mode():
        found = model.lm(
            input_ids=torch.tensor([ids]),
            position_ids=positions,
            **given_cache(model.lm, cache),
            output_attentions=True,
        ).attentions
    model.lm.set_attn_implementation("sdpa")
    attention_LHGAT = torch.stack([layer[0, ..., : len(ids)].float() for layer in found]).unflatten(
        1, (state.keys.shape[1], -1)
    )
    return Read(state, attention_LHGAT.amax((2, 3)), attention_LHGAT.mean((2, 3)))


def kept(score: torch.Tensor, share: float) -> torch.Tensor:
    """Which tokens have the greatest of scores `[T]`, in order: `[S]`."""
    tokens = len(score)
    score = score.clone()
    score[:FIRST] = score[-1:] = torch.inf
    return score.topk(min(tokens, max(FIRST + 1, round(share * tokens)))).indices.sort().values


def side_by_side(state: DocumentState, chosen_S: torch.Tensor) -> DocumentState:
    """The state of these tokens, which will be placed one next to the other."""
    keys, values = state.keys[:, :, chosen_S], state.values[:, :, chosen_S]
    return DocumentState(keys, values, state.token_ids[chosen_S], state.reading, is_lossless=False)


def with_gaps(model: GritModel, state: DocumentState, chosen_S: torch.Tensor) -> DocumentState:
    """As `side_by_side`, but as far from the end of the document as they were."""
    assert model.rotation is not None
    few = side_by_side(state, chosen_S)
    moved_S = (chosen_S - len(state)) - torch.arange(-len(chosen_S), 0)
    return few.with_tensors(model.rotation.rotate(few.keys, moved_S), few.values)


def by_layer(state: DocumentState, score_LT: torch.Tensor, share: float) -> DocumentState:
    """As many tokens of each layer, others in each."""
    chosen = [kept(score_T, share) for score_T in score_LT]
    keys, values = (
        torch.stack([layer[:, of_layer] for layer, of_layer in zip(part, chosen, strict=True)])
        for part in (state.keys, state.values)
    )
    return DocumentState(keys, values, state.token_ids[chosen[0]], state.reading, is_lossless=False)


def ways(model: GritModel, share: float) -> dict[str, Callable[[Read], DocumentState]]:
    """Each makes a smaller state, but for the first."""

    def drawn(each: Read) -> torch.Tensor:
        return torch.rand(len(each.state), generator=torch.Generator().manual_seed(len(each.state)))

    def norms(each: Read) -> torch.Tensor:
        return -each.state.keys.float().norm(dim=-1).mean((0, 1))

    scored: dict[str, Callable[[Read], torch.Tensor]] = {
        "drawn": drawn,
        "small keys": norms,
        "mean attention": lambda each: each.mean.mean((0, 1)),
        "largest attention": lambda each: each.largest.mean((0, 1)),
    }
    found: dict[str, Callable[[Read], DocumentState]] = {ALL: lambda each: each.state}
    for name, score in scored.items():
        found[name] = lambda each, score=score: side_by_side(each.state, kept(score(each), share))  # type: ignore[misc]
    found["largest attention, gaps"] = lambda each: with_gaps(model, each.state, kept(each.largest.mean((0, 1)), share))
    found["largest attention of each layer"] = lambda each: by_layer(each.state, each.largest.mean(1), share)
    return found


def f1(model: GritModel, asked: Asked, states: Sequence[DocumentState], max_new_tokens: int) -> float:
    """Of the answer from these states of the question's `gold` context."""
    retrieved = Retrieved(asked.question.text, asked.contexts["gold"], states)
    plan = plan_context(model, MODES["doc-cache"], retrieved, room=max_new_tokens)
    options = Sampling(max_new_tokens=max_new_tokens, stop=model.prompts.template.stop)
    decoding = model.decoder.decode([plan.context], options)
    for _ in decoding:
        pass
    return scores.score_answer(decoding.completions[0].text.strip(), asked.question.answers)["F1"]


def main(
    paths: Annotated[list[Path], typer.Argument(help="JSONL of questions with passages and answers.")],
    share: Annotated[float, typer.Option(help="Of the tokens of each document that are kept.")] = 0.4,
    questions: Annotated[int, typer.Option(help="Of each file.")] = 12,
    documents: Annotated[int, typer.Option(help="Of each file.")] = 12,
    max_new_tokens: int = 32,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer from states of fewer tokens, chosen in several ways."""
    setting = Setting(questions=questions, documents=documents)
    asked = [each for path in paths for each in gold_contexts(choose(read_questions(path), documents), setting, path)]
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    given = {hit.document.id + hit.document.content: hit.document for each in asked for hit in each.contexts["gold"]}
    readings = loaded.read_documents(list(given.values()), show_progress_bar=True)
    pairs = ProgressBar(list(zip(given, readings, strict=True)), desc="reading again", unit="document")
    states = {name: read(loaded, reading.state) for name, reading in pairs}
    found: dict[str, list[float]] = {}
    for way, smaller in ways(loaded, share).items():
        few = {name: smaller(each) for name, each in states.items()}
        found[way] = [
            f1(
                loaded,
                each,
                [few[hit.document.id + hit.document.content] for hit in each.contexts["gold"]],
                max_new_tokens,
            )
            for each in ProgressBar(asked, desc=way, unit="question")
        ]
    lines = []
    for way, of_way in found.items():
        ratio = statistics.ratio(of_way, found[ALL], 0)
        lines.append([way, statistics.mean(of_way, 0).show(), statistics.percent(ratio)])
    facts = {"model": model, "files": [path.name for path in paths], **machine_of(loaded)}
    typer.echo(header({**facts, "questions": len(asked), "documents": len(states), "share": share}))
    typer.echo(aligned(["tokens that are kept", "F1", "% of all tokens"], lines))


if __name__ == "__main__":
    run(main)
