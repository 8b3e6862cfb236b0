"""Reuse: which documents of a prompt have a state in an index, and the context that states and tokens make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gritrag.index.index import Index
from gritrag.langchain.passages import identify, passages_of
from gritrag.langchain.prompt import Prompt
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.records import Document
from gritrag.relevance import relevance_biases

__all__ = ["Reuse", "plan_reuse"]

MAX_ASKED = 1000
"""Characters of a message that are compared with documents: its end, where most prompts have the question."""


@dataclass(frozen=True)
class Reuse:
    """A context, and how much of it was not read again.

    Args:
        context: states and the tokens that are still to be read.
        loaded: tokens of states that the index had.
        computed: tokens of its documents that had no state: read now, and stored if the index can be written now.
    """

    context: Context
    loaded: int
    computed: int


def plan_reuse(
    model: GritModel, index: Index | None, prompt: Prompt, reuses: bool, relevance_bias: float = 0.0
) -> Reuse:
    """A prompt as a context. The tokens are the same whether states are reused or not.

    Args:
        model: that of the index.
        index: None where there are no states.
        prompt: a document of it that the index does not hold is read where it stands.
        reuses: whether documents that the index holds are answered from their states.
        relevance_bias: of states; see `RAG`.
    """
    held: dict[int, Document] = {}
    for number, part in enumerate(prompt.parts):
        if index is not None and isinstance(part, Document) and (document := identify(index, part)) is not None:
            held[number] = document
    states: dict[int, DocumentState] = {}
    computed: set[int] = set()
    biases: dict[int, float] = {}
    if index is not None and reuses and model.decoder.has_states:
        states, computed = _states(model, index, held)
        if relevance_bias and len(states) > 1 and prompt.asked and model.decoder.takes_biases:
            scores = _scores(model, index, [held[number] for number in states], prompt.asked)
            biases = dict(zip(states, relevance_biases(scores, relevance_bias), strict=True))
    parts = [
        _part(model, held.get(number, part) if isinstance(part, Document) else part, states.get(number))
        for number, part in enumerate(prompt.parts)
    ]
    if any(biases.values()):
        for number, bias in biases.items():
            parts[number] = replace(parts[number], relevance_bias=bias, shares_positions=True)
    context = model.decoder.usable(Context(tuple(part for part in parts if len(part))))
    new = {id(states[number]) for number in computed}
    lengths = [(len(placed.state), id(placed.state) in new) for placed in context.states]
    return Reuse(context, sum(n for n, is_new in lengths if not is_new), sum(n for n, is_new in lengths if is_new))


def _part(model: GritModel, content: list[int] | Document, state: DocumentState | None) -> Part:
    if state is not None:
        return Part(state)
    return Part(tuple(model.document_token_ids(content) if isinstance(content, Document) else content))


def _scores(model: GritModel, index: Index, documents: Sequence[Document], asked: str) -> list[float]:
    """How relevant documents are for what is asked: as the search said whose query it quotes, else by vectors."""
    found = passages_of(index).scores([document.id for document in documents], asked)
    if found is not None:
        return found
    (vector_D,) = model.encode_query([asked[-MAX_ASKED:]])
    vectors = index.load_vectors(documents)
    return [0.0 if vector is None else float(vector @ vector_D) for vector in vectors]


def _states(model: GritModel, index: Index, held: Mapping[int, Document]) -> tuple[dict[int, DocumentState], set[int]]:
    """The states of documents by number, and the numbers of those that had to be computed."""
    loaded = dict(zip(held, index.load_states(held.values()), strict=True))
    states = {number: state for number, state in loaded.items() if state is not None}
    missing = [number for number, state in loaded.items() if state is None]
    if missing:
        readings = model.read_documents([held[number] for number in missing])
        for number, reading in zip(missing, readings, strict=True):
            states[number] = reading.state
            index.keep_state(held[number], reading.state)
    return states, set(missing)
