"""A filter selects what the same filter, written in plain Python, selects."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.index.filters import compile_filter
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.entries import Entry
from gritrag.records import Document

NAMES = ("year", "a.b", 'quo"te', "it's", "with blank", "back\\slash", "é", "")
MISSING = object()

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -1.5, 2.0, 0.1, 2**53 + 1, 2**70]),
    st.sampled_from(["", "a", "b", "1", "true", "it's", 'q"', "%", "nul\0byte", "é"]),
)
ordered = scalars.filter(lambda value: value is not None)
values = st.one_of(scalars, st.lists(scalars, max_size=3))
metadata = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)
operators = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), scalars),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ordered),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3)),
    st.tuples(st.just("$exists"), st.booleans()),
).map(lambda pair: {pair[0]: pair[1]})
conditions = st.one_of(scalars, operators, operators.map(lambda each: {"$not": each}))
filters = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), conditions, max_size=2),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("$not"), inner),
    ).map(lambda pair: {pair[0]: pair[1]}),
    max_leaves=5,
)


def bracket(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, int | float) else type(value).__name__


def holds(operator: str, stored: Any, operand: Any) -> bool:
    """One operator against what a document has under the name, by MongoDB's rules."""
    match operator:
        case "$ne":
            return not holds("$eq", stored, operand)
        case "$in":
            return any(holds("$eq", stored, each) for each in operand)
        case "$nin":
            return not holds("$in", stored, operand)
        case "$exists":
            return (stored is not MISSING) == operand
        case "$not":
            return not all(holds(name, stored, value) for name, value in operand.items())
    if stored is MISSING:
        return operator == "$eq" and operand is None
    compare = {"$eq": "__eq__", "$gt": "__gt__", "$gte": "__ge__", "$lt": "__lt__", "$lte": "__le__"}[operator]
    return any(
        bracket(each) == bracket(operand) and getattr(each, compare)(operand) is True
        if not isinstance(each, int) or isinstance(operand, int)
        else getattr(float(each), compare)(operand) is True and bracket(each) == bracket(operand)
        for each in (stored if isinstance(stored, list) else [stored])
    )


def selects(where: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    for name, condition in where.items():
        if name == "$and":
            good = all(selects(part, facts) for part in condition)
        elif name in ("$or", "$nor"):
            good = (name == "$or") == any(selects(part, facts) for part in condition)
        elif name == "$not":
            good = not selects(condition, facts)
        else:
            operators_ = condition if isinstance(condition, dict) else {"$eq": condition}
            good = all(holds(operator, facts.get(name, MISSING), value) for operator, value in operators_.items())
        if not good:
            return False
    return True


def fill(catalog: Catalog, corpus: list[Mapping[str, Any]]) -> None:
    with catalog.transaction():
        catalog.remove(catalog.rows())
        catalog.put(
            Entry(Document("text", id=str(i), metadata=facts), np.zeros(1), np.zeros(1), "key")
            for i, facts in enumerate(corpus)
        )


def selected(catalog: Catalog, where: Mapping[str, Any]) -> set[str]:
    documents = [catalog.document(row) for row in catalog.rows(compile_filter(where)).tolist()]
    return {document.id for document in documents if document is not None}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(tmp_path_factory.mktemp("filters") / "catalog.sqlite", "rwc")


@settings(max_examples=300, deadline=None)
@given(corpus=st.lists(metadata, min_size=1, max_size=6), where=filters)
def test_sql_and_plain_python_select_the_same(catalog: Catalog, corpus: list, where: dict) -> None:
    fill(catalog, corpus)
    assert selected(catalog, where) == {str(i) for i, facts in enumerate(corpus) if selects(where, facts)}


def test_a_filter_that_was_asked_before_sees_what_changed_since(catalog: Catalog) -> None:
    """Also what another connection changed, and not what was undone."""
    fill(catalog, [{"n": 1}, {"n": 2}])
    assert selected(catalog, {"n": 1}) == {"0"} == selected(catalog, {"n": 1})

    def stopped() -> None:
        with catalog.transaction():
            catalog.put([Entry(Document("text", id="new", metadata={"n": 1}), np.zeros(1), np.zeros(1), "key")])
            assert selected(catalog, {"n": 1}) == {"0", "new"}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    with catalog.transaction():
        catalog.remove(catalog.rows(compile_filter({"n": 2})))  # as many generations as the one that was undone
    assert len(catalog.rows(compile_filter({"n": 1}))) == 1, "no row that nobody has"
    reader = Catalog(catalog.path, "r")
    assert selected(reader, {"n": 3}) == set()
    with catalog.transaction():
        catalog.put([Entry(Document("text", id="3", metadata={"n": 3}), np.zeros(1), np.zeros(1), "key")])
    assert selected(reader, {"n": 3}) == {"3"}
    reader.close()


def test_few_filters_are_remembered(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritrag.index.storage.catalog.KEPT_ROWS", 5000)
    fill(catalog, [{"n": 1}])
    for number in range(50):
        selected(catalog, {"n": number})
    assert len(catalog._filtered) == 5


def test_dots_reach_into_nested_objects_and_lists_of_objects(catalog: Catalog) -> None:
    fill(catalog, [{"author": {"name": "Ada"}}, {"author": [{"name": "Bob"}, {"name": "Ada"}]}, {"author": "Ada"}])
    assert selected(catalog, {"author.name": "Ada"}) == {"0", "1"}
    assert selected(catalog, {"author": "Ada"}) == {"2"}
    assert selected(catalog, {"author.name": None}) == {"2"}
    assert selected(catalog, {"author": None}) == set()


def test_a_field_that_is_null_exists(catalog: Catalog) -> None:
    fill(catalog, [{"n": None}, {"n": []}, {"n": {"m": 1}}, {"n": 0}, {}])
    assert selected(catalog, {"n": {"$exists": True}}) == {"0", "1", "2", "3"}
    assert selected(catalog, {"n": {"$exists": False}}) == {"4"}
    assert selected(catalog, {"n.m": {"$exists": True}}) == {"2"}
    assert selected(catalog, {"n": None}) == {"0", "4"}


def test_many_values_are_one_query(catalog: Catalog) -> None:
    """As many as no statement takes as parameters, of all kinds, each compared as it is alone."""
    kept = [0.1, 1 / 3, -5e-324, 1e308, 7, 7.0, 2**63 - 1, -(2**63), 2**70, "a", "é'\"\\", "nul\0byte", "", True, None]
    fill(catalog, [{"n": value} for value in kept] + [{"n": value} for value in (0.2, "nul", False, 8, 1)])
    others = [value for i in range(2, 34_000) for value in (i + 1000, i + 0.25, f"text {i}")]
    assert len(others) > 100_000
    wanted = {str(number) for number in range(len(kept))}
    assert selected(catalog, {"n": {"$in": [*others, *kept]}}) == wanted
    assert selected(catalog, {"n": {"$nin": [*others, *kept]}}) == {str(len(kept) + number) for number in range(5)}


def test_many_alternatives_are_one_query_and_too_many_are_refused(catalog: Catalog) -> None:
    fill(catalog, [{"n": i, "m": -i} for i in range(10)])
    assert len(selected(catalog, {"$or": [{"n": i, "m": -i} for i in range(5, 1005)]})) == 5
    assert len(selected(catalog, {"$nor": [{"n": i} for i in range(5, 1005)]})) == 5
    assert len(selected(catalog, {"$and": [{"n": {"$ne": i}} for i in range(5, 1005)]})) == 5
    with pytest.raises(ValueError, match=r"4001 conditions.*4000"):
        compile_filter({"$or": [{"n": i} for i in range(4001)]})


def test_deep_and_wide_at_once(catalog: Catalog) -> None:
    fill(catalog, [{"n": i} for i in range(3)])
    where: dict[str, Any] = {"n": 2}
    for level in range(9):
        where = {"$or": [where, *({"n": 100 + i} for i in range(400))] if level % 2 else [where]}
        where = {"$and": [where, *({"n": {"$nin": [100 + i]}} for i in range(40))]}
    assert selected(catalog, where) == {"2"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"year": {"$regex": "x"}}, r"\$regex.*known operators: \$eq, \$ne, \$gt, .*\$not"),
        ({"$xor": []}, r"\$xor.*\$exists, .*\$and, \$or, \$nor"),
        ({"$nor": []}, r"\$nor .*non-empty list"),
        ({"year": {"$exists": 1}}, r"\$exists on 'year' needs true or false, not 1"),
        ({"year": {"nested": 1}}, "'nested'"),
        ({"$and": []}, "non-empty list"),
        ({"$or": {"a": 1}}, "non-empty list"),
        ({"year": {}}, "'year' is an empty mapping"),
        ({"year": {"$in": "abc"}}, "list of values"),
        ({"year": {"$gt": None}}, "not None"),
        ({"year": [1, 2]}, r"\$in"),
        ({1: 2}, "field name"),
        ("year > 3", "must be a mapping"),
        ({"year": 10**400}, "float64"),
    ],
)
def test_a_malformed_filter_says_what_is_wrong(where: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_filter(where)


def test_values_and_names_never_become_sql(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite", "rwc")
    attack = "x') OR 1=1; DROP TABLE documents; --"
    fill(catalog, [{attack: attack}, {"other": 1}])
    assert selected(catalog, {attack: attack}) == {"0"}
    assert selected(catalog, {"other": attack}) == set()
    assert catalog.document_totals()[0] == 2
    catalog.close()
    assert sqlite3.connect(tmp_path / "catalog.sqlite").execute("SELECT count(*) FROM documents").fetchone() == (2,)
