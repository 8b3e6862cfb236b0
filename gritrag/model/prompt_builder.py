"""PromptBuilder: texts to token ids, in the template of a checkpoint.

Shape letters: `T` tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TypeVar, cast

from transformers import PreTrainedTokenizerBase

from gritrag.model.inner_errors import told
from gritrag.model.likelihood import Scored
from gritrag.model.parts import Parts
from gritrag.prompts import Message, Segment, Template, chat_segments
from gritrag.records import Document, as_document
from gritrag.tokens import Encoder, TokenIds, check_text

Prompt = str | Sequence[Message]
"""Raw text to go on from, or a chat."""

T = TypeVar("T", str, str | Document)
D = TypeVar("D")
"""Whatever stands for a document in a chat; no string."""


class PromptBuilder:
    """Builds every prompt that a model reads or answers.

    Args:
        tokenizer: of the model.
        template: how texts stand in a prompt.
        parts: of the checkpoint, whose soft tokens stand in prompts.
        instruction: of queries that come without one; empty for none.
        context_length: longest prompt, in tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        parts: Parts,
        instruction: str,
        context_length: int,
    ) -> None:
        self.encoder, self.template = Encoder(tokenizer), template
        self._tokenizer, self._parts = tokenizer, parts
        self._instruction, self._context_length = instruction, context_length

    # --- what the read pass takes ------------------------------------------------------------------------------------

    def document(self, text: str) -> TokenIds:
        """A document as the read pass takes it, scaffold and soft tokens included; not checked."""
        return self._embeddable(self.template.document_segments(text))

    def query(self, text: str, instruction: str | None) -> TokenIds:
        """A query as the read pass takes it; not checked."""
        return self._embeddable(self.template.query_segments(text, instruction))

    def documents(self, texts: Sequence[str | Document]) -> list[TokenIds]:
        """Prompts of documents.

        Raises:
            ValueError: one is empty, no valid text, or too long; its number is named.
        """
        contents = ((number, as_document(item).content) for number, item in _numbered(texts))
        return [self._checked(self.document, text, "document", number) for number, text in contents]

    def queries(self, texts: Sequence[str], instruction: str | None = None) -> list[TokenIds]:
        """Prompts of queries, with the checkpoint's instruction where it is None; errors are those of `documents`."""
        instruction = self._instruction if instruction is None else instruction
        build = partial(self.query, instruction=instruction)
        return [self._checked(build, text, "query", number) for number, text in _numbered(texts)]

    def _embeddable(self, segments: list[Segment]) -> TokenIds:
        prompt = self.encoder.encode(segments)
        return prompt if self._parts.contextual is None else self._parts.slots.with_contextual(prompt)

    # --- what an answer is decoded from ------------------------------------------------------------------------------

    def question_ids(self, question: str, has_documents: bool) -> list[int]:
        """The question as it stands in a context, after documents or alone, up to where the answer starts: `[T]`."""
        return self._question(partial(self.template.question_segments, has_documents=has_documents), question)

    def scored_question(self, question: str) -> Scored:
        """The words of a question, as they are embedded without an instruction, to be scored behind a document.

        Raises:
            ValueError: it is empty, no valid text, or too long.
        """
        prompt = self._checked(self._up_to_question, question, "question", 0)
        return Scored.of(prompt.ids, prompt.is_pooled)

    def _up_to_question(self, question: str) -> TokenIds:
        segments = self.template.query_segments(question)
        last = max(number for number, segment in enumerate(segments) if segment.is_content)
        return self.encoder.encode(segments[: last + 1])

    def question_first_ids(self, question: str) -> list[int]:
        """The question as it stands in a context before the documents: `[T]`."""
        return self._question(self.template.question_first_segments, question)

    def answer_start_ids(self, question_is_last: bool) -> list[int]:
        """What stands between a context and its answer, where that is not part of the question: `[T]`."""
        return self.encoder.encode(self.template.answer_start_segments(question_is_last)).ids

    def answer_ids(self, answer: str) -> list[int]:
        """An answer with its end, as it stands behind a question: `[T]`."""
        stop = self.template.stop
        end = self.encoder.scaffold_ids(stop[0]) if stop else [self._tokenizer.eos_token_id]
        return [*self.encoder.content_ids(answer), *end]

    def _question(self, build: Callable[[str], list[Segment]], question: str) -> list[int]:
        return self._checked(lambda text: self.encoder.encode(build(text)), question, "question", 0).ids

    # --- raw text and chats ------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of raw text (with the tokens that the tokenizer puts first) or of a chat ready to be answered.

        Raises:
            ValueError: no text, a broken message, or a chat for a model without a chat template.
        """
        if isinstance(prompt, str):
            ids = self._first_ids + self.encoder.content_ids(prompt, strip=False)
        else:
            ids = self.encoder.encode(chat_segments(prompt, self.render)).ids
        if not ids:
            raise ValueError("the prompt is empty; give it at least one word")
        return ids

    @cached_property
    def _first_ids(self) -> list[int]:
        """What the tokenizer puts before a text: one token, several (GLM's), or none; not what it puts behind."""
        whole, text = self._tokenizer("a").input_ids, self.encoder.scaffold_ids("a")
        starts = range(len(whole) - len(text) + 1)
        start = next((start for start in starts if whole[start : start + len(text)] == text), 0)
        return list(whole[:start])

    def chat_parts(self, turns: Sequence[tuple[str, Sequence[str | D]]]) -> list[list[int] | D]:
        """A chat over documents, ready to be answered: runs of token ids, and the documents where they stand.

        Text is tokenised as `prompt_ids` does it, stripped at both ends of its message. A document ends its own line,
        so the white space behind it goes too. Answers and training alike lay out their chats here.

        Args:
            turns: of each message its role, and its content: text, and anything but strings for documents.

        Raises:
            ValueError: no messages, a broken one, or a model without a chat template.
        """
        # The template sees a place-holder for each message; what the messages say never meets it.
        chat: list[Message] = [{"role": role, "content": str(number)} for number, (role, _) in enumerate(turns)]
        filled: list[list[int] | D] = []
        for segment in chat_segments(chat, self.render):
            if segment.is_content:
                filled += self._content(turns[int(segment.text)][1])
            else:
                filled.append(self.encoder.scaffold_ids(segment.text))
        return filled

    def _content(self, parts: Sequence[str | D]) -> Iterator[list[int] | D]:
        for number, part in enumerate(parts):
            if not isinstance(part, str):
                yield part
                continue
            if number == 0 or not isinstance(parts[number - 1], str):
                part = part.lstrip()
            if number == len(parts) - 1:
                part = part.rstrip()
            if part:
                yield self.encoder.content_ids(part, strip=False)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A chat in the tokenizer's own format, or in that of the template where the tokenizer has none.

        Raises:
            ValueError: there is neither, or the format refuses these messages, as some do with a system's.
        """
        form = self._tokenizer.chat_template or self.template.chat
        if not form:
            raise ValueError("this model has no chat template; give raw text, or load an instruction-tuned model")
        chat = [dict(message) for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    chat, chat_template=form, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except (ImportError, MemoryError):
            raise  # no fault of the messages
        except Exception as error:  # a template is code of others, and raises what it likes
            raise ValueError(f"this model's chat template refuses these messages ({told(error)})") from error

    def _checked(self, build: Callable[[str], TokenIds], text: str, what: str, number: int) -> TokenIds:
        if not check_text(text, f"{what} {number}").strip():
            raise ValueError(f"{what} {number} is empty: there is nothing to embed; leave it out")
        prompt = build(text)
        if len(prompt.ids) > self._context_length:
            remedy = "cut it with gritrag.chunk_documents first" if what == "document" else "shorten it"
            raise ValueError(
                f"{what} {number} has {len(prompt.ids)} tokens, this model reads at most {self._context_length}; "
                f"{remedy}"
            )
        return prompt


def _numbered(texts: Sequence[T]) -> Iterator[tuple[int, T]]:
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one string; put it into a list")
    return enumerate(texts)


def prompts_of(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """One string or one chat (a list of messages) is one prompt; a list of either is many.

    Raises:
        ValueError: it is neither, such as one message without a list around it.
    """
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        raise ValueError(
            f"a prompt is a text, or a list of messages such as [{{'role': ..., 'content': ...}}], not {prompt!r}"
        )
    if isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        return [cast(Prompt, prompt)], False
    return list(cast(Sequence[Prompt], prompt)), True
