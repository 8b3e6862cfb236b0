"""A prompt: the messages of a call as runs of tokens and documents, in the order in which the model sees them.

Documents come in three ways: quoted by the text of a message, as ``text-plain`` blocks, or beside the messages. Each
stands where it was put, in the template in which it is indexed, whether its state is reused or not: what is reused
changes no token.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from gritrag.index.index import Index
from gritrag.langchain.documents import given_documents
from gritrag.langchain.passages import identify, passages_of
from gritrag.model.grit import GritModel
from gritrag.records import Document

__all__ = ["Part", "Prompt", "read_prompt"]

Part = str | Document
"""Text of a message, or a document."""

ROLES: dict[type[BaseMessage], str] = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant"}


@dataclass(frozen=True)
class Prompt:
    """What a model is to answer.

    Args:
        parts: token ids and documents, in order.
        asked: what the user says last, without the documents in it; empty where that is nothing but documents.
    """

    parts: list[list[int] | Document]
    asked: str


def read_prompt(
    model: GritModel,
    messages: Sequence[BaseMessage],
    documents: Iterable[LangChainDocument | Document | str],
    index: Index | None,
) -> Prompt:
    """The prompt of a call, ready to be answered.

    Args:
        model: its chat template goes around the messages.
        messages: what a chain gives to a chat model.
        documents: stand before the messages.
        index: whose documents the text of a message may quote; None to look for none.

    Raises:
        ValueError: no messages, a message, block or document that is no text, or a model without a chat template.
    """
    filled: list[list[int] | Document] = [document for document in given_documents(documents) if document.text.strip()]
    turns = [(_role(message), list(_message_parts(message, index))) for message in messages]
    filled += model.prompts.chat_parts(turns)
    said = [own for role, own in turns if role == "user"]
    asked = " ".join(part for part in (said[-1] if said else ()) if isinstance(part, str))
    return Prompt(filled, asked.strip())


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in ROLES.items():
        if isinstance(message, kind):
            return role
    raise ValueError(f"this model takes system, human and AI messages, not {type(message).__name__}: it calls no tools")


def _message_parts(message: BaseMessage, index: Index | None) -> Iterator[Part]:
    """Text and documents of one message. What the model itself has said is never taken for a document."""
    quoted = None if isinstance(message, AIMessage) else index
    text = ""
    for block in [message.content] if isinstance(message.content, str) else message.content:
        if isinstance(block, str) or block.get("type") == "text":
            text += block if isinstance(block, str) else block.get("text") or ""
        elif block.get("type") == "text-plain" and isinstance(block.get("text"), str):
            yield from _split(text, quoted)
            text = ""
            if block["text"].strip():  # of an empty passage there is nothing to read
                yield Document(block["text"], id=block.get("id") or "", title=block.get("title") or "")
        else:
            raise ValueError(f"this model reads text and text-plain blocks, not {block.get('type')!r}")
    yield from _split(text, quoted)


def _split(text: str, index: Index | None) -> Iterator[Part]:
    """Text, cut where it quotes a passage. What has been deleted or changed since it was returned is only text, so that
    nothing of the old document, such as its title, comes back."""
    position = 0
    spans = (
        [] if index is None else [s for s in passages_of(index).find(text) if identify(index, s.document) is not None]
    )
    for span in spans:
        yield text[position : span.start]
        yield span.document
        position = span.end
    yield text[position:]
