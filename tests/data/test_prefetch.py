"""The background thread hands on values and errors, and ends with its consumer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from mtmh.data.prefetch import prefetched


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mtmh-prefetch"]


def endless(made: list[int]) -> Iterator[int]:
    while True:
        made.append(len(made))
        yield made[-1]


@pytest.mark.parametrize("depth", [1, 3])
def test_values_come_in_order_and_the_thread_ends(depth: int) -> None:
    assert list(prefetched(iter(range(50)), depth)) == list(range(50))
    assert not prefetch_threads()


def test_an_error_reaches_the_consumer_after_the_values_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("row group 3 is damaged")

    values = prefetched(source(), 2)
    assert next(values) == 1
    with pytest.raises(ValueError, match="row group 3 is damaged"):
        next(values)
    assert not prefetch_threads()


def test_closing_ends_the_thread_and_bounds_what_was_made() -> None:
    made: list[int] = []
    values = prefetched(endless(made), 2)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    values.close()  # type: ignore[attr-defined]
    assert not prefetch_threads()
    assert len(made) <= 3 + 2 + 1


def test_a_dropped_iterator_ends_the_thread() -> None:
    for value in prefetched(endless([]), 2):
        if value == 2:
            break
    del value
    gc.collect()
    assert not prefetch_threads()
