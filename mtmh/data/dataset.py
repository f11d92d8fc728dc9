"""Opens a dataset artifact: item ids, model inputs, histories and the users to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import Indices, open_array
from mtmh.data.histories import (
    LABELS,
    Histories,
    HistoryReader,
    check_item_range,
    check_list_column,
    concatenate_histories,
    flat_lists,
    has_labels,
    with_labels,
)
from mtmh.data.id_order import IdOrder
from mtmh.data.ids import raw_ids
from mtmh.data.item_table import ItemTable
from mtmh.data.parquet import open_parquet, read_column
from mtmh.data.randomness import Purpose, generator
from mtmh.data.schema import (
    EVENT_ITEMS,
    HISTORIES,
    ITEM_ID,
    ITEMS,
    KNOWN_ITEMS,
    RIDE_ALONG,
    TEST,
    DatasetSummary,
)
from mtmh.data.uniform_negatives import KnownItems, find_known_items


@dataclass(frozen=True)
class EvaluationUsers:
    """Users with a training history and test items.

    Attributes:
        user_index: [Q] int64, ascending.
        histories: [Q] their training histories, oldest item first.
        test: [Q] their distinct items of the test period, in order of first engagement.
    """

    user_index: npt.NDArray[np.int64]
    histories: Histories
    test: Histories


class Dataset:
    """A dataset artifact, read lazily.

    Attributes:
        artifact: the folder and its manifest.
        summary: the checked facts of the manifest.
    """

    def __init__(self, artifact: Artifact, summary: DatasetSummary) -> None:
        self.artifact = artifact
        self.summary = summary

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.summary.num_items

    def items(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of the items table (all by default), in item-index order.

        Raises:
            ValueError: no such column, or the table does not have one row an item.
        """
        return self._items_file(columns).read(columns=None if columns is None else list(columns))

    def item_batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        """The same, at most ``num_rows`` items at a time.

        Raises:
            ValueError: as ``items``.
        """
        for batch in self._items_file(columns).iter_batches(num_rows, columns=list(columns)):
            yield batch.select(list(columns))

    def _items_file(self, columns: Sequence[str] | None) -> pq.ParquetFile:
        path = self.artifact.path / ITEMS
        file = open_parquet(path)
        names = file.schema_arrow.names
        missing = [name for name in columns or [] if name not in names]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}")
        if file.metadata.num_rows != self.num_items:
            raise ValueError(f"{path}: {file.metadata.num_rows} rows, the manifest says {self.num_items} items")
        return file

    @cached_property
    def item_ids(self) -> npt.NDArray[Any]:
        """[I] the ids of the items by index: int64, or NumPy strings (StringDType)."""
        column = self.items([ITEM_ID]).column(ITEM_ID)
        if column.null_count:
            raise ValueError(f"{self.artifact.path / ITEMS}: column {ITEM_ID} has nulls")
        expected = [pa.int64()] if self.summary.id_type == "int64" else [pa.string(), pa.large_string()]
        if column.type not in expected:
            raise ValueError(
                f"{self.artifact.path / ITEMS}: column {ITEM_ID} is {column.type}, "
                f"the manifest says {self.summary.id_type}"
            )
        ids: npt.NDArray[Any] = column.to_numpy()
        return ids if self.summary.id_type == "int64" else ids.astype(np.dtypes.StringDType())

    def find(self, item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Item indices of ids, -1 for ids that are not in the catalogue.

        Raises:
            ValueError: ids of the wrong type.
        """
        if len(item_ids) == 0:
            return np.empty(0, np.int64)
        wanted = np.asarray(item_ids)
        numbers = self.summary.id_type == "int64"
        if wanted.dtype.kind not in ("iu" if numbers else "UTO"):
            kind = "64-bit integers" if numbers else "strings"
            raise ValueError(f"item ids of this dataset are {kind}, got {wanted.dtype} ({item_ids[0]!r})")
        wanted = wanted.astype(np.int64 if numbers else np.dtypes.StringDType())
        return self._id_order.find(wanted, None if numbers else lambda items: self.item_ids[items].tolist())

    @cached_property
    def _id_order(self) -> IdOrder:
        order = IdOrder.of(raw_ids(self.item_ids))
        first = np.flatnonzero(order.keys[1:] == order.keys[:-1])
        ids, others = self.item_ids[order.items[first]], self.item_ids[order.items[first + 1]]
        if (ids == others).any():
            raise ValueError(f"{self.artifact.path / ITEMS}: item id {ids[ids == others][0]!r} comes more than once")
        return order

    @cached_property
    def known_items(self) -> KnownItems:
        """[K] the items with training events, ascending; memory-mapped where features ride along."""
        if self.summary.rides_along:
            return open_array(self.artifact.path / KNOWN_ITEMS, (np.int32, np.int64), (None,))
        return find_known_items(self.item_table.train_count)

    @cached_property
    def ride_along(self) -> ItemTable | None:
        """The model's inputs of the item of each event, in the order of the histories; None: not joined to them."""
        if not self.summary.rides_along:
            return None
        return ItemTable(
            self.artifact.path, self.summary.features, self.summary.num_train_events, folder=RIDE_ALONG, checked=False
        )

    @cached_property
    def event_items(self) -> Indices:
        """[H] the item of each event, where features ride along."""
        shape = (self.summary.num_train_events,)
        return open_array(self.artifact.path / EVENT_ITEMS, (np.int32, np.int64), shape)

    @cached_property
    def item_table(self) -> ItemTable:
        """The model's inputs of all items, memory-mapped; read through at opening, unless features ride along."""
        checked = not self.summary.rides_along
        return ItemTable(self.artifact.path, self.summary.features, self.num_items, checked=checked)

    def history_reader(self, cached_groups: int = 1, *, labels: bool = False, numbered: bool = False) -> HistoryReader:
        """A reader of the training histories, for use in one thread.

        Args:
            cached_groups: row groups that stay in memory.
            labels: with kinds and values of events.
            numbered: numbers of events (`event_items`) in place of their items.
        """
        return HistoryReader(self.artifact.path, self.num_items, cached_groups, labels, numbered=numbered)

    def evaluation_users(self, num_users: int, seed: int, *, labels: bool = False) -> EvaluationUsers:
        """A seeded sample of the users that have a training history and test items.

        Args:
            num_users: size of the sample; all users when there are fewer.
            seed: of the sample.
            labels: with kinds and values of events, where the dataset has them.

        Raises:
            ValueError: there is no such user, or the tables do not fit together.
        """
        path = self.artifact.path
        test = open_parquet(path / TEST)
        groups = range(test.metadata.num_row_groups)
        keys = [read_column(test, path / TEST, group, "user_index").to_numpy() for group in groups]
        candidates = np.concatenate([np.empty(0, np.int64), *keys])
        if len(candidates) == 0:
            raise ValueError(f"{path / TEST}: no user has both training and test events: nothing to evaluate on")
        draw = generator(Purpose.EVALUATION_USERS, seed).permutation(len(candidates))[:num_users]
        users = np.sort(candidates[draw])
        return EvaluationUsers(users, self._lists(HISTORIES, users, labels), self._lists(TEST, users, labels))

    def _lists(self, name: Path, users: npt.NDArray[np.int64], labels: bool) -> Histories:
        """The item lists of users (ascending), from a table keyed by ``user_index``."""
        path = self.artifact.path / name
        file = open_parquet(path)
        check_list_column(file.schema_arrow, "items", path)
        labels = labels and has_labels(file.schema_arrow, path)
        parts: list[Histories] = []
        found: list[npt.NDArray[np.int64]] = []
        for group in range(file.metadata.num_row_groups):
            keys = read_column(file, path, group, "user_index").to_numpy()
            rows = np.flatnonzero(np.isin(keys, users))
            if len(rows):
                columns = [read_column(file, path, group, "items").take(pa.array(rows))]
                if labels:
                    columns += [read_column(file, path, group, label).take(pa.array(rows)) for label in LABELS]
                lists = flat_lists(columns[0], path)
                parts.append(with_labels(lists, columns[1], columns[2], path) if labels else lists)
                found.append(keys[rows])
        keys = np.concatenate(found) if found else np.empty(0, np.int64)
        order = np.argsort(keys)
        if not np.array_equal(keys[order], users):
            missing = np.setdiff1d(users, keys)
            problem = f"user_index {missing[0]} is missing" if len(missing) else "a user_index comes more than once"
            raise ValueError(f"{path}: {problem}")
        lists = concatenate_histories(parts).select(order)
        check_item_range(lists.items, self.num_items, str(path))
        return lists


def open_dataset(path: Path) -> Dataset:
    """Opens a dataset artifact and checks its manifest; data files are checked as they are read.

    Raises:
        ValueError: no dataset artifact there, a file missing or truncated, or a summary that does not fit.
    """
    artifact = open_artifact(path, "dataset")
    try:
        summary = DatasetSummary.model_validate(artifact.summary)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: not a valid dataset summary: {field}: {first['msg']}") from None
    return Dataset(artifact, summary)
