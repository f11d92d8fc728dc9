"""Writes tiny dataset artifacts straight from arrays, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.arrays import row_type
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.ids import raw_ids
from mtmh.data.loader import PairLoader
from mtmh.data.schema import (
    FLOAT_SCALES,
    HISTORIES,
    HISTORY_LENGTHS,
    ITEM_FEATURES,
    ITEM_TABLE,
    ITEMS,
    RAW_IDS,
    TEST,
    VOCABULARY,
    DatasetSummary,
    FeatureSchema,
    FloatScale,
    FloatScales,
    IdFeature,
    vocabulary_file,
)

NUM_ITEMS = 60
NUM_BRANDS = 7
NUM_TAGS = 9


def make_config(root: Path, **sections: dict[str, Any]) -> Config:
    """A recipe whose batches fit ``write_dataset``; a section given here replaces its defaults key by key."""
    tree: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "paths": {"root": str(root)},
        "data": {"source": "synthetic"},
        "pairs": {"window": 4},
        "training": {"batch_size": 24, "num_shards": 6, "shuffle_pairs": 20, "epochs": 2},
        "loss": {"num_uniform_negatives": 10, "history_mask_length": 5},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Config.model_validate(tree)


def pair_loader(
    dataset: Dataset,
    config: Config,
    rank: int = 0,
    world_size: int = 1,
    content: ContentEmbeddings | None = None,
    *,
    pin_memory: bool = False,
) -> PairLoader:
    """The loader of a recipe's batches."""
    return PairLoader(
        dataset,
        config.pairs,
        config.loss,
        config.training,
        config.model,
        config.seed,
        rank,
        world_size,
        content,
        pin_memory=pin_memory,
    )


def random_histories(num_users: int, seed: int = 0, num_items: int = NUM_ITEMS) -> list[list[int]]:
    """Histories of 0 to 19 items over the first five sixths of the catalogue; items repeat."""
    rng = np.random.default_rng(seed)
    known = num_items * 5 // 6
    return [rng.integers(0, known, rng.integers(0, 20)).tolist() for _ in range(num_users)]


def shelf_histories(num_items: int, shelf: int, shortest: int) -> list[list[int]]:
    """Sixty users who keep to one shelf of items each, from a number of events on; the last shelf stays fresh."""
    rng = np.random.default_rng(1)
    shelves = rng.integers(0, num_items // shelf - 1, 60)
    return [(shelf * own + rng.integers(0, shelf, rng.integers(shortest, 20))).tolist() for own in shelves]


def write_dataset(
    path: Path,
    histories: Sequence[Sequence[int]],
    *,
    test: dict[int, list[int]] | None = None,
    item_ids: Sequence[int] | Sequence[str] | None = None,
    num_items: int = NUM_ITEMS,
    row_group_size: int = 5,
    seed: int = 0,
    timestamps: Sequence[Sequence[int]] | None = None,
    float_features: Sequence[str] = ("price", "age"),
    changes: dict[Path, npt.NDArray[Any]] | None = None,
    rows_before: int = 0,
) -> Dataset:
    """A dataset artifact with features item_id, brand (single), tags (0 to 3 values) and two floats.

    The raw value of brand row ``r`` is ``100 * r``, that of tags row ``r`` is ``"tag r"``; floats are as they are.

    Args:
        path: where.
        histories: item indices of each user; user ``u`` is row ``u`` and has user_index ``1000 + 7 * u % num_users``.
        test: test items by row of ``histories``.
        item_ids: of the catalogue; ``10 * index`` by default.
        num_items: size of the catalogue.
        row_group_size: users a row group.
        seed: of the features.
        timestamps: of the events of each user; then the dataset is cut at one instant, after all of them.
        float_features: names of the two.
        rows_before: rows of item_id that no item has, before the first that one has, as in a huge vocabulary.
        changes: arrays that take the place of a file, to damage the artifact under a valid manifest.
    """
    rng = np.random.default_rng(seed)
    ids = [10 * item for item in range(num_items)] if item_ids is None else list(item_ids)
    test = test or {}
    train_count = np.bincount(
        np.array([item for history in histories for item in history], np.int64), minlength=num_items
    ).astype(np.int64)
    known = train_count > 0
    num_rows = rows_before + int(known.sum()) + 1
    id_rows = np.where(known, rows_before + np.cumsum(known), 0).astype(row_type(num_rows))
    tag_counts = rng.integers(0, 4, num_items)
    columns = {
        "item_id": (id_rows, np.arange(num_items + 1)),
        "brand": (rng.integers(0, NUM_BRANDS, num_items, np.int32), np.arange(num_items + 1)),
        "tags": (rng.integers(0, NUM_TAGS, tag_counts.sum(), np.int32), np.concatenate([[0], np.cumsum(tag_counts)])),
    }
    users = user_index_of(len(histories))
    summary = DatasetSummary(
        source="test",
        id_type="string" if isinstance(ids[0], str) else "int64",
        num_items=num_items,
        num_fresh_items=int((~known).sum()),
        num_users=len(histories),
        num_train_events=int(train_count.sum()),
        num_test_users=len(test),
        num_test_events=sum(map(len, test.values())),
        num_events_read=0,
        dropped_events={},
        dropped_items={},
        cutoff=None if timestamps is None else 1.0 + max(time for times in timestamps for time in times),
        features=FeatureSchema(
            id_features=[
                IdFeature(name="item_id", num_rows=num_rows),
                IdFeature(name="brand", num_rows=NUM_BRANDS),
                IdFeature(name="tags", num_rows=NUM_TAGS),
            ],
            float_features=list(float_features),
        ),
        has_topics=False,
        content_embedding_dim=None,
    )
    arrays: dict[Path, npt.NDArray[Any]] = {
        ITEM_TABLE / "float_features.npy": rng.standard_normal((num_items, 2)).astype(np.float32),
        ITEM_TABLE / "train_count.npy": train_count,
        RAW_IDS: raw_ids(ids),
        HISTORY_LENGTHS: np.array([len(history) for history in histories], np.int32),
    }
    for name, (values, offsets) in columns.items():
        arrays[ITEM_TABLE / f"{name}.values.npy"] = values
        arrays[ITEM_TABLE / f"{name}.offsets.npy"] = offsets.astype(np.int64)
    with write_artifact(path, "dataset", config={"seed": seed}) as writer:
        (writer.folder / ITEM_TABLE).mkdir()
        for file, array in (arrays | (changes or {})).items():
            np.save(writer.folder / file, array)
        texts = [f"item {item}" for item in range(num_items)]
        first_seen = pa.array([1000 + item if known[item] else None for item in range(num_items)], pa.int64())
        items = {
            "item_id": ids,
            "text": texts,
            **{level: pa.nulls(num_items, pa.string()) for level in ("image", "topic_l1", "topic_l2")},
            "train_count": train_count,
            "first_seen": first_seen,
        }
        pq.write_table(pa.table(items), writer.folder / ITEMS)
        brands, tags = columns["brand"][0], np.split(columns["tags"][0], columns["tags"][1][1:-1])
        raw = {
            "brand": pa.array([[100 * int(row)] if row else [] for row in brands], pa.list_(pa.int64())),
            "tags": pa.array([sorted({f"tag {row}" for row in rows if row}) for rows in tags], pa.list_(pa.string())),
            **dict.fromkeys(float_features, pa.array(np.linspace(0.0, 1.0, num_items))),
        }
        pq.write_table(pa.table(raw), writer.folder / ITEM_FEATURES)
        (writer.folder / VOCABULARY).mkdir()
        values = {
            "item_id": np.array(ids)[known].tolist(),
            "brand": list(range(100, 100 * NUM_BRANDS, 100)),
            "tags": [f"tag {row}" for row in range(1, NUM_TAGS)],
        }
        for name, column in values.items():
            rows = pa.array(range(1, len(column) + 1), pa.int32())
            pq.write_table(pa.table({"value": column, "row": rows}), writer.folder / vocabulary_file(name))
        scales = FloatScales(features=[FloatScale(name=name, mean=0.0, deviation=1.0) for name in float_features])
        (writer.folder / FLOAT_SCALES).write_text(scales.model_dump_json())
        lists = pa.array([list(history) for history in histories], pa.list_(pa.int32()))
        table = pa.table({"user_index": users, "items": lists})
        if timestamps is not None:
            times = pa.array([list(times) for times in timestamps], pa.list_(pa.int64()))
            table = table.append_column("timestamps", times)
        pq.write_table(table, writer.folder / HISTORIES, row_group_size=row_group_size)
        tests = pa.array(list(test.values()), pa.list_(pa.int32()))
        pq.write_table(
            pa.table({"user_index": users[list(test)].astype(np.int64), "items": tests}),
            writer.folder / TEST,
            row_group_size=row_group_size,
        )
        writer.summary.update(summary.model_dump())
    return open_dataset(path)


def user_index_of(num_users: int) -> npt.NDArray[np.int64]:
    """user_index of each row of the histories: distinct and not in order."""
    return 1000 + np.random.default_rng(7).permutation(num_users).astype(np.int64)
