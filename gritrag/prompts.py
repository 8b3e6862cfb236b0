"""Every template and marker. A prompt is a list of segments, and a segment is scaffold (ours) or content (the user's).

Scaffold may hold control tokens, content never can: the two are tokenised apart (`tokens.py`). A template says how a
document, a query (for retrieval) and a question (to be answered) stand in a prompt, so that cached and uncached runs,
training and inference, use the same segments down to the last space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import xxhash


class Segment(NamedTuple):
    """A stretch of a prompt. Content is data: it is stripped, and control tokens in it stay text.

    Only what `is_pooled` goes into a vector: an instruction is content that is read but not pooled. Of scaffold that
    is pooled, only the last token counts: it closes a text and stands for all of it.
    """

    text: str
    is_content: bool
    is_pooled: bool


Message = Mapping[str, str]
"""A chat message: ``{"role": "system" | "user" | "assistant", "content": text}``."""


def scaffold(text: str) -> Segment:
    """A stretch of the template's own text."""
    return Segment(text, is_content=False, is_pooled=False)


def content(text: str, is_pooled: bool = True) -> Segment:
    """A stretch of the user's text."""
    return Segment(text, is_content=True, is_pooled=is_pooled)


@dataclass(frozen=True)
class Template:
    """The scaffold of each kind of text, as format strings with one or two `{}` slots that content goes into.

    Args:
        name: what a fingerprint and `gritrag.json` call it.
        marker: first token of every document segment, which becomes its attention sink.
        document: slot: the document. Read once, for vector and state.
        query: slots: instruction, query. Read for its vector only.
        bare_query: slot: query, where no instruction is given.
        question: slot: question, to be answered from the documents that precede it.
        bare_question: slot: question, to be answered with no document in the context.
        question_first: slot: question, where the documents follow it.
        answer_start: what stands between the context and the answer, where the documents come last.
        answer_start_after_question: the same where the question's embedding prompt comes last; `answer_start` if empty.
        stop: strings that end an answer, beside the tokenizer's end token.
        text_markers: strings that act as markers though the tokenizer has no control token for them; a space is
            put into them wherever they occur in content.
        end: what closes documents and queries; its last token is pooled with their content.
        chat: Jinja template for chats, where the model's maker had one; the tokenizer's own where empty.
        link_tokens: behind a document, see `with_link_tokens`.
    """

    name: str
    marker: str
    document: str
    query: str
    bare_query: str
    question: str
    bare_question: str
    question_first: str
    answer_start: str
    answer_start_after_question: str = ""
    stop: tuple[str, ...] = ()
    text_markers: tuple[str, ...] = ()
    end: str = ""
    chat: str = ""
    link_tokens: str = ""

    @property
    def fingerprint(self) -> str:
        """The name and a hash of all strings: an edited template is another template."""
        return f"{self.name}-{xxhash.xxh3_64_hexdigest(repr(sorted(self._strings().items())).encode())}"

    def with_marker(self, marker: str) -> "Template":
        """This template for a tokenizer whose first token is `marker`, which then starts every prompt of its own."""

        def marked(form: str) -> str:
            return marker + form.removeprefix(self.marker)

        return replace(
            self,
            marker=marker,
            query=marked(self.query),
            bare_query=marked(self.bare_query),
            bare_question=marked(self.bare_question),
            question_first=marked(self.question_first),
        )

    def with_link_tokens(self, token: str, count: int) -> "Template":
        """This template with so many link tokens behind a document, where they have seen all of it. They are read
        with it and belong to its state, and are not pooled (KVLink, Yang et al. 2025, reads them anew each time)."""
        return replace(self, link_tokens=token * count)

    def document_segments(self, text: str) -> list[Segment]:
        """A document, as the read pass takes it."""
        marker = [scaffold(self.marker)] if self.marker else []
        links = [scaffold(self.link_tokens)] if self.link_tokens else []
        return [*marker, *self._fill(self.document, text), *self._end_segments(), *links]

    def query_segments(self, text: str, instruction: str | None = None) -> list[Segment]:
        """A query, as the read pass takes it; the instruction is read, not pooled."""
        if instruction and instruction.strip():
            return [*self._fill(self.query, instruction, text), *self._end_segments()]
        return [*self._fill(self.bare_query, text), *self._end_segments()]

    def question_segments(self, text: str, has_documents: bool = True) -> list[Segment]:
        """A question to be answered, behind its documents or without any, up to where the answer starts."""
        return self._fill(self.question if has_documents else self.bare_question, text)

    def question_first_segments(self, text: str) -> list[Segment]:
        """A question to be answered, before its documents."""
        return self._fill(self.question_first, text)

    def answer_start_segments(self, question_is_last: bool = False) -> list[Segment]:
        """What stands between a context and its answer where the question does not say it."""
        return [scaffold((self.answer_start_after_question if question_is_last else "") or self.answer_start)]

    def harmless(self, text: str) -> str:
        """`text` with a space inside every textual marker, so that content cannot imitate the template."""
        for marker in self.text_markers:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        return text

    def _strings(self) -> dict[str, object]:
        """All fields; without link tokens, those of the template as it was before there were any."""
        return {name: value for name, value in asdict(self).items() if value or name != "link_tokens"}

    def _end_segments(self) -> list[Segment]:
        return [Segment(self.end, is_content=False, is_pooled=True)] if self.end else []

    def _fill(self, form: str, *contents: str) -> list[Segment]:
        """Split the form at its slots; braces in contents are never looked at."""
        pieces = form.split("{}")
        assert len(pieces) == len(contents) + 1, f"template {self.name}: {form!r} does not have {len(contents)} slots"
        segments = [scaffold(pieces[0])] if pieces[0] else []
        for number, (text, piece) in enumerate(zip(contents, pieces[1:], strict=True), start=1):
            segments.append(content(self.harmless(text), is_pooled=number == len(contents)))
            if piece:
                segments.append(scaffold(piece))
        return segments


NOT_FOUND = "not in the documents"
"""What is said where the documents do not hold the answer: models learn to say it, and evaluation looks for it."""

BRIEFLY = f"Answer with a few words from the documents. If they do not say, reply: {NOT_FOUND}."

CHATML = Template(
    name="chatml",
    marker="<|im_start|>",
    document="document\n{}<|im_end|>\n",
    query="<|im_start|>query\n{}\n{}",
    bare_query="<|im_start|>query\n{}",
    question="<|im_start|>user\n" + BRIEFLY + "\n\n{}<|im_end|>\n<|im_start|>assistant\n",
    bare_question="<|im_start|>user\nAnswer with a few words.\n\n{}<|im_end|>\n<|im_start|>assistant\n",
    question_first="<|im_start|>user\n" + BRIEFLY + "\n\n{}<|im_end|>\n",
    answer_start="<|im_start|>assistant\n",
)
"""ChatML (Qwen, SmolLM2): its markers are control tokens, which content cannot contain."""

GRITRAG = Template(
    name="gritrag",
    marker="<|im_start|>",
    document="document\n{}<|im_end|>\n",
    query="<|im_start|>question\n{}\n{}<|im_end|>\n",
    bare_query="<|im_start|>question\n{}<|im_end|>\n",
    question="<|im_start|>question\n{}<|im_end|>\n<|im_start|>answer\n",
    bare_question="<|im_start|>question\n{}<|im_end|>\n<|im_start|>answer\n",
    question_first="<|im_start|>question\n{}<|im_end|>\n",
    answer_start="<|im_start|>answer\n",
)
"""Of our own checkpoints, on ChatML's control tokens. Roles of its own keep short answers out of plain chat, and take
the place of an instruction: what is read after the documents is all that the first token waits for. A question is
embedded in the words in which it is asked, so that its state can be answered from."""

GRITLM = Template(
    name="gritlm",
    marker="<s>",
    document="<|embed|>\n{}",
    query="<s><|user|>\n{}\n<|embed|>\n{}",
    bare_query="<s><|embed|>\n{}",
    question="\n<|user|>\n{}\n\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n",
    bare_question="<s><|user|>\n{}\n<|assistant|>\n",
    question_first="<s><|user|>\n{}\n",
    answer_start="\n\nOptionally using the prior context answer the query prior to it\n<|assistant|>\n",
    answer_start_after_question=(
        "\n\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n"
    ),
    text_markers=("<|user|>", "<|embed|>", "<|assistant|>"),
    chat=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}"
        "{% else %}{{ '<|user|>\\n' + message['content'] + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
)
"""GritLM's published format (Muennighoff et al. 2024, section 2): its role markers are plain text."""

PLAIN = Template(
    name="plain",
    marker="",
    document="{}\n\n",
    query="Instruct:\n{}\nQuery:\n{}",
    bare_query="Query:\n{}",
    question="Question:\n{}\nAnswer:",
    bare_question="Question:\n{}\nAnswer:",
    question_first="Question:\n{}\n\n",
    answer_start="Answer:",
    stop=("\n",),
)
"""For base models without a chat format; `with_marker` puts the model's first token in."""

GEMMA = Template(
    name="gemma",
    marker="<bos>",
    document="<start_of_turn>user\n{}<end_of_turn>\n",
    query="<bos><start_of_turn>user\n{}\n\n{}<end_of_turn>\n",
    bare_query="<bos><start_of_turn>user\n{}<end_of_turn>\n",
    question="<start_of_turn>user\n" + BRIEFLY + "\n\n{}<end_of_turn>\n<start_of_turn>model\n",
    bare_question="<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    question_first="<bos><start_of_turn>user\n" + BRIEFLY + "\n\n{}<end_of_turn>\n",
    answer_start="<start_of_turn>model\n",
    stop=("<end_of_turn>",),
)

INSTRUCT = Template(
    name="instruct",
    marker="",
    document="{}",
    query="Instruct: {}\nQuery: {}",
    bare_query="{}",
    question="Question:\n{}\nAnswer:",
    bare_question="Question:\n{}\nAnswer:",
    question_first="Question:\n{}\n\n",
    answer_start="Answer:",
    stop=("\n",),
    end="</s>",
)
"""Of E5-Mistral (Wang et al. 2024, section 3.2) and those that followed it: an instruction before queries, nothing
before documents, and the tokenizer's end token behind both. They only embed: questions to answer are as in `PLAIN`."""

LLM2VEC = Template(
    name="llm2vec",
    marker="",
    document="{}",
    query="{} {}",
    bare_query="{}",
    question="\n\nQuestion:\n{}\nAnswer:",
    bare_question="Question:\n{}\nAnswer:",
    question_first="Question:\n{}\n\n",
    answer_start="\n\nAnswer:",
    stop=("\n",),
)
"""Of LLM2Vec (BehnamGhader et al. 2024, appendix on instructions): the instruction, a space, the text."""

CLOZE = Template(
    name="cloze",
    marker="",
    document='This sentence : "{}',
    query='{}\nThis sentence : "{}',
    bare_query='This sentence : "{}',
    question="\n\nQuestion:\n{}\nAnswer:",
    bare_question="Question:\n{}\nAnswer:",
    question_first="Question:\n{}\n\n",
    answer_start="\n\nAnswer:",
    stop=("\n",),
    end='" belongs to the following cluster:',
)
"""Of Roth et al. 2025 (arXiv 2507.22729), for clustering: the token that would go on with the sentence sums it up."""

TEMPLATES: dict[str, Template] = {
    template.name: template for template in (CHATML, GRITRAG, GRITLM, PLAIN, GEMMA, INSTRUCT, LLM2VEC, CLOZE)
}

FITTED = (GRITLM, PLAIN, INSTRUCT, LLM2VEC, CLOZE)
"""Templates of no tokenizer in particular: they begin and end with the control tokens of the one at hand."""


def fitted(template: Template, first: str, last: str) -> Template:
    """A template of `FITTED` for a tokenizer with these control tokens."""
    fits = template.with_marker(first)
    return replace(fits, end=last) if template.end == "</s>" else fits


def chat_segments(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> list[Segment]:
    """A chat as segments, through any model's own chat template.

    `render` (the tokenizer's chat template) sees place-holders instead of the contents, so whatever a message says
    becomes content, and only what the template itself wrote becomes scaffold.

    Raises:
        ValueError: a message lacks a role or a text, or the template drops or changes one.
    """
    if not messages:
        raise ValueError("a chat needs at least one message")
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"a chat is a list of messages with role and content, got {message!r}")
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"a chat message needs a string role and content, got {message!r}")
        if not message["role"].isidentifier():
            raise ValueError(f"a role is one word, such as user or assistant, not {message['role']!r}")
    keys = [f"\ue000{position}\ue001" for position in range(len(messages))]
    rest = render([{"role": m["role"], "content": key} for m, key in zip(messages, keys, strict=True)])
    segments = []
    for message, key in zip(messages, keys, strict=True):
        before, found, rest = rest.partition(key)
        if not found:
            raise ValueError(f"this model's chat template has no place for a message of role {message['role']!r}")
        segments += [scaffold(before), content(message["content"])]
    if any(key in segment.text for key in keys for segment in (*segments, scaffold(rest)) if not segment.is_content):
        raise ValueError("this model's chat template repeats a message, so its text cannot be kept apart from scaffold")
    return [segment for segment in [*segments, scaffold(rest)] if segment.text]
