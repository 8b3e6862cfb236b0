"""A forecast: tokens, bytes and minutes of reading files into an index, from a sample; and how to store states."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gritrag.capacity import CATALOG_BYTES, TOKENS, size_of
from gritrag.chunks import Cutting, file_size
from gritrag.documents.sources import Source, read_source
from gritrag.index.protocol import Reader
from gritrag.index.storage.packed import bytes_per_token
from gritrag.records import Document
from gritrag.tokens import chunk_documents

SHARE = 0.5
"""Part of the free disk that states may take without being asked for."""
HEADER_BYTES = 512
SAMPLE_FILES, SAMPLE_CHARACTERS, SAMPLE_SECONDS = 16, 20_000, 5.0
TIMED, TIMED_CHUNKS = 20_000, 8
"""Fewer tokens than this are not worth the seconds that timing the model on so many chunks takes."""


class Storage(NamedTuple):
    """How states are stored: a codec, and most bytes of them; None for no limit."""

    codec: str
    quota: int | None = None


class Forecast(NamedTuple):
    """What reading files into an index will take, from a sample of them.

    `seconds` is 0 where that is too little to be measured.
    """

    files: int
    documents: int
    tokens: int
    text_and_vector_bytes: int
    state_bytes: int
    seconds: float
    codec: str
    quota: int | None
    free: int

    @property
    def bytes(self) -> int:
        """On disk, of all kinds."""
        return self.text_and_vector_bytes + self.state_bytes

    def __str__(self) -> str:
        states = f"{size_of(self.state_bytes)} of states ({self.codec})" if self.state_bytes else "no states"
        hot = f", those of the hot part under a quota of {size_of(self.quota)}" if self.quota is not None else ""
        minutes = f"{self.seconds / 60:,.0f} minutes" if self.seconds >= 90 else f"{self.seconds:.0f} seconds"
        time_ = f"; {minutes} at {self.tokens / self.seconds:,.0f} tokens/s" if self.seconds else ""
        files = f"{self.files:,} file{'s' * (self.files != 1)}"
        documents = f"{self.documents:,} document{'s' * (self.documents != 1)}"
        return (
            f"{files}: about {self.tokens:,} tokens in {documents}; "
            f"{size_of(self.text_and_vector_bytes)} of text and vectors, {states}{hot}, of "
            f"{size_of(self.free)} that are free{time_}"
        )


def free_bytes(folder: Path) -> int:
    """Free on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent if folder != folder.parent else Path.cwd()
    return shutil.disk_usage(folder).free


def choose_storage(tokens: int, elements: int, free: int) -> Storage:
    """The codec with which all states fit into half of the free disk: int8, which answers as bf16 does, else int4.

    Where neither fits, int4 with that half as a quota: the states that are asked for are stored, the others are not.
    """
    share = int(SHARE * free)
    for codec in ("int8", "int4"):
        if tokens * bytes_per_token(codec, elements) <= share:
            return Storage(codec)
    return Storage("int4", share)


def forecast(
    model: Reader,
    sources: Sequence[Source],
    count_tokens: Callable[[str], int],
    cutting: Cutting,
    free: int,
    storage: Storage | None = None,
) -> Forecast:
    """Read and cut a sample of the files, and time the model on a few chunks if there is much to read.

    Args:
        model: reads the documents.
        sources: the files.
        count_tokens: of the model.
        cutting: how they are cut.
        free: bytes on the disk.
        storage: how states are stored; chosen by `choose_storage` where None.
    """
    total = sum(map(file_size, sources))
    chunks, tokens_per_byte = _sample(sources, total, count_tokens, cutting)
    tokens = round(tokens_per_byte * total)
    sampled = sum(count_tokens(chunk.content) for chunk in chunks)
    documents = max(len(chunks), round(tokens * len(chunks) / max(1, sampled)))
    elements = model.state_elements_per_token
    storage = storage or choose_storage(tokens, elements, free)
    states = 0.0
    if storage.codec != "none":
        states = tokens * bytes_per_token(storage.codec, elements) + documents * HEADER_BYTES
    seconds = 0.0
    if tokens >= TIMED and chunks:
        few = chunks[:: -(-len(chunks) // TIMED_CHUNKS)]
        read = model.encode_document if storage.codec == "none" else model.read_documents
        read(few[:1])  # the first call pays for warming up
        began = time.perf_counter()
        read(few)
        seconds = (time.perf_counter() - began) * tokens / sum(count_tokens(chunk.content) for chunk in few)
    return Forecast(
        files=len(sources),
        documents=documents,
        tokens=tokens,
        text_and_vector_bytes=round(documents * 8 * model.dim + tokens * CATALOG_BYTES / TOKENS),
        state_bytes=round(states if storage.quota is None else min(states, storage.quota)),
        seconds=seconds,
        codec=storage.codec,
        quota=storage.quota,
        free=free,
    )


def _sample(
    sources: Sequence[Source], total: int, count_tokens: Callable[[str], int], cutting: Cutting
) -> tuple[list[Document], float]:
    """Chunks of files that lie evenly among all bytes, and tokens for a byte of a file."""
    wanted = [total * (2 * number + 1) // (2 * SAMPLE_FILES) for number in range(SAMPLE_FILES)]
    chosen, before = [], 0
    for source in sources:
        size = file_size(source)
        if any(before <= byte < before + size for byte in wanted):
            chosen.append((source, size))
        before += size
    chunks: list[Document] = []
    tokens = sizes = 0.0
    began = time.monotonic()
    for source, size in chosen:
        sizes += size
        try:
            documents = list(read_source(source, options=cutting.text))
            some, characters = _some(documents)
            cut = list(chunk_documents(some, count_tokens, cutting.chunk_size, cutting.overlap))
        except ValueError:
            continue  # a file that cannot be read has no tokens
        chunks += cut
        tokens += sum(count_tokens(chunk.content) for chunk in cut) * sum(len(d.text) for d in documents) / characters
        if time.monotonic() - began > SAMPLE_SECONDS:
            break
    return chunks, tokens / max(1.0, sizes)


def _some(documents: Sequence[Document]) -> tuple[list[Document], int]:
    """The first documents, or the beginning of the first, and how many characters that is."""
    some: list[Document] = []
    characters = 0
    for document in documents:
        some.append(replace(document, text=document.text[: SAMPLE_CHARACTERS - characters]))
        characters += len(some[-1].text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return [document for document in some if document.text.strip()], characters
