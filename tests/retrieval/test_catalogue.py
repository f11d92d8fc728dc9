"""Ids of the catalogue, and items of an index that was built before items had a first time."""

import pyarrow as pa
import pytest

from mtmh.index.item_store import StoredItems
from mtmh.retrieval.catalogue import Catalogue
from mtmh.serving.current_index import AnswerCache

IDS = [17, -5, 2**53 + 1, 2**63 - 1, -(2**63)]
ITEMS = pa.table(
    {
        "item_id": IDS,
        "text": ["a", "b", None, "d", "e"],
        "topic_l1": ["x", "y", None, "x", "y"],
        "topic_l2": ["x", "y", None, "x", "y"],
        "train_count": [5, 4, 3, 2, 1],
    }
)


def test_every_64_bit_id_is_found_as_a_number_and_as_digits() -> None:
    catalogue = Catalogue(StoredItems.of(ITEMS))
    assert catalogue.find(IDS, "item").tolist() == [0, 1, 2, 3, 4]
    assert catalogue.find(list(map(str, IDS)), "item").tolist() == [0, 1, 2, 3, 4]
    assert catalogue.ids(catalogue.find([str(IDS[2]), 2**53], "item")[:1]) == [2**53 + 1]
    assert catalogue.find([2**53], "item").tolist() == [-1]


@pytest.mark.parametrize("item", ["", "x", "--5", "5-", "1.0", " 5", str(2**63), str(-(2**63) - 1), "9" * 5000, True])
def test_other_ids_are_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r"trigger .*: item ids of this index are of type int64"):
        Catalogue(StoredItems.of(ITEMS)).find([item], "trigger")


def test_items_without_a_first_time_take_fresh_ones() -> None:
    fresh = pa.table({"item_id": [900], "text": ["new"], "first_seen": pa.array([70], pa.int64())})
    catalogue = Catalogue(StoredItems.of(ITEMS)).with_added(fresh)
    assert catalogue.seen_since(71).tolist() == [True] * 5 + [False]
    assert catalogue.answers(["first_seen"]).column("first_seen").to_pylist() == [None] * 5 + [70]
    assert catalogue.with_removed(catalogue.find([17], "item")).answers(["item_id"]).column("item_id").to_pylist() == [
        *IDS[1:],
        900,
    ]


def test_the_cache_keeps_what_was_used_last_and_nothing_too_large() -> None:
    cache = AnswerCache(30)
    for question in ("a", "b", "c"):
        cache.put(question, bytes(9))
    assert cache.get("a") == bytes(9)
    cache.put("d", bytes(30))
    assert cache.get("d") is None
    cache.put("e", bytes(9))
    assert [cache.get(question) is not None for question in "abce"] == [True, False, True, True]
