"""Items of an index in mapped files: opened as they were, damaged, and as an earlier mtmh wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtmh.data import schema
from mtmh.data.id_order import IdOrder
from mtmh.data.ids import raw_ids
from mtmh.index.artifact import IDS, ITEM_FEATURES, ITEM_KEYS, ITEMS, KEY_ITEMS
from mtmh.index.item_store import StoredItems, open_items, write_batches, write_order
from mtmh.retrieval.catalogue import Catalogue

COUNT = 20_000
NUMBERS = [int(number) for number in np.random.default_rng(0).permutation(10**15 + np.arange(COUNT) * 7)]
IDS_OF = {"int64": NUMBERS, "string": [f"a stock-keeping unit, {number}" for number in NUMBERS]}
UNKNOWN: dict[str, int | str] = {"int64": 10**15 + 1, "string": "a stock-keeping unit, 1"}


def tables(kind: str) -> tuple[pa.Table, pa.Table]:
    items = {
        "item_id": IDS_OF[kind],
        "text": [None if item % 3 else f"text of {item}" for item in range(COUNT)],
        "image": pa.nulls(COUNT, pa.string()),
        "topic_l1": ["a", "b"] * (COUNT // 2),
        "topic_l2": pa.nulls(COUNT, pa.string()),
        "train_count": np.arange(COUNT) % 50,
        "first_seen": pa.array(np.arange(COUNT), mask=np.arange(COUNT) % 5 == 0),
    }
    return pa.table(items), pa.table({"brand": [[f"brand {item % 9}"] for item in range(COUNT)]})


def write(folder: Path, kind: str, batch_rows: int = COUNT) -> Path:
    items, features = tables(kind)
    write_batches(folder / ITEMS, items.to_batches(batch_rows))
    write_batches(folder / ITEM_FEATURES, features.to_batches(batch_rows))
    stored = StoredItems.of(items)
    write_order(folder, stored.order, stored.ids)
    return folder


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("batch_rows", [COUNT, 999])
def test_mapped_items_are_those_read_into_memory_by_an_earlier_mtmh(tmp_path: Path, kind: str, batch_rows: int) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    for table, file in zip(tables(kind), (schema.ITEMS, schema.ITEM_FEATURES), strict=True):
        pq.write_table(table, tmp_path / "old" / file)
    old, new = (
        Catalogue(open_items(folder, COUNT)) for folder in (tmp_path / "old", write(tmp_path / "new", kind, batch_rows))
    )
    rows = np.random.default_rng(1).integers(0, COUNT, 300)
    ids = [IDS_OF[kind][row] for row in rows]
    for catalogue in (old, new):
        assert catalogue.id_type == kind
        assert catalogue.ids(rows) == ids
        assert catalogue.find([*ids, UNKNOWN[kind]], "item").tolist() == [*rows.tolist(), -1]
        assert catalogue.describe(rows)[7].text == ("" if rows[7] % 3 else f"text of {rows[7]}")
    assert old.describe(rows) == new.describe(rows)
    names = ["brand", "item_id", "text", "train_count"]
    assert old.columns(rows, names).equals(new.columns(rows, names))
    condition = {"min": 100, "max": 9000}
    np.testing.assert_array_equal(
        old.meeting("train_count", condition, "where"), new.meeting("train_count", condition, "where")
    )
    np.testing.assert_array_equal(old.meeting("brand", "brand 4", "where"), new.meeting("brand", "brand 4", "where"))
    np.testing.assert_array_equal(old.seen_since(500), new.seen_since(500))
    np.testing.assert_array_equal(old.popular(77, None), new.popular(77, None))
    np.testing.assert_array_equal(old.popularity(rows), new.popularity(rows))
    assert old.find_trained(ids).tolist() == new.find_trained(ids).tolist()


def test_nothing_of_the_items_is_in_memory(tmp_path: Path) -> None:
    write(tmp_path, "string")
    before = pa.total_allocated_bytes()
    stored = open_items(tmp_path, COUNT)
    catalogue = Catalogue(stored)
    rows = np.arange(0, COUNT, 100)
    assert catalogue.find(catalogue.ids(rows), "item").tolist() == rows.tolist()
    catalogue.describe(rows)
    assert stored.table.nbytes > 1_000_000
    assert pa.total_allocated_bytes() - before < 10_000
    for array in (stored.order.keys, stored.order.items):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_texts_that_share_a_key_are_told_apart() -> None:
    texts: list[int | str] = ["one", "another", "a third"]
    key = raw_ids(["another"])[0]
    order = IdOrder(np.array([key, key, key]), np.array([0, 1, 2], np.int32))

    def found(*ids: str) -> list[int]:
        wanted = np.array(ids, np.dtypes.StringDType())
        return order.find(wanted, lambda items: [texts[item] for item in items]).tolist()

    assert found("another", "none of them") == [1, -1]
    texts[1] = "a fourth"
    assert found("another") == [-1]


def swap(name: Path, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        array = np.load(folder / name)
        change(array)
        np.save(folder / name, array)

    return forge


def cut(folder: Path) -> None:
    whole = (folder / ITEMS).read_bytes()
    (folder / ITEMS).write_bytes(whole[: len(whole) // 2])


def other_offsets(folder: Path) -> None:
    """The third offset of the ids points far behind their bytes."""
    whole = bytearray((folder / ITEMS).read_bytes())
    place = whole.index(np.array([0, 38, 76, 114], np.int32).tobytes())
    whole[place + 8 : place + 12] = np.array([2**30], np.int32).tobytes()
    (folder / ITEMS).write_bytes(whole)


def beyond(array: np.ndarray) -> None:
    array[3] = COUNT


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (cut, r"items\.arrow: not a readable Arrow file"),
        (other_offsets, r"items\.arrow: not a readable Arrow file"),
        (swap(KEY_ITEMS, beyond), r"key_items\.npy: names an item that is not among the 20000"),
        (lambda folder: (folder / ITEM_KEYS).unlink(), r"item_keys\.npy: missing"),
        (lambda folder: (folder / ITEMS).unlink(), r"items\.arrow: missing"),
        (lambda folder: (folder / ITEMS).write_bytes(b""), r"items\.arrow: not a readable Arrow file"),
        (
            lambda folder: write_batches(folder / ITEM_FEATURES, pa.table({"brand": ["a"]}).to_batches()),
            r"item_features\.arrow: 1 items, items\.arrow has 20000",
        ),
        (
            lambda folder: write_batches(folder / ITEMS, pa.table({"text": ["a"] * COUNT}).to_batches()),
            r"items\.arrow: no column item_id",
        ),
    ],
    ids=["cut", "offsets", "item", "keys", "items", "empty", "features", "columns"],
)
def test_damaged_files_are_refused(tmp_path: Path, forge: Callable[[Path], None], message: str) -> None:
    forge(write(tmp_path, "string"))
    with pytest.raises(ValueError, match=message):
        open_items(tmp_path, COUNT)


def test_numbers_need_their_file(tmp_path: Path) -> None:
    (write(tmp_path, "int64") / IDS).unlink()
    with pytest.raises(ValueError, match=r"item_ids\.npy: missing"):
        open_items(tmp_path, COUNT)
    with pytest.raises(ValueError, match=r"items\.arrow: 20000 items, the manifest says 5"):
        open_items(tmp_path, 5)
