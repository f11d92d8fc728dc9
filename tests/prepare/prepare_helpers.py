"""Tiny tables, a naive reference of prepare in plain Python, and a reader of what prepare wrote."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.artifacts import Artifact
from mtmh.config import Config
from mtmh.data.schema import HISTORIES, HISTORY_LENGTHS, ITEM_TABLE, ITEMS, TEST, USERS
from mtmh.prepare.prepare import prepare

Event = tuple[Any, Any, Any]  # user, item, time


def make_config(folder: Path, seed: int = 0, **data: Any) -> Config:
    return Config.model_validate(
        {"name": "test", "seed": seed, "paths": {"root": folder}, "data": {"source": "tables", "input": folder, **data}}
    )


def write_tables(folder: Path, events: list[Event], items: dict[str, list[Any]] | pa.Table | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    users, ids, times = ([event[i] for event in events] for i in range(3))
    pq.write_table(pa.table({"user_id": users, "item_id": ids, "timestamp": times}), folder / "events.parquet")
    if items is not None:
        pq.write_table(items if isinstance(items, pa.Table) else pa.table(items), folder / "items.parquet")


def prepare_tables(
    folder: Path,
    events: list[Event],
    items: dict[str, list[Any]] | pa.Table | None = None,
    *,
    seed: int = 0,
    out: Path | None = None,
    **data: Any,
) -> Artifact:
    write_tables(folder, events, items)
    files = {"events": ["events.parquet"], **({"items": ["items.parquet"]} if items is not None else {})}
    return prepare(make_config(folder, seed, **files, **data), out or folder / "dataset")


@dataclass
class Written:
    """A dataset artifact in the terms of the input: ids instead of indices."""

    item_ids: list[Any]
    histories: dict[Any, list[tuple[Any, int]]]
    test: dict[Any, list[tuple[Any, int]]]

    @classmethod
    def read(cls, path: Path) -> Written:
        items = pq.read_table(path / ITEMS)["item_id"].to_pylist()
        users = pq.read_table(path / USERS)
        assert users["user_index"].to_pylist() == list(range(len(users)))
        user_ids = users["user_id"].to_pylist()

        def lists(name: Path) -> dict[Any, list[tuple[Any, int]]]:
            return {
                user_ids[row["user_index"]]: [
                    (items[i], t) for i, t in zip(row["items"], row["timestamps"], strict=True)
                ]
                for row in pq.read_table(path / name).to_pylist()
            }

        written = cls(items, lists(HISTORIES), lists(TEST))
        lengths = np.load(path / HISTORY_LENGTHS, allow_pickle=False)
        assert lengths.dtype == np.int32
        assert lengths.tolist() == [len(history) for history in written.histories.values()]
        return written


@dataclass
class Feature:
    """One id feature of the item table."""

    rows: list[list[int]]

    @classmethod
    def read(cls, path: Path, name: str) -> Feature:
        values = np.load(path / ITEM_TABLE / f"{name}.values.npy", allow_pickle=False)
        offsets = np.load(path / ITEM_TABLE / f"{name}.offsets.npy", allow_pickle=False)
        assert (values.dtype, offsets.dtype) == (np.int32, np.int64)
        assert offsets[0] == 0
        assert offsets[-1] == len(values)
        return cls([values[a:b].tolist() for a, b in pairwise(offsets)])


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.suffix != ".json"}


def naive_prepare(
    events: list[Event],
    order: list[Any],
    *,
    known_items: set[Any] | None = None,
    cutoff: int | None = None,
    test_fraction: float = 0.2,
    min_user_events: int = 2,
    min_item_events: int = 1,
    max_history: int = 1000,
) -> tuple[dict[Any, list[tuple[Any, int]]], dict[Any, list[tuple[Any, int]]], Counter[str]]:
    """Histories, test lists and drop counts, one event after another.

    Args:
        events: rows.
        order: item ids in item-index order, which breaks ties in time.
        known_items: the items table, if any.
        cutoff: of a time split; ``None``: cut per user.
    """
    drops: Counter[str] = Counter()
    by_user = defaultdict(list)
    for user, item, time in events:
        if user is None:
            drops["no_user"] += 1
        elif item is None:
            drops["no_item"] += 1
        elif time is None:
            drops["no_timestamp"] += 1
        elif known_items is not None and item not in known_items:
            drops["unknown_item"] += 1
        else:
            by_user[user].append((time, order.index(item)))
    train: dict[Any, list[tuple[int, int]]] = {}
    future: dict[Any, list[tuple[int, int]]] = {}
    for user, rows in by_user.items():
        rows.sort()
        kept = [row for i, row in enumerate(rows) if i == 0 or rows[i - 1][1] != row[1]]
        drops["consecutive_repeat"] += len(rows) - len(kept)
        if cutoff is None:
            held_out = min(len(kept) - 1, max(1, int(len(kept) * test_fraction + 0.5)))
            train[user], future[user] = kept[: len(kept) - held_out], kept[len(kept) - held_out :]
        else:
            train[user] = [row for row in kept if row[0] < cutoff]
            future[user] = [row for row in kept if row[0] >= cutoff]
    counts = Counter(item for rows in train.values() for _, item in rows)
    histories, test = {}, {}
    for user in by_user:
        frequent = [row for row in train[user] if counts[row[1]] >= min_item_events]
        drops["rare_item"] += len(train[user]) - len(frequent)
        if len(frequent) < min_user_events:
            drops["short_history"] += len(frequent)
            drops["test_without_history"] += len(future[user])
            continue
        drops["beyond_max_history"] += max(0, len(frequent) - max_history)
        histories[user] = [(order[item], time) for time, item in frequent[-max_history:]]
        first: dict[int, int] = {}
        for time, item in future[user]:
            first.setdefault(item, time)
        drops["repeated_in_test"] += len(future[user]) - len(first)
        if first:
            test[user] = [(order[item], time) for item, time in first.items()]
    return histories, test, +drops
