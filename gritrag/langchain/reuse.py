"""Reuse: which documents of a prompt have a state in an index, and the context that states and tokens make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gritrag.index.index import Index
from gritrag.langchain.passages import passages_of
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.records import Document

__all__ = ["Reuse", "identify", "plan_reuse"]


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


def plan_reuse(model: GritModel, index: Index | None, parts: Sequence[list[int] | Document], reuses: bool) -> Reuse:
    """Parts of a prompt as a context. The tokens are the same whether states are reused or not.

    Args:
        model: that of the index.
        index: None where there are no states.
        parts: token ids and documents, in order. A document that the index does not hold is read where it stands.
        reuses: whether documents that the index holds are answered from their states.
    """
    held: dict[int, Document] = {}
    for number, part in enumerate(parts):
        if index is not None and isinstance(part, Document) and (document := identify(index, part)) is not None:
            held[number] = document
    states: dict[int, DocumentState] = {}
    computed: set[int] = set()
    if index is not None and reuses and model.decoder.has_states:
        states, computed = _states(model, index, held)
    pieces: list[list[int] | DocumentState] = []
    for number, part in enumerate(parts):
        if isinstance(part, Document):
            pieces.append(states.get(number) or model.document_token_ids(held.get(number, part)))
        else:
            pieces.append(part)
    context = model.decoder.usable(Context.of(*pieces))
    new = {id(states[number]) for number in computed}
    lengths = [(len(placed.state), id(placed.state) in new) for placed in context.states]
    return Reuse(context, sum(n for n, is_new in lengths if not is_new), sum(n for n, is_new in lengths if is_new))


def identify(index: Index, document: Document) -> Document | None:
    """The document of the index with the very text of `document`, under the id that it claims or one lately returned.

    An id is a hint and proves nothing; text decides, and so does a title, if `document` has one.
    """
    for candidate in (document, passages_of(index).with_text(document.text)):
        with index.snapshot():  # or it could be deleted between the two
            if candidate is None or candidate.id not in index:
                continue
            (stored,) = index.get([candidate.id])
        if stored.text.strip() == document.text.strip() and document.title.strip() in ("", stored.title.strip()):
            return stored
    return None


def _states(model: GritModel, index: Index, held: Mapping[int, Document]) -> tuple[dict[int, DocumentState], set[int]]:
    """The states of documents by number, and the numbers of those that had to be computed."""
    loaded = dict(zip(held, index.load_states(held.values()), strict=True))
    states = {number: state for number, state in loaded.items() if state is not None}
    missing = [number for number, state in loaded.items() if state is None]
    if missing:
        readings = model.read_documents([held[number] for number in missing])
        for number, reading in zip(missing, readings, strict=True):
            states[number] = reading.state
            index.store_state(held[number], reading.state)
    return states, set(missing)
