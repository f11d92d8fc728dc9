"""Reads the training histories by row group of ``histories.parquet``."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.data.arrays import Indices, open_array
from mtmh.data.parquet import open_parquet, read_column
from mtmh.data.schema import HISTORIES, HISTORY_LENGTHS

LABELS = {"events": pa.int32(), "values": pa.float32()}  # list columns, where the source has kinds or values


@dataclass(frozen=True)
class Histories:
    """Item sequences of several users, flat.

    Attributes:
        items: [H] item indices, oldest first within a user.
        offsets: [R + 1] int64; user ``r`` owns ``items[offsets[r]:offsets[r + 1]]``.
        events: [H] int32 bit masks over the dataset's ``event_kinds``; ``None``: not there, or not asked for.
        values: [H] float32, NaN: none; ``None``: as above.
    """

    items: Indices
    offsets: npt.NDArray[np.int64]
    events: npt.NDArray[np.int32] | None = None
    values: npt.NDArray[np.float32] | None = None

    def users(self, first: int, end: int) -> Histories:
        """The users ``first`` to ``end - 1``; all but the offsets are views."""
        offsets = self.offsets[first : end + 1]
        return self._taken(slice(offsets[0], offsets[-1]), offsets - offsets[0])

    def select(self, rows: npt.NDArray[np.integer[Any]], last: int | None = None) -> Histories:
        """Some users in a given order, cut to the last ``last`` items of each."""
        ends = self.offsets[rows + 1]
        lengths = ends - self.offsets[rows]
        if last is not None:
            np.minimum(lengths, last, out=lengths)
        return self.before(ends, lengths)

    def before(self, ends: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Histories:
        """The ``lengths`` [n] events before each of the places ``ends`` [n] of ``items``, as ``n`` users."""
        offsets = np.zeros(len(ends) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        positions = np.repeat(ends - offsets[1:], lengths)
        positions += np.arange(len(positions))
        return self._taken(positions, offsets)

    def first_engagements(self) -> Histories:
        """The distinct items of each user at their first place, with all kinds of events and the largest value."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        keys = rows * (int(self.items.max(initial=0)) + 1) + self.items
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)
        places = first[order]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[places], minlength=len(self.offsets) - 1))])
        events, values = self.events, self.values
        if events is not None and values is not None:
            kinds, largest = events[first], values[first]
            np.bitwise_or.at(kinds, group, events)
            np.fmax.at(largest, group, values)
            events, values = kinds[order], largest[order]
        return Histories(self.items[places], offsets, events, values)

    def _taken(self, places: slice | npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Histories:
        events = None if self.events is None else self.events[places]
        values = None if self.values is None else self.values[places]
        return Histories(self.items[places], offsets, events, values)


def concatenate_histories(parts: list[Histories]) -> Histories:
    """The users of all parts, one part after another."""
    if len(parts) == 1:
        return parts[0]
    sizes = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, sizes[:-1], strict=True)]
    events = [part.events for part in parts if part.events is not None]
    values = [part.values for part in parts if part.values is not None]
    assert len(events) in (0, len(parts))
    assert len(values) in (0, len(parts))
    return Histories(
        np.concatenate([part.items for part in parts]),
        np.concatenate([*offsets, sizes[-1:]]),
        np.concatenate(events) if events else None,
        np.concatenate(values) if values else None,
    )


def last_distinct(histories: Histories, count: int) -> npt.NDArray[np.int64]:
    """The last ``count`` distinct items of each history, the latest first, -1: padding. Returns [U, count]."""
    sizes = np.diff(histories.offsets)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    # By user, then item, then latest first: the first of each group is the item's last place in the history.
    order = np.lexsort((-np.arange(len(rows)), histories.items, rows))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (rows[order][1:] != rows[order][:-1]) | (histories.items[order][1:] != histories.items[order][:-1])
    places = np.sort(order[first])[::-1]  # latest first within a user, users descending
    users = rows[places]
    rank = np.arange(len(places)) - np.searchsorted(-users, -users, side="left")
    kept = rank < count
    triggers = np.full((len(sizes), count), -1, np.int64)
    triggers[users[kept], rank[kept]] = histories.items[places[kept]]
    return triggers


class HistoryReader:
    """Random access to the row groups of the histories; the last few stay in memory.

    One reader belongs to one thread.

    Attributes:
        lengths: [num_users] int32, in file order.
        group_starts: [G + 1] int64; row group ``g`` holds the users ``group_starts[g]`` to ``group_starts[g + 1] - 1``.
    """

    def __init__(
        self,
        folder: Path,
        num_items: int,
        cached_groups: int,
        labels: bool = False,
        *,
        kept: npt.NDArray[np.int32] | None = None,
        numbered: bool = False,
    ) -> None:
        """Opens the file; reads its metadata only.

        Args:
            folder: the dataset artifact.
            num_items: item indices must be below.
            cached_groups: row groups that stay in memory, at least 1.
            labels: read kinds and values of events too, where the dataset has them.
            kept: [num_users] how much of each history is read, from its beginning; default: all.
            numbered: read the numbers of the events in the file in place of their items.

        Raises:
            ValueError: wrong column types, or lengths that do not go with the file.
        """
        self._path = folder / HISTORIES
        self._file = open_parquet(self._path)
        self._num_items = num_items
        self._cached_groups = cached_groups
        self._cache: OrderedDict[int, Histories] = OrderedDict()
        check_list_column(self._file.schema_arrow, "items", self._path)
        self._labels = labels and has_labels(self._file.schema_arrow, self._path)
        metadata = self._file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.group_starts = np.cumsum([0, *rows], dtype=np.int64)
        self._stored_lengths = open_array(folder / HISTORY_LENGTHS, np.int32, (metadata.num_rows,))
        self.lengths = self._stored_lengths if kept is None else kept
        self._first_event: npt.NDArray[np.int64] | None = None
        if numbered:  # of each row group, the events before it; with the last, all events
            self._first_event = np.append(0, np.cumsum(self._stored_lengths, dtype=np.int64))[self.group_starts]

    @property
    def num_groups(self) -> int:
        """Row groups of the file."""
        return len(self.group_starts) - 1

    def read(self, group: int) -> Histories:
        """All users of one row group.

        Raises:
            ValueError: the row group disagrees with the lengths file, or an item index is out of range.
        """
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        if self._first_event is not None:
            return self._numbered(group)
        histories = flat_lists(read_column(self._file, self._path, group, "items"), self._path)
        if self._labels:
            events, values = (read_column(self._file, self._path, group, name) for name in LABELS)
            histories = with_labels(histories, events, values, self._path)
        first, end = self.group_starts[group : group + 2]
        if not np.array_equal(np.diff(histories.offsets), self._stored_lengths[first:end]):
            raise ValueError(
                f"{self._path}: row group {group}: lengths of the histories differ from {HISTORY_LENGTHS.name}"
            )
        check_item_range(histories.items, self._num_items, f"{self._path}: row group {group}")
        if self.lengths is not self._stored_lengths:
            kept = self.lengths[first:end].astype(np.int64)
            histories = histories.before(histories.offsets[:-1] + kept, kept)
        self._cache[group] = histories
        if len(self._cache) > self._cached_groups:
            self._cache.popitem(last=False)
        return histories

    def _numbered(self, group: int) -> Histories:
        """The events of a row group by number; nothing of it is read."""
        assert self._first_event is not None
        first, end = self.group_starts[group : group + 2]
        offsets = np.zeros(end - first + 1, np.int64)
        np.cumsum(self._stored_lengths[first:end], out=offsets[1:])
        return Histories(np.arange(self._first_event[group], self._first_event[group + 1]), offsets)


def check_list_column(schema: pa.Schema, name: str, path: Path) -> None:
    """Raises ValueError unless ``name`` is a column of lists of int32 or int64."""
    found = schema.field(name).type if name in schema.names else "no such column"
    if found not in [kind(number) for kind in (pa.list_, pa.large_list) for number in (pa.int32(), pa.int64())]:
        raise ValueError(f"{path}: column {name}: expected list<int32> or list<int64>, found {found}")


def has_labels(schema: pa.Schema, path: Path) -> bool:
    """True if a table has kinds and values of events.

    Raises:
        ValueError: it has columns of these names and another type.
    """
    for name, kind in LABELS.items():
        found = schema.field(name).type if name in schema.names else None
        if found not in (None, pa.list_(kind), pa.large_list(kind)):
            raise ValueError(f"{path}: column {name}: expected list<{kind}>, found {found}")
    return all(name in schema.names for name in LABELS)


def with_labels(histories: Histories, events: pa.ChunkedArray, values: pa.ChunkedArray, path: Path) -> Histories:
    """The histories with kinds and values of their events.

    Raises:
        ValueError: there are nulls, or lists of other lengths.
    """
    flat = []
    for column, name in ((events, "events"), (values, "values")):
        parts, offsets = _flat_column(column, path, name)
        if not np.array_equal(offsets, histories.offsets):
            raise ValueError(f"{path}: column {name}: lengths of the lists differ from those of items")
        flat.append(parts)
    return replace(histories, events=flat[0], values=flat[1])


def check_item_range(items: Indices, num_items: int, where: str) -> None:
    """Raises ValueError unless all item indices lie in the catalogue."""
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        raise ValueError(f"{where}: item index {items.max()} or {items.min()} outside the catalogue of {num_items}")


def flat_lists(column: pa.ChunkedArray, path: Path) -> Histories:
    """A column of lists of item indices as flat arrays; a column of one chunk is not copied.

    Raises:
        ValueError: there are nulls.
    """
    items, offsets = _flat_column(column, path, "items")
    return Histories(items, offsets)


def flat_numbers(column: pa.ChunkedArray, path: Path) -> npt.NDArray[Any]:
    """The numbers of a list column of any type, one list after another.

    Raises:
        ValueError: there are nulls.
    """
    return _flat_column(column, path, "timestamps")[0]


def _flat_column(column: pa.ChunkedArray, path: Path, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    if column.null_count or any(chunk.values.null_count for chunk in column.chunks):
        raise ValueError(f"{path}: column {name}: null lists or nulls in lists")
    parts = [(chunk.offsets.to_numpy().astype(np.int64), chunk.values.to_numpy()) for chunk in column.chunks]
    flat = [values[offsets[0] : offsets[-1]] for offsets, values in parts]
    if len(flat) == 1:
        return flat[0], parts[0][0] - parts[0][0][0]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(offsets) for offsets, _ in parts)])
    empty = np.empty(0, column.type.value_type.to_pandas_dtype())
    return np.concatenate([empty, *flat]), np.concatenate([[0], np.cumsum(lengths)])
