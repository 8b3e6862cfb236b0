"""Places of rows among others are those of a search, whether or not a row is missing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gritrag.index.storage.stored_vectors import places_of

numbers = st.lists(st.integers(0, 30), max_size=12)


@given(rows=numbers, wanted=numbers, first=st.integers(0, 20), count=st.integers(0, 10))
def test_places_are_those_of_a_search(rows: list[int], wanted: list[int], first: int, count: int) -> None:
    for some in (np.array(sorted(set(rows)), np.int64), np.arange(first, first + count)):
        sought = np.array(wanted, np.int64)
        assert places_of(some, sought).tolist() == np.searchsorted(some, sought).tolist()
