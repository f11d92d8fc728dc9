"""Writes the items' side of a dataset: items.parquet and the memory-mapped inputs of the item tower.

Vocabularies and statistics come from items with T1 events; every other item takes what those define. Each function here
writes from rows in the order of the item indices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtmh.data.arrays import Indices, narrowed, row_type
from mtmh.data.row_file import create_array
from mtmh.data.schema import (
    FLOAT_FEATURES,
    FLOAT_SCALES,
    ITEM_FEATURES,
    ITEM_ID,
    ITEM_TABLE,
    ITEMS,
    RAW_IDS,
    TRAIN_AGE,
    TRAIN_COUNT,
    TRAIN_COUNTS,
    VOCABULARY,
    FloatScale,
    FloatScales,
    vocabulary_file,
)
from mtmh.data.table_rows import arrow, numbers, with_nan
from mtmh.prepare.engine import Rows, rechunked

BATCH_ITEMS = 65_536


def choose_features(kind: str, wanted: list[str] | None, offered: tuple[str, ...]) -> tuple[str, ...]:
    """The features of one kind (``id_features`` or ``float_features``) that the dataset will hold.

    Raises:
        ValueError: one that the source does not offer, a repeated one, or a name that cannot be a file name.
    """
    names = offered if wanted is None else tuple(name for name in wanted if name != ITEM_ID)
    for name in names:
        if name not in offered:
            raise ValueError(f"data.{kind}: the source offers no {name!r}, only {', '.join(offered) or 'none'}")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in (ITEM_ID, TRAIN_COUNT, TRAIN_AGE):
            raise ValueError(
                f"data.{kind}: {name!r} cannot name a feature: expected letters, digits and underscores, "
                f"and none of {ITEM_ID}, {TRAIN_COUNT}, {TRAIN_AGE}"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"data.{kind}: a feature is named twice: {', '.join(names)}")
    return names


def write_item_rows(
    streams: Mapping[str, Rows], folder: Path, *, id_type: pa.DataType, embedding_dim: int | None
) -> bool:
    """Writes items.parquet from ``rows`` (`statements.items`); returns whether any item has a coarse topic."""
    fields = [(ITEM_ID, id_type)]
    fields += [(name, pa.string()) for name in ("text", "image", "topic_l1", "topic_l2")]
    fields += [("train_count", pa.int64()), ("first_seen", pa.int64())]
    if embedding_dim is not None:
        fields.append(("content_embedding", pa.list_(pa.float32(), embedding_dim)))
    schema = pa.schema(fields)
    has_topics = False
    with pq.ParquetWriter(folder / ITEMS, schema, compression="zstd") as writer:
        for rows in rechunked(streams["rows"], BATCH_ITEMS):
            columns = [rows.column(name).cast(schema.field(name).type) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows.num_rows)
            topics = rows.column("topic_l1")
            has_topics = has_topics or topics.null_count < len(topics)
    return has_topics


def write_item_features(
    streams: Mapping[str, Rows], folder: Path, *, id_types: Mapping[str, pa.DataType], float_features: Sequence[str]
) -> None:
    """Writes item_features.parquet from ``rows`` (`statements.item_features`).

    Args:
        streams: the rows.
        folder: of the dataset.
        id_types: of the values of the id features.
        float_features: names of the others.
    """
    kinds = {name: pa.list_(kind) for name, kind in id_types.items()} | dict.fromkeys(float_features, pa.float64())
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(folder / ITEM_FEATURES, schema, compression="zstd") as writer:
        for rows in rechunked(streams["rows"], BATCH_ITEMS):
            columns = [rows.column(name).cast(kind) for name, kind in kinds.items()]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows.num_rows)


def write_item_ids(streams: Mapping[str, Rows], folder: Path, *, id_type: pa.DataType) -> int:
    """Writes the counts of T1, the feature ``item_id``, its vocabulary and the raw ids.

    Args:
        streams: ``counts`` (`statements.item_counts`), ``values`` (`statements.item_vocabulary`), ``raw_ids``.
        folder: of the dataset.
        id_type: of the item ids.

    Returns:
        Items with a T1 event.
    """
    table = _folder(folder / ITEM_TABLE)
    train_count = _column(streams["counts"], "train_count", np.int64)
    np.save(table / TRAIN_COUNTS, train_count)
    seen = train_count > 0
    num_rows = 1 + int(seen.sum())
    rows = narrowed(np.where(seen, np.cumsum(seen), 0), num_rows)
    _save_lists(table, ITEM_ID, rows, np.arange(len(seen) + 1))
    _write_vocabulary(streams["values"], folder, ITEM_ID, id_type, num_rows)
    np.save(folder / RAW_IDS, _column(streams["raw_ids"], "raw_id", np.int64))
    return num_rows - 1


def write_id_feature(
    streams: Mapping[str, Rows], folder: Path, *, name: str, value_type: pa.DataType, num_items: int, num_rows: int
) -> None:
    """Writes an id feature and its vocabulary.

    Args:
        streams: ``rows`` (`statements.feature_rows`) and ``values`` (`statements.rows_of_vocabulary`).
        folder: of the dataset.
        name: of the feature.
        value_type: of its values.
        num_items: of the catalogue.
        num_rows: of the vocabulary, row 0 (unknown) included.
    """
    kind = row_type(num_rows)
    parts: list[Indices] = [np.empty(0, kind)]
    per_item = np.zeros(num_items, np.int64)
    for rows in streams["rows"]:
        parts.append(numbers(rows["row"]).astype(kind))
        items = numbers(rows["item_index"])  # ascending: a batch counts in the range of its own items
        if len(items):
            counts = np.bincount(items - items[0])
            per_item[items[0] : items[0] + len(counts)] += counts
    offsets = np.concatenate(([0], np.cumsum(per_item)))
    _save_lists(_folder(folder / ITEM_TABLE), name, np.concatenate(parts), offsets)
    _write_vocabulary(streams["values"], folder, name, value_type, num_rows)


def write_float_features(
    streams: Mapping[str, Rows], folder: Path, *, names: Sequence[str], popularity: Sequence[str], now: int | None
) -> None:
    """Writes the float features and their scales.

    Args:
        streams: ``counts`` (`statements.item_counts`), and the values of each feature as ``feature_NAME``.
        folder: of the dataset.
        names: of the source's features.
        popularity: those of `TRAIN_COUNT` and `TRAIN_AGE` that are wanted beside them.
        now: the instant to which an item's age is counted.
    """
    counts = pa.concat_tables(streams["counts"])
    train_count = numbers(counts["train_count"])
    seen = train_count > 0
    floats = create_array(
        _folder(folder / ITEM_TABLE) / FLOAT_FEATURES, np.float32, (len(seen), len(names) + len(popularity))
    )
    scales: list[FloatScale] = []
    for column, name in enumerate([*names, *popularity]):
        # An item without a T1 event counts as missing: a count of 0 would mark the items that are never positives.
        if name == TRAIN_COUNT:
            value = np.where(seen, np.log1p(train_count), np.nan)
        elif name == TRAIN_AGE:
            assert now is not None
            value = now - with_nan(counts["first_seen"])
        else:
            value = np.concatenate([np.empty(0), *(with_nan(rows["value"]) for rows in streams[f"feature_{name}"])])
        scales.append(FloatScale.measured(name, value[seen]))
        floats[:, column] = scales[-1].standardise(value)
    floats.flush()
    (folder / FLOAT_SCALES).write_text(FloatScales(features=scales).model_dump_json(indent=2))


def _column(rows: Rows, name: str, dtype: type[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype), *(numbers(part[name]) for part in rows)])


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _save_lists(table: Path, name: str, values: Indices, offsets: NDArray[np.int64]) -> None:
    np.save(table / f"{name}.values.npy", values)
    np.save(table / f"{name}.offsets.npy", offsets.astype(np.int64))


def _write_vocabulary(
    values: Iterable[pa.Table], folder: Path, name: str, value_type: pa.DataType, num_rows: int
) -> None:
    """Values with their rows, which are 1, 2, ... in the order in which they come."""
    kind = pa.from_numpy_dtype(row_type(num_rows))
    schema = pa.schema([("value", value_type), ("row", kind)])
    _folder(folder / VOCABULARY)
    row = 1
    with pq.ParquetWriter(folder / vocabulary_file(name), schema, compression="zstd") as writer:
        for part in rechunked(values, BATCH_ITEMS):
            rows = arrow(np.arange(row, row + part.num_rows)).cast(kind)
            writer.write_table(
                pa.table([part["value"].cast(value_type), rows], schema=schema), row_group_size=part.num_rows
            )
            row += part.num_rows
    assert row == num_rows, f"{name}: {row - 1} values in a vocabulary of {num_rows} rows"
