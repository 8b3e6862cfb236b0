"""Dresser: a generator that knows how texts are dressed to be embedded, read and asked.

Shape letters: `T` tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import CheckpointConfig
from gritrag.model.generator import Generator
from gritrag.model.load import template_for
from gritrag.model.parts import Parts, load_parts
from gritrag.model.probes import Probed
from gritrag.prompts import Message, Segment
from gritrag.records import Document, as_document
from gritrag.tokens import TokenIds, check_text

T = TypeVar("T", str, str | Document)


class Dresser(Generator):
    """Texts in, prompts out: in the template of a checkpoint, with its soft tokens.

    Args:
        lm, tokenizer, probed: see `Generator`.
        config: how texts are read; see `CheckpointConfig`.
        parts: file of the weights of `config.parts`; they begin untrained where None.

    Raises:
        ValueError: a template or parts that there are not, or that do not go with the model.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        probed: Probed,
        config: CheckpointConfig,
        parts: Path | None = None,
    ) -> None:
        super().__init__(lm, tokenizer, probed)
        self.config = config
        self.template = template_for(config.template, tokenizer, config.links)
        self.parts: Parts = load_parts(config, lm, tokenizer, self.template, parts)
        if self.parts.contextual is not None:
            self._step = None  # it has the table of words only, and the embedding layer knows contextual tokens too

    @property
    def max_document_tokens(self) -> int:
        """Longest document one read pass takes, scaffold included."""
        return self.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as content, without any scaffold."""
        return len(self.encoder.content_ids(text))

    def document_token_ids(self, document: str | Document) -> list[int]:
        """The ids the read pass would read, scaffold included: `[T]`."""
        return self._document_prompts([document])[0].ids

    def question_token_ids(self, question: str, has_documents: bool) -> list[int]:
        """The question as it stands in a context, after documents or alone, up to where the answer starts: `[T]`."""
        return self._asked(partial(self.template.question_segments, has_documents=has_documents), question)

    def question_first_token_ids(self, question: str) -> list[int]:
        """The question as it stands in a context before the documents: `[T]`."""
        return self._asked(self.template.question_first_segments, question)

    def answer_token_ids(self, answer: str) -> list[int]:
        """An answer with its end, as it stands behind a question: `[T]`."""
        stop = self.template.stop
        end = self.encoder.scaffold_ids(stop[0]) if stop else [self.tokenizer.eos_token_id]
        return [*self.encoder.content_ids(answer), *end]

    def answer_start_ids(self, question_is_last: bool) -> list[int]:
        """What stands between a context and its answer, where that is not part of the question: `[T]`."""
        return self.encoder.encode(self.template.answer_start_segments(question_is_last)).ids

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A chat in the tokenizer's own format, or in that of the template where the tokenizer has none."""
        form = self.tokenizer.chat_template or self.template.chat
        if not form:
            raise ValueError("this model has no chat template; give raw text, or load an instruction-tuned model")
        chat = [dict(message) for message in messages]
        return str(
            self.tokenizer.apply_chat_template(
                chat, chat_template=form, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _render(self, messages: list[Message]) -> str:
        return self.render(messages)

    def document_prompt(self, text: str) -> TokenIds:
        """A document as the read pass takes it, scaffold and soft tokens included."""
        return self._embeddable(self.template.document_segments(text))

    def query_prompt(self, text: str, instruction: str | None) -> TokenIds:
        """A query as the read pass takes it."""
        return self._embeddable(self.template.query_segments(text, instruction))

    def _embeddable(self, segments: list[Segment]) -> TokenIds:
        prompt = self.encoder.encode(segments)
        return prompt if self.parts.contextual is None else self.parts.slots.with_contextual(prompt)

    def _query_prompts(self, texts: Sequence[str], instruction: str | None) -> list[TokenIds]:
        instruction = self.config.instruction if instruction is None else instruction
        dress = partial(self.query_prompt, instruction=instruction)
        return [self._checked(dress, text, "query", number) for number, text in _texts(texts)]

    def _document_prompts(self, texts: Sequence[str | Document]) -> list[TokenIds]:
        contents = ((number, as_document(item).content) for number, item in _texts(texts))
        return [self._checked(self.document_prompt, text, "document", number) for number, text in contents]

    def _asked(self, dress: Callable[[str], list[Segment]], question: str) -> list[int]:
        return self._checked(lambda text: self.encoder.encode(dress(text)), question, "question", 0).ids

    def _checked(self, dress: Callable[[str], TokenIds], text: str, what: str, number: int) -> TokenIds:
        if not check_text(text, f"{what} {number}").strip():
            raise ValueError(f"{what} {number} is empty: there is nothing to embed; leave it out")
        prompt = dress(text)
        if len(prompt.ids) > self.max_document_tokens:
            remedy = "cut it with gritrag.chunk_documents first" if what == "document" else "shorten it"
            raise ValueError(
                f"{what} {number} has {len(prompt.ids)} tokens, this model reads at most {self.max_document_tokens}; "
                f"{remedy}"
            )
        return prompt


def _texts(texts: Sequence[T]) -> Iterator[tuple[int, T]]:
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one string; put it into a list")
    return enumerate(texts)
