"""Lists a page at a time, as OpenAI's clients ask for them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, Field

from gritrag.serve.errors import ApiError


class Named(Protocol):
    """What a list holds."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)


class Cursor(BaseModel):
    """Which part of a list a client wants: at most `limit` items, behind that of one id or before that of another."""

    limit: int = Field(100, ge=1, le=100)
    after: str | None = None
    before: str | None = None
    order: Literal["asc", "desc"] = "asc"

    def cut(self, items: Sequence[T], is_wanted: Callable[[T], bool] = lambda item: True) -> tuple[list[T], bool]:
        """The wanted of them, and whether there are more on that side.

        Args:
            items: in ascending order. Those that are not wanted may be named by `after` and `before` too: an item may
                have changed since the last page.

        Raises:
            ApiError: 404 for an id that is not in the list; to begin anew would make whoever asks go on for ever.
        """
        found = list(items) if self.order == "asc" else list(items)[::-1]
        start = 0 if self.after is None else _place(found, self.after, "after") + 1
        stop = len(found) if self.before is None else _place(found, self.before, "before")
        left = [item for item in found[start:stop] if is_wanted(item)]
        is_backward = self.before is not None and self.after is None
        page = left[-self.limit :] if is_backward else left[: self.limit]
        return page, len(left) > self.limit


class Page(BaseModel):
    """One page of a list. Each kind of list says what `data` holds."""

    object: Literal["list"] = "list"
    data: list[Any]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, items: Sequence[T], wanted: Cursor, is_wanted: Callable[[T], bool] = lambda item: True) -> Self:
        """What is wanted of all items; see `Cursor.cut`."""
        page, has_more = wanted.cut(items, is_wanted)
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return cls(data=page, has_more=has_more, first_id=first, last_id=last)


def _place(items: Sequence[T], id: str, param: str) -> int:
    for number, item in enumerate(items):
        if item.id == id:
            return number
    raise ApiError(404, f"{param}: this list holds nothing of the id {id!r}; begin it anew", "cursor_not_found", param)
