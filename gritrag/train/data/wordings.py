"""Wordings: how people put documents and a question into a chat. Those of the examples and of experiments are not here,
so that these can tell how prompts fare that no training has seen."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SLOT = re.compile(r"(\{\w+\})")

Slots = Mapping[str, Sequence[str | int]]


class Wording(NamedTuple):
    """A chat over documents, as forms with the slots ``{documents}``, ``{question}`` and ``{not_found}``.

    Args:
        messages: role and form of each.
        passage: how one document stands among the others; slots: ``{passage}`` and its number ``{n}``, from 1.
        separator: between two documents.
        has_documents_first: they stand before the messages, as LangChain's ``documents=`` puts them.
    """

    messages: tuple[tuple[str, str], ...]
    passage: str = "{passage}"
    separator: str = "\n\n"
    has_documents_first: bool = False

    def turns(self, question: str, rows: Sequence[int], not_found: str) -> list[tuple[str, list[str | int]]]:
        """The messages: role, and text with the rows of documents where they stand.

        Args:
            question: it may hold anything, braces too.
            rows: of the documents, in order.
            not_found: what is to be said where they do not hold the answer.
        """
        documents: list[str | int] = []
        for number, row in enumerate(rows):
            documents += [self.separator] if number else []
            documents += _filled(self.passage, {"{passage}": [row], "{n}": [str(number + 1)]})
        slots: Slots = {"{documents}": documents, "{question}": [question], "{not_found}": [not_found]}
        return [(role, _joined(_filled(form, slots))) for role, form in self.messages]


def _filled(form: str, slots: Slots) -> list[str | int]:
    return [part for piece in SLOT.split(form) for part in slots.get(piece, [piece])]


def _joined(parts: Sequence[str | int]) -> list[str | int]:
    """Texts that follow each other become one: they are tokenised together."""
    joined: list[str | int] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


WORDINGS = (
    # in the question's message, one behind the other
    Wording((("user", "{documents}\n\n{question}"),)),
    Wording((("user", "Use the passages below to answer the question at the end.\n\n{documents}\n\n{question}"),)),
    Wording((("user", "Context:\n{documents}\n\nQuestion: {question}\n\nIn case it is unknown, reply: {not_found}."),)),
    Wording((("user", "Given the following text, reply in a few words.\n\n{documents}\n\nQ: {question}\nA:"),)),
    Wording(
        (
            ("system", "You help people find facts in documents. Be brief."),
            ("user", "<context>\n{documents}\n</context>\n\n{question}"),
        )
    ),
    Wording(
        (("user", "Read what stands between the lines.\n---\n{documents}\n---\nThen tell me: {question}"),),
        separator="\n---\n",
    ),
    # numbered or as a list
    Wording(
        (("user", "Here is what a search found.\n\n{documents}\n\nI want to know: {question}"),), "[{n}] {passage}"
    ),
    Wording(
        (("user", "Sources:\n\n{documents}\n\nWith the help of these sources, answer this: {question}"),),
        "Source {n}:\n{passage}",
    ),
    Wording((("user", "My notes:\n{documents}\n\nGoing by the notes alone: {question}"),), "- {passage}", "\n"),
    # behind the question
    Wording((("user", "{question}\n\nLook it up here:\n\n{documents}"),)),
    Wording((("user", "Question: {question}\n\nDocuments that may help:\n\n{documents}\n\nGive just the answer."),)),
    # in the system message
    Wording((("system", "Reply with what these texts say, and nothing else.\n\n{documents}"), ("user", "{question}"))),
    Wording(
        (
            ("system", "The texts that you know:\n\n{documents}\n\nSay {not_found} where they do not hold the answer."),
            ("user", "{question}"),
        ),
        "({n}) {passage}",
    ),
    # as a message or blocks of their own
    Wording((("user", "{documents}"), ("user", "{question}"))),
    Wording(
        (
            ("system", "Answer from the texts that the user sends, with few words."),
            ("user", "{documents}"),
            ("user", "{question}"),
        )
    ),
    # before all messages
    Wording((("user", "{question}"),), has_documents_first=True),
    Wording((("system", "Give short answers."), ("user", "{question}")), has_documents_first=True),
)
