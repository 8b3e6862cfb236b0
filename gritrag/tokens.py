"""Segments become token ids and masks; long documents become chunks. Content never becomes a control token.

Shape letters: `B` batch, `T` tokens.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from semantic_text_splitter import TextSplitter
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from gritrag.prompts import Segment
from gritrag.records import Document, as_document

logger = logging.getLogger(__name__)

WINDOW = 1 << 16
"""Characters of a text that are cut at a time, at least: the first chunks of a long one are there at once."""

ANCHOR = "\n"
"""Put before a text to see how it is tokenised behind another, for a line break joins with no word."""


class TokenIds(NamedTuple):
    """Ids of one prompt and, for each, whether it goes into the vector."""

    ids: list[int]
    is_pooled: list[bool]


@dataclass(frozen=True)
class Batch:
    """Right-padded prompts. All three are `[B, T]`; the masks are bool."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pool_mask: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Real tokens per row, `[B]`."""
        return self.attention_mask.sum(1).tolist()

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.pool_mask.to(device))


@dataclass(frozen=True)
class TokenCounter:
    """Tokens of a text as content, without any scaffold."""

    encoder: "Encoder"

    def __call__(self, text: str) -> int:
        return len(self.encoder.content_ids(text))


def check_text(text: str, what: str) -> str:
    """The text, if it can be encoded.

    Raises:
        ValueError: it is no string, or holds a lone surrogate, which no tokenizer and no file can hold.
    """
    if not isinstance(text, str):
        raise ValueError(f"{what} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds a lone surrogate at character {error.start}, so it is no valid text; "
            "decode it anew, or replace it: text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


class Encoder:
    """Segments to ids with one tokenizer. Scaffold and content are tokenised apart and their ids joined."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.pad_id: int = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None), 0
        )
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # markers that a model's maker did not call special are control tokens all the same; runs of spaces are not
        markers = {i: token for i, token in added.items() if token.special or token.content.strip()}
        self.control_ids = set(markers) | set(tokenizer.all_special_ids)
        self._never_content = self.control_ids - {tokenizer.unk_token_id}  # what an unknown word may become
        self._content_tokenizer = _without_control(tokenizer, list(markers.values()))
        alone, joined = self.scaffold_ids("a"), self.scaffold_ids(ANCHOR + "a")
        self._puts_space_first = joined != self.scaffold_ids(ANCHOR) + alone

    def __reduce__(self) -> tuple[type["Encoder"], tuple[PreTrainedTokenizerBase]]:
        """Made anew in another process: a pickled tokenizer forgets that it takes control tokens for plain text."""
        return Encoder, (self.tokenizer,)

    def content_ids(self, text: str, strip: bool = True) -> list[int]:
        """Ids of user text, stripped unless told otherwise, with every control token in it taken as plain text."""
        text = check_text(text, "a text").strip() if strip else check_text(text, "a text")
        ids = self._content_tokenizer(text)
        if not self._never_content.isdisjoint(ids):
            raise ValueError(f"this tokenizer makes control tokens of plain text, so it is not safe: {text[:80]!r}")
        return ids

    def scaffold_ids(self, text: str) -> list[int]:
        """Ids of the template's own text, in which control tokens are control tokens."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode(self, segments: Sequence[Segment]) -> TokenIds:
        """Ids of a prompt, and which of them are pooled."""
        ids: list[int] = []
        is_pooled: list[bool] = []
        for segment in segments:
            goes_on = self._puts_space_first and bool(ids) and ids[-1] not in self.control_ids
            new = self._ids_behind_text(segment) if goes_on else self._ids_alone(segment)
            ids += new
            if segment.is_content or not segment.is_pooled:
                is_pooled += [segment.is_pooled] * len(new)
            else:
                is_pooled += [False] * (len(new) - 1) + [True]
        return TokenIds(ids, is_pooled)

    def _ids_alone(self, segment: Segment) -> list[int]:
        return self.content_ids(segment.text) if segment.is_content else self.scaffold_ids(segment.text)

    def _ids_behind_text(self, segment: Segment) -> list[int]:
        """Without the space that SentencePiece puts before the first word: it is not the first here."""
        anchor = self.scaffold_ids(ANCHOR)
        if segment.is_content:
            ids = self.content_ids(ANCHOR + segment.text.strip(), strip=False)
        else:
            ids = self.scaffold_ids(ANCHOR + segment.text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._ids_alone(segment)

    def pad(self, prompts: Sequence[TokenIds]) -> Batch:
        """Pad on the right to the longest."""
        width = max(len(prompt.ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        pool_mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            length = len(prompt.ids)
            input_ids[row, :length] = torch.tensor(prompt.ids)
            attention_mask[row, :length] = True
            pool_mask[row, :length] = torch.tensor(prompt.is_pooled)
        return Batch(input_ids, attention_mask, pool_mask)


def _without_control(tokenizer: PreTrainedTokenizerBase, markers: Sequence[AddedToken]) -> Callable[[str], list[int]]:
    """A tokenizer of its own for content, that takes every marker for plain text.

    It must be another one: whether control tokens are split is a switch on the tokenizer itself, and a thread that
    flips it would change what the others see.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        copied = copy.deepcopy(tokenizer)
        return lambda text: copied(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
    backend = _beside(backend)
    backend.add_special_tokens([AddedToken(marker.content, special=True) for marker in markers])
    backend.encode_special_tokens = True
    return lambda text: backend.encode(text, add_special_tokens=False).ids


def _beside(backend: Tokenizer) -> Tokenizer:
    """Another tokenizer that makes the same tokens, with no padding and no truncation.

    It has switches and added tokens of its own and shares the vocabulary, a copy of which takes 16 MB and a tenth of a
    second for 49,152 tokens.
    """
    other = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (shared := getattr(backend, part)) is not None:
            setattr(other, part, shared)
    added = backend.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (other.add_special_tokens if token.special else other.add_tokens)([token])
    assert other.get_added_tokens_decoder() == added, "tokens that are added in order have the same numbers"
    return other


def length_sorted_batches(lengths: Sequence[int], batch_size: int, token_budget: int) -> Iterator[list[int]]:
    """Row numbers of each batch: neighbours in length together, longest first, so that little is padding.

    A batch holds at most `batch_size` rows and `token_budget` tokens, padding included, but always one row.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > token_budget):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def chunk_documents(
    documents: Iterable[str | Document],
    count_tokens: Callable[[str], int],
    chunk_size: int,
    overlap: int = 0,
) -> Iterator[Document]:
    """Cut documents into chunks of at most `chunk_size` content tokens, at the best boundary there is.

    Nothing is dropped but white space between chunks. A document that fits passes through unchanged. A chunk is called
    ``<id>#<number>`` and its metadata gain ``source`` (the document's id), ``chunk``, ``start`` and ``end``
    (characters). The title goes with each chunk and is counted.

    Args:
        documents: texts or documents.
        count_tokens: tokens of a text, as the model counts them (`GritModel.count_tokens`).
        chunk_size: most content tokens of one chunk.
        overlap: tokens that neighbours share, less than `chunk_size`.

    Raises:
        ValueError: `chunk_size` leaves no room, or a document has no text.
    """
    if isinstance(documents, str | Document):
        raise ValueError("expected a list of documents, got one; put it into a list")
    if not 0 <= overlap < chunk_size:
        raise ValueError(f"overlap must be from 0 to chunk_size - 1 = {chunk_size - 1}, got {overlap}")
    for item in documents:
        document = as_document(item)
        if not check_text(document.text, f"document {document.called}").strip():
            raise ValueError(f"document {document.called} is empty; leave it out")
        yield from _chunks(document, count_tokens, chunk_size, overlap)


def _chunks(
    document: Document, count_tokens: Callable[[str], int], chunk_size: int, overlap: int
) -> Iterator[Document]:
    # a text of n bytes has at most n tokens: most short texts need no counting at all
    window = max(WINDOW, 16 * chunk_size)
    is_short = len(document.text) <= window
    if is_short and (len(document.content.encode()) <= chunk_size or count_tokens(document.content) <= chunk_size):
        yield document
        return
    # with a letter behind the title: its line break alone would be stripped, and not counted
    room = chunk_size - (count_tokens(document.title.strip() + "\nx") if document.title else 0)
    if room <= overlap:
        raise ValueError(
            f"document {document.called}: its title leaves {room} of {chunk_size} tokens for text, not more than the "
            f"overlap of {overlap}; shorten the title or raise chunk_size"
        )
    splitter = TextSplitter.from_callback(count_tokens, room, overlap)
    number = 0
    for start, chunk in _cut(splitter, document.text, window):
        if not chunk.strip():
            continue
        if count_tokens(chunk) > room:
            raise ValueError(
                f"document {document.called}: {chunk[:20]!r} alone has {count_tokens(chunk)} tokens; raise chunk_size"
            )
        where = {"source": document.id, "chunk": number, "start": start, "end": start + len(chunk)}
        yield replace(document, text=chunk, id=f"{document.id}#{number}", metadata={**document.metadata, **where})
        number += 1
    logger.info("document %s: cut into %d chunks of at most %d tokens", document.called, number, chunk_size)


def _cut(splitter: TextSplitter, text: str, window: int) -> Iterator[tuple[int, str]]:
    """Chunks and where they start. A long text is cut window by window; of each, the last chunk is where the next
    window begins, since what follows may belong to it."""
    begin = 0
    size = window
    while True:
        chunks = splitter.chunk_indices(text[begin : begin + size])
        if begin + size >= len(text):
            yield from ((begin + start, chunk) for start, chunk in chunks)
            return
        if len(chunks) < 2:  # nothing but white space, or one word without an end
            size *= 2
            continue
        yield from ((begin + start, chunk) for start, chunk in chunks[:-1])
        begin += chunks[-1][0]
        size = window
