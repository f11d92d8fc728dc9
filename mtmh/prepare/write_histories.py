"""Writes the users' side of a dataset: histories.parquet, test.parquet, users.parquet and the history lengths.

Users come in seeded hash order, their events in order; sorted rows become list columns by their offsets. What is
written depends on the rows alone, never on how many come at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtmh.data.arrays import row_type
from mtmh.data.histories import LABELS
from mtmh.data.schema import HISTORIES, HISTORY_LENGTHS, TEST, USERS
from mtmh.data.table_rows import arrow, numbers, with_nan
from mtmh.prepare.engine import Rows

ROW_GROUP_EVENTS = 65_536
ROW_GROUP_USERS = 65_536


def write_histories(
    streams: Mapping[str, Rows], folder: Path, *, num_items: int, bits: Sequence[int] | None, row_group_events: int
) -> tuple[int, int]:
    """Writes histories.parquet and the lengths from ``rows``: user_index, item_index, timestamp, sorted.

    Args:
        streams: ``rows``; with ``bits`` also kinds (mask) and value.
        folder: where the files go.
        num_items: of the catalogue.
        bits: of the kinds of events to keep, in their order; ``None``: the rows have no kinds and values.
        row_group_events: events of a row group.

    Returns:
        Users, and their events.
    """
    lengths = _write_lists(streams["rows"], folder / HISTORIES, num_items, bits, row_group_events)
    np.save(folder / HISTORY_LENGTHS, lengths)
    return len(lengths), int(lengths.sum(dtype=np.int64))


def write_test(
    streams: Mapping[str, Rows], folder: Path, *, num_items: int, bits: Sequence[int] | None, row_group_events: int
) -> tuple[int, int]:
    """Writes test.parquet, as `write_histories`."""
    lengths = _write_lists(streams["rows"], folder / TEST, num_items, bits, row_group_events)
    return len(lengths), int(lengths.sum(dtype=np.int64))


def write_users(streams: Mapping[str, Rows], folder: Path, *, id_type: pa.DataType) -> None:
    """Writes users.parquet from ``rows``: user_index, user_id, sorted."""
    schema = pa.schema([("user_index", pa.int64()), ("user_id", id_type)])
    with _GroupedWriter(folder / USERS, schema) as users:
        for rows in streams["rows"]:
            users.add(rows.cast(schema), numbers(rows["user_index"]) // ROW_GROUP_USERS)


def _write_lists(
    rows: Rows, path: Path, num_items: int, bits: Sequence[int] | None, row_group_events: int
) -> NDArray[np.int32]:
    item_type = row_type(num_items)
    lists_of = {"items": pa.from_numpy_dtype(item_type), "timestamps": pa.int64(), **({} if bits is None else LABELS)}
    schema = pa.schema([("user_index", pa.int64()), *((name, pa.list_(kind)) for name, kind in lists_of.items())])
    lengths: list[NDArray[np.int32]] = []
    with _ListWriter(path, schema, row_group_events) as lists:
        for table in _whole_users(rows):
            events: dict[str, NDArray[Any]] = {
                name: (with_nan if name == "value" else numbers)(table[name]) for name in table.column_names
            }
            starts = np.flatnonzero(np.diff(events["user_index"], prepend=-1))
            index, length = events["user_index"][starts], np.diff(starts, append=table.num_rows)
            items = events["item_index"].astype(item_type)
            lists.add_lists(index, length, items, events["timestamp"], *_labels(events, bits))
            lengths.append(length.astype(np.int32))
    return np.concatenate(lengths) if lengths else np.empty(0, np.int32)


def _whole_users(rows: Rows) -> Iterator[pa.Table]:
    """The same rows, with all of a user in one table."""
    pending: list[pa.Table] = []
    for table in rows:
        if not table.num_rows:
            continue
        users = numbers(table["user_index"])
        last = int(np.searchsorted(users, users[-1]))  # the last user may go on in the next table
        if last == 0 and pending and pending[-1]["user_index"][-1].as_py() == users[-1]:
            pending.append(table)
            continue
        if pending:
            # What is pending is of one user, and so may the beginning of this table be.
            first = int(np.searchsorted(users, pending[-1]["user_index"][-1].as_py(), side="right"))
            yield pa.concat_tables([*pending, table.slice(0, first)])
            table, last = table.slice(first), last - first
        if last:
            yield table.slice(0, last)
        pending = [table.slice(last)]
    if pending:
        yield pa.concat_tables(pending)


class _GroupedWriter:
    """Parquet rows in row groups: rows of one group number, which only goes up, lie in one row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending = pa.Table.from_batches([], schema)
        self._pending_group: NDArray[np.int64] = np.empty(0, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and len(self._pending):
            self._write(self._pending)
        self._writer.close()

    def _write(self, group: pa.Table) -> None:
        # Pages end where chunks do.
        self._writer.write_table(group.combine_chunks(), row_group_size=len(group))

    def add(self, table: pa.Table, group: NDArray[np.int64]) -> None:
        """Adds rows with their group numbers [rows]."""
        table = pa.concat_tables([self._pending, table])
        group = np.concatenate((self._pending_group, group))
        # The last group may go on in the next call.
        starts = np.flatnonzero(np.diff(group, prepend=-1)).tolist()
        for start, stop in pairwise(starts):
            self._write(table.slice(start, stop - start))
        rest = starts[-1] if starts else 0
        self._pending = table.slice(rest).combine_chunks()
        self._pending_group = group[rest:]


class _ListWriter(_GroupedWriter):
    """Rows of lists (items, timestamps, ...) by user_index, in row groups of about ``row_group_events`` events.

    A row group begins with the first user whose events start at or beyond the next multiple of ``row_group_events``.
    """

    def __init__(self, path: Path, schema: pa.Schema, row_group_events: int) -> None:
        super().__init__(path, schema)
        self._schema = schema
        self._row_group_events = row_group_events
        self._num_events = 0

    def add_lists(
        self,
        index: NDArray[np.integer[Any]],
        length: NDArray[np.int64],
        *columns: NDArray[Any],
    ) -> None:
        """Adds rows ``index`` [U] with ``length`` [U] events each; the events' columns lie one row after another."""
        offsets = np.concatenate(([0], np.cumsum(length)))
        lists = [pa.ListArray.from_arrays(arrow(offsets.astype(np.int32)), arrow(values)) for values in columns]
        table = pa.table([arrow(index.astype(np.int64, copy=False)), *lists], schema=self._schema)
        self.add(table, (self._num_events + offsets[:-1]) // self._row_group_events)
        self._num_events += int(offsets[-1])


def _labels(events: dict[str, NDArray[Any]], bits: Sequence[int] | None) -> list[NDArray[Any]]:
    """Masks over the kept kinds, and values with NaN for none."""
    if bits is None:
        return []
    masks = np.zeros(len(events["kinds"]), np.int32)
    for place, bit in enumerate(bits):
        masks |= (events["kinds"].astype(np.int32) >> bit & 1) << place
    return [masks, events["value"].astype(np.float32)]
