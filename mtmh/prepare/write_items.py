"""Writes the items' side of a dataset: items.parquet and the memory-mapped inputs of the item tower.

Vocabularies and statistics come from items with T1 events; every other item takes what those define.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtmh.data.row_file import create_array
from mtmh.data.schema import (
    FLOAT_SCALES,
    ITEM_FEATURES,
    ITEM_ID,
    ITEM_TABLE,
    ITEMS,
    RAW_IDS,
    TRAIN_AGE,
    TRAIN_COUNT,
    VOCABULARY,
    FeatureSchema,
    FloatScale,
    FloatScales,
    IdFeature,
    vocabulary_file,
)
from mtmh.prepare import statements
from mtmh.prepare.write_histories import NEVER, HistoryFacts

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


def check_embeddings(connection: Any) -> int | None:
    """The one width of all content embeddings; ``None``: there are none.

    Raises:
        ValueError: widths differ, or an embedding holds something that is no finite number; names an item.
    """
    widths = connection.sql(statements.embedding_widths()).fetchall()
    if not widths:
        return None
    if len(widths) > 1:
        (width, _, num_items), (other, item_id, _), *_ = widths
        raise ValueError(
            f"content_embedding: item {item_id!r} has {other} numbers, but {num_items} items have {width}: "
            "expected one width"
        )
    for (item_id,) in connection.sql(statements.broken_embedding()).fetchall():
        raise ValueError(f"content_embedding: item {item_id!r} holds NaN, infinity or a missing number")
    return int(widths[0][0]) or None


def write_item_rows(connection: Any, folder: Path, embedding_dim: int | None) -> bool:
    """Writes items.parquet from ``item_facts``; returns whether any item has a coarse topic."""
    schema = _items_schema(connection, embedding_dim)
    reader = connection.sql(statements.items()).to_arrow_reader(BATCH_ITEMS)
    has_topics = False
    with pq.ParquetWriter(folder / ITEMS, schema, compression="zstd") as writer:
        for batch in reader:
            columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            topics = batch.column("topic_l1")
            has_topics = has_topics or topics.null_count < len(topics)
    return has_topics


def write_item_features(
    connection: Any, folder: Path, id_features: tuple[str, ...], float_features: tuple[str, ...]
) -> None:
    """Writes item_features.parquet from ``item_facts``; nothing where there is no feature."""
    if not (id_features or float_features):
        return
    types = dict(row[:2] for row in connection.sql("DESCRIBE source_items").fetchall())
    lists = {name: types[name].endswith("]") for name in id_features}
    reader = connection.sql(statements.item_features(lists, float_features)).to_arrow_reader(BATCH_ITEMS)
    kinds = {
        name: pa.list_(pa.int64() if pa.types.is_integer(reader.schema.field(name).type.value_type) else pa.string())
        for name in id_features
    } | dict.fromkeys(float_features, pa.float64())
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(folder / ITEM_FEATURES, schema, compression="zstd") as writer:
        for batch in reader:
            columns = [batch.column(name).cast(kind) for name, kind in kinds.items()]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def write_item_table(
    connection: Any,
    folder: Path,
    facts: HistoryFacts,
    id_features: tuple[str, ...],
    float_features: tuple[str, ...],
    *,
    now: int | None,
    popularity: bool,
    min_feature_count: int,
    seed: int,
) -> FeatureSchema:
    """Writes the folders ``item_table`` and ``vocabulary`` from ``item_facts``.

    Args:
        connection: DuckDB.
        folder: of the dataset.
        facts: counts and first timestamps of the histories.
        id_features: names beside ``item_id``.
        float_features: names.
        now: the instant to which an item's age is counted; ``None``: the source has no clock, so there is no age.
        popularity: add the T1 count and the age as float features.
        min_feature_count: values of id features that fewer T1 items carry share row 0.
        seed: of the vocabularies' order.
    """
    table = folder / ITEM_TABLE
    table.mkdir()
    (folder / VOCABULARY).mkdir()
    seen = facts.train_count > 0
    np.save(table / "train_count.npy", facts.train_count)
    _save_raw_ids(connection, folder, len(seen))

    item_rows = np.where(seen, np.cumsum(seen), 0).astype(np.int32)
    _save_lists(table, ITEM_ID, item_rows, np.arange(len(seen) + 1))
    ids = [IdFeature(name=ITEM_ID, num_rows=int(seen.sum()) + 1)]
    _save_vocabulary(connection, folder, ITEM_ID, statements.item_vocabulary())
    types = dict(row[:2] for row in connection.sql("DESCRIBE source_items").fetchall())
    for name in id_features:
        is_list = types[name].endswith("]")
        connection.execute(statements.vocabulary(name, is_list, min_feature_count, seed))
        num_values = connection.sql("SELECT count(*) FROM vocabulary").fetchall()[0][0]
        rows = connection.sql(statements.feature_rows(name, is_list)).to_arrow_table()
        per_item = np.bincount(rows["item_index"].to_numpy(), minlength=len(seen))
        _save_lists(table, name, rows["row"].to_numpy(), np.concatenate(([0], np.cumsum(per_item))))
        _save_vocabulary(connection, folder, name, statements.rows_of_vocabulary())
        ids.append(IdFeature(name=name, num_rows=num_values + 1))

    values: dict[str, NDArray[np.float64]] = {}
    if popularity:
        # An item without a T1 event counts as missing: a count of 0 would mark the items that are never positives.
        values[TRAIN_COUNT] = np.where(seen, np.log1p(facts.train_count), np.nan)
        if now is not None:
            values[TRAIN_AGE] = np.where(seen, now - facts.first_seen.astype(np.float64), np.nan)
    names = [*float_features, *values]
    floats = create_array(table / "float_features.npy", np.float32, (len(seen), len(names)))
    scales: list[FloatScale] = []
    for column, name in enumerate(names):
        value = values[name] if name in values else _float_column(connection, name, len(seen))
        scales.append(FloatScale.measured(name, value[seen]))
        floats[:, column] = scales[-1].standardise(value)
    floats.flush()
    (folder / FLOAT_SCALES).write_text(FloatScales(features=scales).model_dump_json(indent=2))
    return FeatureSchema(id_features=ids, float_features=names)


def _save_raw_ids(connection: Any, folder: Path, num_items: int) -> None:
    ids = create_array(folder / RAW_IDS, np.int64, (num_items,))
    start = 0
    for batch in connection.sql(statements.select_raw_ids(_id_is_string(connection))).to_arrow_reader(BATCH_ITEMS):
        ids[start : start + len(batch)] = batch.column(0).to_numpy()
        start += len(batch)
    assert start == num_items
    ids.flush()


def _id_is_string(connection: Any) -> bool:
    return bool(pa.types.is_string(_items_schema(connection, None).field(ITEM_ID).type))


def item_facts(item_index: NDArray[np.int32], facts: HistoryFacts) -> pa.Table:
    """The rows of the table ``item_facts``, one an item code."""
    return pa.table(
        {
            "item_code": pa.array(np.arange(len(item_index), dtype=np.int32)),
            "item_index": pa.array(item_index),
            "train_count": pa.array(facts.train_count[item_index]),
            "first_seen": pa.array(facts.first_seen[item_index], mask=facts.first_seen[item_index] == NEVER),
        }
    )


def _float_column(connection: Any, name: str, num_items: int) -> NDArray[np.float64]:
    rows = connection.sql(statements.float_feature(name)).to_arrow_table()
    values = np.full(num_items, np.nan)
    values[rows["item_index"].to_numpy()] = rows["value"].to_numpy()
    return values


def _save_lists(table: Path, name: str, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
    np.save(table / f"{name}.values.npy", values.astype(np.int32))
    np.save(table / f"{name}.offsets.npy", offsets.astype(np.int64))


def _save_vocabulary(connection: Any, folder: Path, name: str, query: str) -> None:
    reader = connection.sql(query).to_arrow_reader(BATCH_ITEMS)
    with pq.ParquetWriter(folder / vocabulary_file(name), reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def _items_schema(connection: Any, embedding_dim: int | None) -> pa.Schema:
    item_id = connection.sql("SELECT item_id FROM catalogue LIMIT 0").to_arrow_table().schema.field(0).type
    fields = [("item_id", item_id)]
    fields += [(name, pa.string()) for name in ("text", "image", "topic_l1", "topic_l2")]
    fields += [("train_count", pa.int64()), ("first_seen", pa.int64())]
    if embedding_dim is not None:
        fields.append(("content_embedding", pa.list_(pa.float32(), embedding_dim)))
    return pa.schema(fields)
