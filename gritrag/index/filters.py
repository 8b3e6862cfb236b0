"""A filter: a MongoDB-like `where` compiled to parametrised SQL over the catalog's `fields` table.

``{"year": {"$gte": 2000, "$lt": 2010}, "lang": "en"}``: several fields are joined by *and*, a plain value means `$eq`.
As in MongoDB a dot reaches into nested objects, an array matches when one of its elements does, values of another type
never match (so ``{"$gt": 5}`` ignores strings), and a missing field matches `$ne`, `$nin` and None.
Every value and every field name travels as a parameter, so quotes, dots and spaces in names are only characters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["compile_filter", "metadata_fields"]

Compiled = tuple[str, list[Any]]
"""A SQL condition over `documents` that is never NULL, and its parameters."""

ORDERINGS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# SQLite refuses expressions nested deeper than 1000 and statements with more than 32766 parameters, and 25 levels of a
# filter can fill the stack of its parser.
MAX_CONDITIONS = 400
MAX_DEPTH = 20
MAX_PARAMETERS = 30_000


def metadata_fields(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """`(name, type, value)` rows that make `metadata` searchable: nested names dotted, arrays by element."""
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise ValueError(f"metadata names must be strings, not {key!r}")
        name = prefix + key
        if isinstance(value, Mapping):
            yield name, "object", None
            yield from metadata_fields(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, "array", None
            for element in value:
                if isinstance(element, Mapping):
                    yield from metadata_fields(element, f"{name}.")
                elif not isinstance(element, list | tuple):
                    yield name, *_typed(element)
        else:
            yield name, *_typed(value)


def compile_filter(where: Mapping[str, Any] | None) -> Compiled:
    """The SQL condition for `where`; None and ``{}`` match every document.

    Raises:
        ValueError: an unknown operator (the message lists the known ones), a malformed `where`, or one too large.
    """
    if where is None:
        return "1", []
    _check_depth(where)
    sql, parameters = _all_of(where)
    conditions = sql.count("SELECT")
    if conditions > MAX_CONDITIONS or len(parameters) > MAX_PARAMETERS:
        raise ValueError(
            f"the filter has {conditions} conditions and {len(parameters)} values; at most {MAX_CONDITIONS} and "
            f"{MAX_PARAMETERS} fit one query: use $in for many values, or several queries"
        )
    return sql, parameters


def _check_depth(where: object) -> None:
    """Level by level: a walk that calls itself would end in a RecursionError where this has to say something better."""
    level = [where]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"the filter is nested more than {MAX_DEPTH} levels deep: give a flatter one")


def _inside(part: object) -> Iterator[object]:
    """The filters and conditions that are written inside another."""
    for value in part.values() if isinstance(part, Mapping) else ():
        yield from (
            each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, Mapping)
        )


def _all_of(where: object) -> Compiled:
    if not isinstance(where, Mapping):
        raise ValueError(f"a filter must be a mapping such as {{'year': {{'$gte': 2000}}}}, not {where!r}")
    return _join("AND", [_entry(name, condition) for name, condition in where.items()])


def _entry(name: object, condition: Any) -> Compiled:
    if name in ("$and", "$or"):
        if not isinstance(condition, Sequence) or isinstance(condition, str) or not condition:
            raise ValueError(f"{name} needs a non-empty list of filters, not {condition!r}")
        return _join(str(name)[1:].upper(), [_all_of(part) for part in condition])
    if name == "$not":
        return _negate(_all_of(condition))
    if not isinstance(name, str):
        raise ValueError(f"a field name must be a string, not {name!r}")
    if name.startswith("$"):
        raise _unknown(name)
    return _field(name, condition)


def _field(name: str, condition: Any) -> Compiled:
    """One field against a plain value or a mapping of operators to operands."""
    if not isinstance(condition, Mapping):
        return _equals(name, condition)
    if not condition:
        raise ValueError(f"the filter on {name!r} is an empty mapping: give a value or an operator, as in {{'$eq': 1}}")
    parts = []
    for operator, operand in condition.items():
        if operator not in OPERATORS:
            raise _unknown(operator)
        parts.append(OPERATORS[operator](name, operand))
    return _join("AND", parts)


def _equals(name: str, value: Any) -> Compiled:
    return _among(name, [value])


def _among(name: str, values: Any) -> Compiled:
    if not isinstance(values, Sequence | set | frozenset) or isinstance(values, str | bytes):
        raise ValueError(f"$in and $nin on {name!r} need a list of values, not {values!r}")
    by_type: dict[str, list[Any]] = {}
    for value in values:
        kind, stored = _typed(value)
        by_type.setdefault(kind, []).append(stored)
    parts: list[Compiled] = []
    if by_type.pop("null", None):
        parts += [_exists(name, "type = 'null'", []), _negate(_exists(name, "1", []))]
    for kind, stored_values in by_type.items():
        marks = ", ".join("?" * len(stored_values))
        parts.append(_exists(name, f"type = '{kind}' AND value IN ({marks})", stored_values))
    return _join("OR", parts) if parts else ("0", [])


def _ordered(operator: str) -> Callable[[str, Any], Compiled]:
    def compile_ordering(name: str, value: Any) -> Compiled:
        kind, stored = _typed(value)
        if kind == "null":
            raise ValueError(f"{operator} on {name!r} needs a number, a string or a boolean, not None")
        return _exists(name, f"type = '{kind}' AND value {ORDERINGS[operator]} ?", [stored])

    return compile_ordering


OPERATORS: dict[str, Callable[[str, Any], Compiled]] = {
    "$eq": _equals,
    "$ne": lambda name, value: _negate(_equals(name, value)),
    **{operator: _ordered(operator) for operator in ORDERINGS},
    "$in": _among,
    "$nin": lambda name, values: _negate(_among(name, values)),
    "$not": lambda name, condition: _negate(_field(name, condition)),
}


def _typed(value: Any) -> tuple[str, Any]:
    """Type bracket and SQLite value: a boolean is no number, and 1 equals 1.0."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "bool", int(value)
    if isinstance(value, int):
        return "number", value if -(2**63) <= value < 2**63 else _wide(value)
    if isinstance(value, float):
        return "number", value
    if isinstance(value, str):
        return "text", value
    raise ValueError(
        f"metadata is compared with strings, numbers, booleans or None, not {value!r}; use $in for several values"
    )


def _wide(value: int) -> float:
    """SQLite's integers have 64 bits; wider ones are compared as float64."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number in metadata or filter is beyond float64 (1.8e308): store it as a string") from None


def _exists(name: str, condition: str, parameters: Sequence[Any]) -> Compiled:
    return f"documents.row IN (SELECT row FROM fields WHERE name = ? AND {condition})", [name, *parameters]


def _negate(compiled: Compiled) -> Compiled:
    return f"NOT ({compiled[0]})", compiled[1]


def _join(word: str, parts: Sequence[Compiled]) -> Compiled:
    if not parts:
        return "1", []
    return f" {word} ".join(f"({sql})" for sql, _ in parts), [value for _, values in parts for value in values]


def _unknown(operator: object) -> ValueError:
    known = ", ".join([*OPERATORS, "$and", "$or"])
    return ValueError(
        f"unknown filter operator {operator!r}; known operators: {known}. A nested field is named with a dot"
    )
