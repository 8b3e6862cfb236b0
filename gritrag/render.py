"""Results as a terminal shows them: one line per hit, field or answer, or JSON. No heavy import."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gritrag.documents.sections import place_in_words
from gritrag.records import Answer, Citation, Document, Hit

SNIPPET = 80
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that move the cursor, clear the screen or ring: no document is to drive the terminal of its reader."""


def as_json(value: Any) -> str:
    """One line of JSON, text left as it is where the standard output can hold all of it."""
    return json.dumps(plain(value), ensure_ascii=not holds_all(sys.stdout))


def holds_all(stream: Any) -> bool:
    """Whether every character can be written to it, as to UTF-8; not as to latin-1, or to a file on Windows."""
    return str(getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def as_lines(record: Any) -> str:
    """One line per field of a record, those of records inside it too: ``bytes.states  924``."""
    return "\n".join(f"{name:<24} {field}" for name, field in _fields("", plain(record)))


def harmless(text: str) -> str:
    """Text without control characters but tabs and line breaks."""
    return CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def hit_line(hit: Hit) -> str:
    """Rank, score, id and how the text begins."""
    return f"{hit.rank:>3}  {hit.score:.4f}  {_id(hit.document.id)}  {_snippet(hit.document.text)}"


def document_line(document: Document) -> str:
    """Id, title if there is one, and how the text begins."""
    return f"{_id(document.id)}  {_snippet(f'{document.title}: {document.text}' if document.title else document.text)}"


def _snippet(text: str) -> str:
    line = harmless(" ".join(text.split()))
    return line if len(line) <= SNIPPET else f"{line[:SNIPPET]}..."


def _id(id: str) -> str:
    """On one line."""
    return harmless(id.replace("\n", "\ufffd"))


def footer(answer: Answer) -> str:
    """What stands below an answer: its sources, what was reused, and the times."""
    places = {hit.document.id: place_in_words(hit.document.metadata) for hit in answer.hits}
    cited = ", ".join(_cited(each, places.get(each.id, "")) for each in answer.citations) or "no documents"
    usage, times = answer.usage, answer.timings
    reused = (
        f"{usage.cached_tokens} of {usage.prompt_tokens} tokens reused, {'exact' if answer.exact else 'approximate'}"
    )
    doubt = "" if answer.unanswerable is None else f"; {answer.unanswerable:.0%} likely that they do not say"
    return f"[{cited}{doubt}; {reused}; first token {times.first_token:.3f} s, all {times.total:.3f} s]"


def _cited(citation: Citation, place: str) -> str:
    said = harmless(", ".join(part for part in (citation.title, place) if part))
    return f"{_id(citation.id)} ({said})" if said else _id(citation.id)


def plain(value: Any) -> Any:
    """Records as JSON holds them: named fields become objects, paths text."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _fields(prefix: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, field in record.items():
        if isinstance(field, Mapping):
            yield from _fields(f"{prefix}{name}.", field)
        elif isinstance(field, list):
            yield f"{prefix}{name}", "; ".join(map(str, field)) or "none"
        else:
            yield f"{prefix}{name}", f"{field:.4g}" if isinstance(field, float) else str(field)
