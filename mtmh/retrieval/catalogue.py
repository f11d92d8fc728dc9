"""The items that a retriever knows: ids, columns that a person or a filter wants, and which may be answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.data.arrays import Indices, ItemId, Mask
from mtmh.data.schema import ITEM_ID
from mtmh.data.table_rows import TableRows, numbers
from mtmh.errors import RequestError, meant
from mtmh.index.artifact import REMOVED
from mtmh.index.item_store import StoredItems
from mtmh.retrieval.item_column import Condition, ItemColumn, Value, is_filterable
from mtmh.retrieval.text_search import ItemTexts

TOPICS = ("topic_l1", "topic_l2")
DISPLAY_COLUMNS = ("text", *TOPICS, "image")

_TOLD = 3  # values that no item has, by name

_DIGITS = re.compile(r"-?[0-9]{1,19}")
_ALWAYS_NEW = np.iinfo(np.int64).max  # first_seen of items that no event of the training period has


class UnknownItemError(RequestError):
    """An item that the index does not hold."""


@dataclass(frozen=True)
class ItemDescription:
    """Display columns of an item; an empty string where there is none.

    Attributes:
        text: title or description.
        topic_l1: coarse topic.
        topic_l2: fine topic.
        image: file name or address of its picture.
    """

    text: str
    topic_l1: str
    topic_l2: str
    image: str = ""


class Catalogue:
    """Ids and columns of the items: those of the built version (indices 0 to I - 1), then F items added since.

    Immutable: ``with_added`` and ``with_removed`` return another one that shares what did not change. A removed item
    keeps its index, so that it may still be a trigger; it is just never an answer.

    Args:
        items: of the index; row number = item index.
    """

    def __init__(self, items: StoredItems) -> None:
        self.answerable: Mask | None = None
        if REMOVED in items.table.column_names:
            self.answerable = ~items.table.column(REMOVED).to_numpy().astype(bool)
        self._base = _Base(items)
        self._added = self._base.items.table.slice(0, 0)
        self._added_at: dict[ItemId, int] = {}

    @property
    def id_type(self) -> str:
        """``int64`` or ``string``."""
        return self._base.id_type

    def __len__(self) -> int:
        """I + F, removed items included."""
        return len(self._base.items) + len(self._added)

    @property
    def num_answerable(self) -> int:
        """Items that may be answers."""
        return len(self) if self.answerable is None else int(np.count_nonzero(self.answerable))

    def with_added(self, items: pa.Table, *, answerable: bool = True) -> Catalogue:
        """The catalogue with more items, or with new rows of items that were removed.

        Args:
            items: ``item_id`` and display columns, of which some may be absent; the ids are not among the answerable
                ones.
            answerable: False: they only serve as triggers.
        """
        changed = self._copy()
        changed._added = pa.concat_tables([self._added, _of_schema(items, self._added.schema)])
        ids = items.column("item_id").to_pylist()
        changed._added_at = self._added_at | {item: len(self) + place for place, item in enumerate(ids)}
        if self.answerable is not None or not answerable:
            before = np.ones(len(self), bool) if self.answerable is None else self.answerable
            changed.answerable = np.concatenate([before, np.full(len(ids), answerable)])
        return changed

    def with_removed(self, indices: Indices) -> Catalogue:
        """The catalogue without items of these indices among the answers."""
        changed = self._copy()
        changed.answerable = np.ones(len(self), bool) if self.answerable is None else self.answerable.copy()
        changed.answerable[indices] = False
        return changed

    def with_returned(self, indices: Indices) -> Catalogue:
        """The catalogue with removed items of these indices among the answers again."""
        changed = self._copy()
        if self.answerable is not None:
            changed.answerable = self.answerable.copy()
            changed.answerable[indices] = True
        return changed

    def find(self, ids: Sequence[ItemId], role: str, field: str = "") -> npt.NDArray[np.int64]:
        """Item indices of ids, -1: not in the index; digits in a string are an id of an int64 catalogue.

        Args:
            ids: item ids.
            role: what they are, for the message.
            field: of the request, likewise.

        Raises:
            RequestError: an id of the wrong type, or one string in the place of a list.
        """
        if isinstance(ids, (str, bytes)):  # would be taken for a list of its characters
            raise RequestError(f"{role}: expected a list of ids, got {ids!r}", field)
        plain = int if self.id_type == "int64" else str
        # A list of plain ids is checked at once, however long; what is wrong with others the slow path names.
        simple = set(map(type, ids)) <= {plain}
        if simple and plain is int and len(ids):
            simple = -(2**63) <= min(map(int, ids)) <= max(map(int, ids)) < 2**63
        typed = ids if simple else [self.typed(item, role, field) for item in ids]
        found = self._base.find(typed)
        if self._added_at:
            for place, item in enumerate(typed):
                found[place] = self._added_at.get(item, found[place])
        return found

    def find_answerable(self, ids: Sequence[ItemId], role: str) -> npt.NDArray[np.int64]:
        """As ``find``; -1 also for items that are no answers (any more)."""
        found = self.find(ids, role)
        if self.answerable is not None and len(found):
            found[~self.answerable[found]] = -1
        return found

    def find_trained(self, ids: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        """Indices of the rows that training made of ids, removed or not; -1: of no event of the training period."""
        found = self._base.find(ids)
        here = np.flatnonzero(found >= 0)
        counts = numbers(self._base.items.take(found[here], ["train_count"]).column(0))
        found[here[counts <= 0]] = -1
        return found

    def indices(self, ids: Sequence[ItemId], role: str, field: str = "") -> npt.NDArray[np.int64]:
        """Item indices of ids that must be known.

        Raises:
            UnknownItemError: an id is not in the index; the message names it.
            RequestError: an id of the wrong type.
        """
        found = self.find(ids, role, field)
        if len(found) and found.min() < 0:
            raise self.unknown([ids[place] for place in np.flatnonzero(found < 0).tolist()], role)
        return found

    def unknown(self, ids: Sequence[ItemId], role: str) -> UnknownItemError:
        """The error that says which ids the index does not hold."""
        shown = ", ".join(repr(item) for item in ids[:5]) + (", ..." if len(ids) > 5 else "")
        return UnknownItemError(f"unknown {role} {shown}: not among the {len(self)} items of this index")

    def typed(self, item: ItemId, role: str, field: str = "") -> ItemId:
        """An id in the type of this catalogue.

        Raises:
            RequestError: it is of another type.
        """
        if isinstance(item, str) and self.id_type == "string":
            return item
        if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if self.id_type == "string":
                return str(item)
            if -(2**63) <= item < 2**63:
                return int(item)
        if isinstance(item, str) and _DIGITS.fullmatch(item):
            return self.typed(int(item), role, field)
        raise RequestError(f"{role} {item!r}: item ids of this index are of type {self.id_type}", field)

    def ids(self, indices: Indices) -> list[ItemId]:
        """Ids of item indices."""
        if not len(self._added):
            return self._base.ids(indices)
        places = np.asarray(indices)
        added = places >= len(self._base.items)
        found = self._base.ids(np.where(added, 0, places))
        ids = self._added_ids
        for place in np.flatnonzero(added):
            found[place] = ids[places[place] - len(self._base.items)]
        return found

    def describe(self, indices: Indices) -> list[ItemDescription]:
        """Display columns of item indices; empty ones for index -1."""
        places = np.asarray(indices)
        base, added = places < len(self._base.items), places >= len(self._base.items)
        described = [ItemDescription("", "", "")] * len(places)
        shown = [name for name in DISPLAY_COLUMNS if name in self._added.column_names]
        for table, chosen, start in (
            (self._base.items, base & (places >= 0), 0),
            (TableRows(self._added), added, len(self._base.items)),
        ):
            where = np.flatnonzero(chosen)
            if len(where):
                columns = [column.to_pylist() for column in table.take(places[where] - start, shown).columns]
                for place, values in zip(where.tolist(), zip(*columns, strict=True), strict=True):
                    described[place] = ItemDescription(
                        **{name: value or "" for name, value in zip(shown, values, strict=True)}
                    )
        return described

    def columns(self, indices: Indices, names: Sequence[str]) -> pa.Table:
        """Columns of item indices, as they are stored; N rows."""
        return self._all.take(indices, names)

    @cached_property
    def _all(self) -> TableRows:
        """The I + F items; row number = item index."""
        return self._base.items.with_more(self._added) if len(self._added) else self._base.items

    def meeting(self, name: str, condition: Condition, field: str) -> Mask:
        """[I + F] which items have a value in a column that meets a condition; as ``ItemColumn.meets``.

        Raises:
            RequestError: no such column, or a condition that does not fit it.
        """
        met = self.column(name, field).meets(condition, field)
        if not len(self._added):
            return met
        return np.concatenate([met, ItemColumn(self._added.column(name)).meets(condition, field)])

    def absent(self, name: str, values: Value | Sequence[Value], field: str) -> list[str]:
        """A line for each of some values that no item has in a column, up to a few.

        Raises:
            RequestError: no such column, or values of another type.
        """
        column = self.column(name, field)
        gone = column.absent(column.checked(values, field))
        if len(self._added):
            gone = ItemColumn(self._added.column(name)).absent(gone)
        lines = [f"{field}: no item has {value!r}{column.meant(value)}" for value in gone[:_TOLD]]
        more = len(gone) - _TOLD
        return lines + ([f"{field}: nor any of {more} more of these values"] if more > 0 else [])

    def column(self, name: str, field: str) -> ItemColumn:
        """A column of the I items of the version.

        Raises:
            RequestError: there is none.
        """
        if name not in self.column_names:
            names = ", ".join(self.column_names)
            raise RequestError(
                f"no column {name!r} of the items{meant(name, self.column_names)}; there are {names}", field
            )
        return self._base.column(name)

    @property
    def column_names(self) -> list[str]:
        """The columns that conditions, caps and boosts may name."""
        return self._base.column_names

    def seen_since(self, instant: int) -> Mask:
        """[I + F] which items were first seen at ``instant`` or later; items never seen count as the newest."""
        return self._first_seen >= instant

    def popular(self, count: int, allowed: Mask | None) -> npt.NDArray[np.int64]:
        """The allowed items with most events in the training period, at most ``count``, most first."""
        order = self._base.by_popularity
        if allowed is not None:
            order = order[allowed[order]]
        return order[:count]

    def popularity(self, indices: Indices) -> npt.NDArray[np.float64]:
        """Share of the training period's events that items of the version have."""
        counts = self._base.train_count
        return np.asarray(counts[indices] / max(1, counts.sum()), np.float64)

    def answers(self, names: Sequence[str]) -> pa.Table:
        """Columns of the items that may be answers."""
        items = self._all.table.select(list(names))
        return items if self.answerable is None else items.filter(pa.array(self.answerable))

    def find_by_text(self, query: str, limit: int) -> Indices:
        """Items that may be answers, by words of their text or by their id; as ``ItemTexts.search``."""
        rows = self._texts.search(query, limit)
        return rows if self.answerable is None else np.flatnonzero(self.answerable)[rows]

    @cached_property
    def _texts(self) -> ItemTexts:
        return ItemTexts(self.answers(["item_id", "text", "train_count"]))

    @cached_property
    def latest(self) -> npt.NDArray[np.int64]:
        """The items without the rows that others took the place of, because a removed item was added anew."""
        base = np.arange(len(self._base.items))
        anew = self._base.find(list(self._added_at))
        added = np.fromiter(self._added_at.values(), np.int64, len(self._added_at))
        return np.concatenate([np.setdiff1d(base, anew), np.sort(added)])

    def stored(self, indices: Indices) -> pa.Table:
        """Rows of item indices with all columns, for a version of its own: one of them says which are removed."""
        rows = self._all.take(indices, self._added.column_names)
        if self.answerable is None or self.answerable[indices].all():
            return rows
        return rows.append_column(REMOVED, pa.array(~self.answerable[indices]))

    @cached_property
    def _added_ids(self) -> list[ItemId]:
        return self._added.column("item_id").to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def _first_seen(self) -> npt.NDArray[np.int64]:
        if not len(self._added):
            return self._base.first_seen
        return np.concatenate([self._base.first_seen, _first_seen(self._added)])

    def _copy(self) -> Catalogue:
        copy = object.__new__(Catalogue)
        copy._base, copy._added, copy._added_at = self._base, self._added, self._added_at
        copy.answerable = self.answerable
        return copy


class _Base:
    """The items of the built version, in the forms in which they are looked up."""

    def __init__(self, stored: StoredItems) -> None:
        items = stored.table.select([name for name in stored.table.column_names if name != REMOVED])
        if "first_seen" not in items.column_names:
            items = items.append_column("first_seen", pa.nulls(len(items), pa.int64()))
        self.items = TableRows(items)
        self.id_type = "string" if stored.ids is None else "int64"
        self._ids, self._order = stored.ids, stored.order
        self.column_names = [field.name for field in items.schema if is_filterable(field.type)]
        self._columns: dict[str, ItemColumn] = {}

    def ids(self, indices: Indices) -> list[ItemId]:
        """Ids of indices."""
        if self._ids is not None:
            return self._ids[indices].tolist()  # type: ignore[no-any-return]
        return self.items.take(indices, [ITEM_ID]).column(0).to_pylist()  # type: ignore[no-any-return]

    def find(self, ids: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        """Indices of ids of the right type, -1: not there."""
        if self._ids is not None:
            return self._order.find(np.asarray(ids, np.int64), None)
        return self._order.find(np.asarray(ids, np.dtypes.StringDType()), self.ids)

    def column(self, name: str) -> ItemColumn:
        """One that is there; kept, for its first use takes a pass over all items."""
        if name not in self._columns:
            self._columns[name] = ItemColumn(self.items.table.column(name))
        return self._columns[name]

    @cached_property
    def first_seen(self) -> npt.NDArray[np.int64]:
        """[I] instants at which the items were first seen."""
        return _first_seen(self.items.table)

    @cached_property
    def train_count(self) -> npt.NDArray[np.int64]:
        """[I] events of the training period."""
        return numbers(self.items.table.column("train_count"))

    @cached_property
    def by_popularity(self) -> npt.NDArray[np.int64]:
        """[I] item indices, most events first."""
        return np.argsort(-self.train_count, kind="stable")


def _of_schema(items: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; no events were counted of new items, and other absent columns are empty."""
    columns = []
    for field in schema:
        if field.name in items.column_names:
            columns.append(items.column(field.name).cast(field.type))
        elif field.name == "train_count":
            columns.append(pa.array(np.zeros(len(items)), field.type))
        else:
            columns.append(pa.nulls(len(items), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _first_seen(items: pa.Table) -> npt.NDArray[np.int64]:
    column = pc.fill_null(items.column("first_seen").cast(pa.int64()), _ALWAYS_NEW)
    return numbers(column)
