"""A filter: a MongoDB-like `where` compiled to parametrised SQL over the catalog's `fields` table.

``{"year": {"$gte": 2000, "$lt": 2010}, "lang": "en"}``: several fields are joined by *and*, a plain value means `$eq`.
As in MongoDB a dot reaches into nested objects, an array matches when one of its elements does, values of another type
never match (so ``{"$gt": 5}`` ignores strings), and a missing field matches `$ne`, `$nin` and None. `$exists` tells a
missing field from one that is None.
Every value and every field name travels as a parameter, so quotes, dots and spaces in names are only characters.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["EVERY", "Compiled", "compile_filter", "float_of_bits", "metadata_fields", "rows_query"]


class Compiled(NamedTuple):
    """A SQL condition over `documents` that is never NULL, and its parameters.

    Args:
        needs_field: whether only documents with some metadata can satisfy it.
        alone: where it is one condition on one field, that condition over `fields`; else empty.
    """

    sql: str
    parameters: list[Any]
    needs_field: bool = False
    alone: str = ""


EVERY = Compiled("1", [])
"""Satisfied by every document."""

ORDERINGS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
LOGICAL = ("$and", "$or", "$nor", "$not")
# SQLite refuses expressions nested deeper than 1000, and 25 levels of a filter can fill the stack of its parser.
MAX_CONDITIONS = 4000
MAX_DEPTH = 20
FEW = 100
"""Up to so many values are parameters, more travel as one list in JSON: SQLite takes 32,766 parameters, or fewer."""
MAX_PARAMETERS = 30_000
FLAT = 30
"""Conditions in a row."""


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
        return EVERY
    _check_depth(where)
    compiled = _all_of(where)
    conditions, values = compiled.sql.count("SELECT"), len(compiled.parameters)
    if conditions > MAX_CONDITIONS or values > MAX_PARAMETERS:
        raise ValueError(
            f"the filter has {conditions} conditions on {values} names and values; at most {MAX_CONDITIONS} "
            f"and {MAX_PARAMETERS} fit one query: use $in for many values of one field, or several queries"
        )
    return compiled


def rows_query(where: Compiled) -> str:
    """SQL for the rows of the documents that satisfy a filter, ascending.

    Of a million documents, 10,000 rows that an inner query names are found in the table of documents in 50 ms, and in
    the index over the rows of `fields` in 13; one condition alone needs no inner query, and 3 ms.
    """
    if where.alone:
        return f"SELECT DISTINCT row FROM fields WHERE {where.alone} ORDER BY row"
    table = "fields AS documents" if where.needs_field else "documents"
    return f"SELECT DISTINCT row FROM {table} WHERE {where.sql} ORDER BY row"


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
    if name in ("$and", "$or", "$nor"):
        if not isinstance(condition, Sequence) or isinstance(condition, str) or not condition:
            raise ValueError(f"{name} needs a non-empty list of filters, not {condition!r}")
        joined = _join("AND" if name == "$and" else "OR", [_all_of(part) for part in condition])
        return _negate(joined) if name == "$nor" else joined
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
    by_type: dict[str, dict[Any, None]] = {}
    for value in values:
        kind, stored = _typed(value)
        by_type.setdefault(kind, {})[stored] = None
    parts: list[Compiled] = []
    if by_type.pop("null", None) is not None:
        parts += [_exists(name, "type = 'null'", []), _negate(_exists(name, "1", []))]
    for kind, stored in by_type.items():
        parts += [_exists(name, f"type = '{kind}' AND value IN ({sql})", [*given]) for sql, given in _lists(stored)]
    return _join("OR", parts) if parts else Compiled("0", [], needs_field=True)


def _lists(values: Iterable[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Values as lists of SQL: a few as parameters; many as one list in JSON, which holds whole numbers, texts without
    NUL, and of other numbers the bits."""
    by_way: dict[str, list[Any]] = {"?": [], "value": [], "float_of_bits(value)": []}
    many = len(values := list(values)) > FEW
    for value in values:
        way = "value" if isinstance(value, int) or (isinstance(value, str) and "\0" not in value) else "?"
        way = "float_of_bits(value)" if isinstance(value, float) else way
        by_way[way if many else "?"].append(value)
    if by_way["?"]:
        yield ", ".join("?" * len(by_way["?"])), by_way["?"]
    if by_way["value"]:
        yield "SELECT value FROM json_each(?)", [json.dumps(by_way["value"], ensure_ascii=False)]
    if floats := by_way["float_of_bits(value)"]:
        bits = struct.unpack(f"<{len(floats)}q", struct.pack(f"<{len(floats)}d", *floats))
        yield "SELECT float_of_bits(value) FROM json_each(?)", [json.dumps(bits)]


def float_of_bits(bits: int) -> float:
    """The float64 of those 64 bits. SQLite calls it, whose own way from digits to a number may miss the last bit."""
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number


def _known(name: str, value: Any) -> Compiled:
    if not isinstance(value, bool):
        raise ValueError(f"$exists on {name!r} needs true or false, not {value!r}")
    exists = _exists(name, "1", [])
    return exists if value else _negate(exists)


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
    "$exists": _known,
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
    alone = f"name = ? AND {condition}"
    return Compiled(f"documents.row IN (SELECT row FROM fields WHERE {alone})", [name, *parameters], True, alone)


def _negate(compiled: Compiled) -> Compiled:
    return Compiled(f"NOT ({compiled.sql})", compiled.parameters)


def _join(word: str, parts: Sequence[Compiled]) -> Compiled:
    if not parts:
        return EVERY
    needs_field = (any if word == "AND" else all)(part.needs_field for part in parts)
    return Compiled(
        _balanced(f" {word} ", [f"({part.sql})" for part in parts]),
        [value for part in parts for value in part.parameters],
        needs_field,
        parts[0].alone if len(parts) == 1 else "",
    )


def _balanced(word: str, parts: Sequence[str]) -> str:
    """`a OR b OR c ...` is nested as deep as it is long; in halves it is as deep as its length has binary digits."""
    if len(parts) <= FLAT:
        return word.join(parts)
    middle = len(parts) // 2
    return word.join(f"({_balanced(word, half)})" for half in (parts[:middle], parts[middle:]))


def _unknown(operator: object) -> ValueError:
    known = ", ".join([*OPERATORS, *(each for each in LOGICAL if each not in OPERATORS)])
    return ValueError(
        f"unknown filter operator {operator!r}; known operators: {known}. A nested field is named with a dot"
    )
