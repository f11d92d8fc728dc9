"""The items of an index in mapped files: their rows, and the order of their ids, by which an item is found.

An index that was built before there were these has Parquet files (`mtmh.data.schema`), which are read into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.data import schema
from mtmh.data.arrays import open_array, row_type
from mtmh.data.id_order import IdOrder
from mtmh.data.ids import raw_ids
from mtmh.data.parquet import read_whole
from mtmh.data.schema import ITEM_ID
from mtmh.data.table_rows import numbers
from mtmh.index.artifact import IDS, ITEM_FEATURES, ITEM_KEYS, ITEMS, KEY_ITEMS

BATCH_ROWS = 1 << 24  # most catalogues whole: rows of one batch are taken fastest

_NEEDED = (ITEM_ID, "text", "topic_l1", "topic_l2", "train_count")


@dataclass(frozen=True)
class StoredItems:
    """I items.

    Attributes:
        table: a row an item, with all columns.
        order: of their ids.
        ids: [I] int64; None: they are texts, which stand in the table.
    """

    table: pa.Table
    order: IdOrder
    ids: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Items in memory, whose ids are sorted here."""
        column = table.column(ITEM_ID)
        if pa.types.is_integer(column.type):
            ids = numbers(column)
            return cls(table, IdOrder.of(ids), ids)
        texts = np.array(column.to_pylist(), np.dtypes.StringDType())
        return cls(table, IdOrder.of(raw_ids(texts)), None)


def write_batches(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes rows, in one batch at least, as an Arrow file that can be mapped."""
    source = iter(batches)
    first = next(source)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        for batch in chain([first], source):
            writer.write_batch(batch)


def write_order(folder: Path, order: IdOrder, ids: npt.NDArray[np.int64] | None) -> None:
    """Writes how the items in a folder are found; ``ids`` as in `StoredItems`."""
    np.save(folder / ITEM_KEYS, order.keys)
    np.save(folder / KEY_ITEMS, order.items)
    if ids is not None:
        np.save(folder / IDS, ids)


def open_items(folder: Path, num_items: int) -> StoredItems:
    """Opens the items of an index, mapped; reads them through once.

    Raises:
        ValueError: files are missing, damaged or do not belong together; the message names the file.
    """
    if not (folder / ITEMS).is_file() and (folder / schema.ITEMS).is_file():  # of an earlier mtmh
        return StoredItems.of(_joined(folder, schema.ITEMS, schema.ITEM_FEATURES, read_whole, num_items))
    items = _joined(folder, ITEMS, ITEM_FEATURES, _mapped, num_items)
    keys = open_array(folder / ITEM_KEYS, np.int64, (num_items,))
    places = open_array(folder / KEY_ITEMS, row_type(num_items), (num_items,))
    if num_items and (places.min() < 0 or places.max() >= num_items):
        raise ValueError(f"{folder / KEY_ITEMS}: names an item that is not among the {num_items}")
    are_numbers = pa.types.is_integer(items.schema.field(ITEM_ID).type)
    ids = open_array(folder / IDS, np.int64, (num_items,)) if are_numbers else None
    return StoredItems(items, IdOrder(keys, places), ids)


def _joined(
    folder: Path, items_file: Path, features_file: Path, read: Callable[[Path], pa.Table], num_items: int
) -> pa.Table:
    """The items with their features; an index that was built before it had features has none."""
    items = read(folder / items_file)
    if len(items) != num_items:
        raise ValueError(f"{folder / items_file}: {len(items)} items, the manifest says {num_items}")
    if missing := [name for name in _NEEDED if name not in items.column_names]:
        raise ValueError(f"{folder / items_file}: no column {missing[0]}")
    if not (folder / features_file).is_file():
        return items
    features = read(folder / features_file)
    if len(features) != num_items:
        raise ValueError(f"{folder / features_file}: {len(features)} items, {items_file} has {num_items}")
    for name in features.column_names:
        if name not in items.column_names:
            items = items.append_column(name, features.column(name))
    return items


def _mapped(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # Arrow trusts the offsets of a file
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Arrow file: {error}") from None
    return table
