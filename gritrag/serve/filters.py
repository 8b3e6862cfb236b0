"""Filters: OpenAI's conditions on attributes, as conditions on metadata."""

from typing import Any

from gritrag.serve.errors import bad

COMPARISONS = {
    "eq": "$eq",
    "ne": "$ne",
    "gt": "$gt",
    "gte": "$gte",
    "lt": "$lt",
    "lte": "$lte",
    "in": "$in",
    "nin": "$nin",
}
DEPTH = 8
"""Of conditions within conditions."""


def where_of(filters: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """OpenAI's filters of attributes as a condition on metadata.

    Raises:
        ApiError: 400 for what is no filter.
    """
    kind = filters.get("type")
    if kind in ("and", "or") and isinstance(filters.get("filters"), list) and filters["filters"] and depth < DEPTH:
        inner = [where_of(each, depth + 1) if isinstance(each, dict) else {} for each in filters["filters"]]
        if all(inner):
            return {f"${kind}": inner}
    elif kind in COMPARISONS and isinstance(filters.get("key"), str) and "value" in filters:
        return {filters["key"]: {COMPARISONS[kind]: filters["value"]}}
    raise bad(
        "filters: give {type: eq | ne | gt | gte | lt | lte | in | nin, key, value}, or {type: and | or, filters}",
        "filters",
    )
