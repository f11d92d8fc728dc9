"""Writes the users' side of a dataset: histories.parquet, test.parquet, users.parquet and the history lengths.

Users come in seeded hash order, a bounded range of them at a time; the sorted events of a range become list columns by
their offsets. What is written depends on the events alone, never on how users are cut into ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtmh.data.schema import HISTORIES, HISTORY_LENGTHS, TEST, USERS
from mtmh.prepare import statements

ROW_GROUP_EVENTS = 65_536
ROW_GROUP_USERS = 65_536
NEVER = np.iinfo(np.int64).max
LISTS = pa.schema([("user_index", pa.int64()), ("items", pa.list_(pa.int32())), ("timestamps", pa.list_(pa.int64()))])
LABEL_LISTS = [("events", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]


@dataclass
class HistoryFacts:
    """Facts of the written histories.

    Attributes:
        train_count: [I] int64, events of each item in the histories, by item index.
        first_seen: [I] int64, timestamp of the first of them, ``NEVER`` where there is none.
        num_users: rows of histories.parquet.
        num_test_users: rows of test.parquet.
        num_test_events: items in test.parquet.
        event_kinds: names of the bits of ``events``.
        dropped: reason -> events left out.
    """

    train_count: NDArray[np.int64]
    first_seen: NDArray[np.int64]
    num_users: int = 0
    num_test_users: int = 0
    num_test_events: int = 0
    event_kinds: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, rows: int) -> None:
        """Counts ``rows`` more events under ``reason``."""
        self.dropped[reason] = self.dropped.get(reason, 0) + rows


def write_histories(
    connection: Any,
    folder: Path,
    ranges: list[tuple[int, int]],
    item_index: NDArray[np.int32],
    min_user_events: int,
    max_history: int,
    progress: Callable[[int], None],
    kinds: Mapping[int, str] | None = None,
) -> HistoryFacts:
    """Writes the four files from the tables ``split``, ``rare`` and ``users``.

    Args:
        connection: DuckDB.
        folder: where the files go.
        ranges: user codes ``[first, last)``, ascending.
        item_index: [I] item code -> item index.
        min_user_events: users with fewer T1 events are left out.
        max_history: the last events of a user that are kept.
        progress: called with the number of users after each range.
        kinds: bit and name of the kinds of events to keep; ``None``: ``split`` has no kinds and values.
    """
    facts = HistoryFacts(np.zeros(len(item_index), np.int64), np.full(len(item_index), NEVER, np.int64))
    user_id_type = connection.sql("SELECT user_id FROM users LIMIT 0").to_arrow_table().schema.field(0).type
    if kinds is not None:
        facts.event_kinds = [kinds[bit] for bit in sorted(kinds)]
    lists = LISTS if kinds is None else pa.schema([*LISTS, *LABEL_LISTS])
    users_schema = pa.schema([("user_index", pa.int64()), ("user_id", user_id_type)])
    lengths = []
    with (
        _ListWriter(folder / HISTORIES, lists) as histories,
        _ListWriter(folder / TEST, lists) as test,
        _GroupedWriter(folder / USERS, users_schema) as users,
    ):
        for first, last in ranges:
            limits = (min_user_events, max_history, first, last)
            events = _columns(connection, statements.histories(*limits, kinds is not None))
            codes, length = np.unique(events["user_code"], return_counts=True)
            index = facts.num_users + np.arange(len(codes))
            items = item_index[events["item_code"]]
            histories.add_lists(index, length, items, events["timestamp"], *_labels(events, kinds))
            lengths.append(length.astype(np.int32))
            facts.train_count += np.bincount(items, minlength=len(item_index))
            np.minimum.at(facts.first_seen, items, events["timestamp"])
            ((short, beyond),) = connection.sql(statements.history_drops(*limits)).fetchall()
            facts.drop("short_history", short)
            facts.drop("beyond_max_history", beyond)

            ids = connection.sql(statements.user_ids(first, last)).to_arrow_table()
            kept = ids.filter(pa.array(np.isin(ids["user_code"].to_numpy(), codes)))
            users.add(pa.table([pa.array(index), kept["user_id"]], schema=users_schema), index // ROW_GROUP_USERS)

            future = _columns(connection, statements.test_items(first, last, kinds is not None))
            known = np.isin(future["user_code"], codes)
            facts.drop("test_without_history", int(future["num_events"][~known].sum()))
            future = {name: column[known] for name, column in future.items()}
            facts.drop("repeated_in_test", int((future["num_events"] - 1).sum()))
            test_codes, test_length = np.unique(future["user_code"], return_counts=True)
            test.add_lists(
                index[np.searchsorted(codes, test_codes)],
                test_length,
                item_index[future["item_code"]],
                future["timestamp"],
                *_labels(future, kinds),
            )
            facts.num_users += len(codes)
            facts.num_test_users += len(test_codes)
            facts.num_test_events += len(future["item_code"])
            progress(last)
    np.save(folder / HISTORY_LENGTHS, np.concatenate(lengths) if lengths else np.empty(0, np.int32))
    return facts


class _GroupedWriter:
    """Parquet rows in row groups: rows of one group number, which only goes up, lie in one row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending = schema.empty_table()
        self._pending_group: NDArray[np.int64] = np.empty(0, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and len(self._pending):
            self._writer.write_table(self._pending, row_group_size=len(self._pending))
        self._writer.close()

    def add(self, table: pa.Table, group: NDArray[np.int64]) -> None:
        """Adds rows with their group numbers [rows]."""
        table = pa.concat_tables([self._pending, table])
        group = np.concatenate((self._pending_group, group))
        # The last group may go on in the next call.
        starts = np.flatnonzero(np.diff(group, prepend=-1)).tolist()
        for start, stop in pairwise(starts):
            self._writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
        rest = starts[-1] if starts else 0
        self._pending = table.slice(rest).combine_chunks()
        self._pending_group = group[rest:]


class _ListWriter(_GroupedWriter):
    """Rows of lists (items, timestamps, ...) by user_index, in row groups of about ``ROW_GROUP_EVENTS`` events.

    A row group begins with the first user whose events start at or beyond the next multiple of ``ROW_GROUP_EVENTS``.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
        self._schema = schema
        self._num_events = 0

    def add_lists(
        self,
        index: NDArray[np.int64],
        length: NDArray[np.int64],
        *columns: NDArray[Any],
    ) -> None:
        """Adds rows ``index`` [U] with ``length`` [U] events each; the events' columns lie one row after another."""
        offsets = np.concatenate(([0], np.cumsum(length)))
        lists = [pa.ListArray.from_arrays(offsets.astype(np.int32), values) for values in columns]
        table = pa.table([pa.array(index), *lists], schema=self._schema)
        self.add(table, (self._num_events + offsets[:-1]) // ROW_GROUP_EVENTS)
        self._num_events += int(offsets[-1])


def _labels(events: dict[str, NDArray[Any]], kinds: Mapping[int, str] | None) -> list[NDArray[Any]]:
    """Masks over the kept kinds, and values with NaN for none."""
    if kinds is None:
        return []
    masks = np.zeros(len(events["kinds"]), np.int32)
    for place, bit in enumerate(sorted(kinds)):
        masks |= (events["kinds"].astype(np.int32) >> bit & 1) << place
    return [masks, events["value"].astype(np.float32)]


def _columns(connection: Any, query: str) -> dict[str, NDArray[Any]]:
    table = connection.sql(query).to_arrow_table()
    return {name: table[name].to_numpy() for name in table.column_names}
