"""Joins the features of items to the rows of the histories, so that training reads them where it reads the events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtmh.data.arrays import row_type
from mtmh.data.histories import HistoryReader
from mtmh.data.item_table import ItemTable
from mtmh.data.row_file import create_array
from mtmh.data.schema import (
    EVENT_ITEMS,
    FLOAT_FEATURES,
    KNOWN_ITEMS,
    RAW_IDS,
    RIDE_ALONG,
    TRAIN_COUNTS,
    FeatureSchema,
)
from mtmh.data.uniform_negatives import known_items
from mtmh.prepare.engine import Rows


def write_ride_along(
    streams: Mapping[str, Rows], folder: Path, *, dataset: Path, schema: FeatureSchema, num_items: int
) -> None:
    """Writes the folder ``ride_along``: what `item_table` has of an item, of each event, in the order of the file.

    Args:
        streams: none.
        folder: where files go.
        dataset: folder of the histories and the item table.
        schema: of the dataset.
        num_items: of the catalogue.
    """
    assert not streams
    table, reader = ItemTable(dataset, schema, num_items), HistoryReader(dataset, num_items, 1)
    (folder / RIDE_ALONG).mkdir()
    np.save(folder / KNOWN_ITEMS, known_items(table.train_count))
    num_events = int(reader.lengths.sum(dtype=np.int64))
    shape = {FLOAT_FEATURES: (num_events, len(schema.float_features))}
    arrays = {
        name: create_array(folder / RIDE_ALONG / name, kind, shape.get(name, (num_events,)))
        for name, kind in (
            (EVENT_ITEMS.name, row_type(num_items)),
            (FLOAT_FEATURES, np.float32),
            (TRAIN_COUNTS, np.int64),
            (RAW_IDS.name, np.int64),
        )
    }
    lists = {name: column for name, column in table.columns.items() if column.offsets is not None}
    num_values = dict.fromkeys(lists, 0)
    for group in range(reader.num_groups if lists else 0):
        items = reader.read(group).items
        for name, column in lists.items():
            num_values[name] += int(column.lengths(items).sum())
    offsets = {
        name: create_array(folder / RIDE_ALONG / f"{name}.offsets.npy", np.int64, (num_events + 1,)) for name in lists
    }
    values = {
        name: create_array(
            folder / RIDE_ALONG / f"{name}.values.npy", column.values.dtype, (num_values.get(name, num_events),)
        )
        for name, column in table.columns.items()
    }
    filled, start = dict.fromkeys(values, 0), 0
    for group in range(reader.num_groups):
        items = reader.read(group).items
        events = slice(start, start + len(items))
        arrays[EVENT_ITEMS.name][events] = items
        arrays[FLOAT_FEATURES][events] = np.take(table.float_features, items, axis=0)
        arrays[TRAIN_COUNTS][events] = table.train_count[items]
        arrays[RAW_IDS.name][events] = table.raw_ids[items]
        for name, column in table.columns.items():
            found, lengths = column.gather(items)
            values[name][filled[name] : filled[name] + len(found)] = found
            if name in offsets:
                offsets[name][start + 1 : events.stop + 1] = filled[name] + np.cumsum(lengths)
            filled[name] += len(found)
        start = events.stop
    for array in (*arrays.values(), *values.values(), *offsets.values()):
        array.flush()
