"""Vectors of items against plain indexing of the array that they lie in."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mtmh.data.item_vectors import StackedVectors, StoredVectors

ITEMS: list[Any] = [np.array([3, 0, 3, -1]), np.array([[1, 4], [2, 0]], np.int32), slice(1, 4), np.empty(0, np.int64)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_wherever_they_begin_are_those_of_the_array(dtype: type) -> None:
    values: npt.NDArray[Any] = np.random.default_rng(0).random(64).astype(dtype)
    whole = values[:60].reshape(10, 6)
    overlapping = np.lib.stride_tricks.as_strided(values, (59, 6), (values.itemsize, values.itemsize))
    places = np.array([40, 0, 17, 3, 58])
    every_other = values.reshape(8, 8)[:, ::2]
    for items in ITEMS:
        for found, expected in (
            (StoredVectors(whole)[items], whole[items]),
            (StoredVectors(overlapping, places)[items], overlapping[places[items]]),
            (StoredVectors(every_other)[items], every_other[items]),
        ):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_array_equal(StoredVectors(overlapping, places)[np.int64(2)], overlapping[17].astype(np.float32))
    with pytest.raises(IndexError):
        StoredVectors(whole)[np.array([10])]


def test_added_vectors_come_after_those_of_an_array_or_of_a_store() -> None:
    rows = np.random.default_rng(1).random((5, 3)).astype(np.float32)
    for base in (rows[:3], StoredVectors(rows[:3])):
        stacked = StackedVectors(base).with_added(rows[3:])
        for items in ITEMS[1:]:
            np.testing.assert_array_equal(stacked[items], rows[items])
        assert stacked.shape == rows.shape
