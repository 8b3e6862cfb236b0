"""Items of a response, as `/v1/responses` tells of them: the search, and the message that answers."""

from collections.abc import Iterator, Sequence
from typing import Any

from gritrag.records import Answer, Hit
from gritrag.serve.http import new_id
from gritrag.serve.store_bodies import file_of

Named = tuple[str, dict[str, Any]]
"""An event: its name, and what it holds."""


class FileSearch:
    """The search of a response: its item in the output, and the events that tell of it.

    Args:
        query: what is searched for.
        with_results: whether the item has what was found.
    """

    def __init__(self, query: str, with_results: bool) -> None:
        self._with_results, self._place = with_results, {"output_index": 0, "item_id": new_id("fs_")}
        self.item: dict[str, Any] = {"type": "file_search_call", "id": self._place["item_id"], "status": "in_progress"}
        self.item |= {"queries": [query], "results": None}

    def begun(self) -> Iterator[Named]:
        yield "response.output_item.added", {"output_index": 0, "item": self.item}
        for stage in ("in_progress", "searching"):
            yield f"response.file_search_call.{stage}", self._place

    def done(self, hits: Sequence[Hit]) -> Iterator[Named]:
        self.item |= {"status": "completed", "results": _results(hits) if self._with_results else None}
        yield "response.file_search_call.completed", self._place
        yield "response.output_item.done", {"output_index": 0, "item": self.item}


class Message:
    """The answer of a response: its item in the output, and the events that tell of it.

    Args:
        number: of the item in the output.
    """

    def __init__(self, number: int) -> None:
        self.item: dict[str, Any] = {"type": "message", "id": new_id("msg_"), "status": "in_progress"}
        self.item |= {"role": "assistant", "content": []}
        self.text, self._logprobs = "", list[dict[str, Any]]()
        self._number = number
        self._place = {"item_id": self.item["id"], "output_index": number, "content_index": 0}

    def begun(self) -> Iterator[Named]:
        yield "response.output_item.added", {"output_index": self._number, "item": self.item}
        yield "response.content_part.added", {**self._place, "part": _part("", [], None)}

    def grown(self, text: str, logprobs: list[dict[str, Any]]) -> Named:
        self.text, self._logprobs = self.text + text, self._logprobs + logprobs
        return "response.output_text.delta", {**self._place, "delta": text, "logprobs": logprobs}

    def done(self, answer: Answer | None, is_whole: bool) -> Iterator[Named]:
        part = _part(self.text, self._logprobs, answer)
        yield "response.output_text.done", {**self._place, "text": self.text, "logprobs": self._logprobs}
        for number, annotation in enumerate(part["annotations"]):
            added = {**self._place, "annotation_index": number, "annotation": annotation}
            yield "response.output_text.annotation.added", added
        yield "response.content_part.done", {**self._place, "part": part}
        self.item = {**self.item, "status": "completed" if is_whole else "incomplete", "content": [part]}
        yield "response.output_item.done", {"output_index": self._number, "item": self.item}


def _results(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """What a search found, as a `file_search_call` tells it."""
    found = []
    for hit in hits:
        id, name = file_of(hit.document)
        row = {"file_id": id, "filename": name, "score": hit.score, "attributes": dict(hit.document.metadata)}
        found.append({**row, "text": hit.document.content})
    return found


def _part(text: str, logprobs: list[dict[str, Any]], answer: Answer | None) -> dict[str, Any]:
    """The text of a message, with the files that its documents came from."""
    annotations: list[dict[str, Any]] = []
    cited = {citation.id for citation in answer.citations} if answer is not None else set()
    for hit in answer.hits if answer is not None else ():
        if hit.document.id in cited:
            id, name = file_of(hit.document)
            annotations.append({"type": "file_citation", "index": len(text), "file_id": id, "filename": name})
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}
