"""A small dataset with topics, and an index artifact over random embeddings, for tests of the evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_dataset import make_config, random_histories, write_dataset

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.schema import ITEMS
from mtmh.index.build import build_index
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file

NUM_ITEMS = 60
NUM_USERS = 25
DIM = 8


def make_world(root: Path, *, topics: bool = True, seed: int = 0) -> Dataset:
    """Random histories and test items; a few users without test items, a few items without topic."""
    rng = np.random.default_rng(seed)
    histories = random_histories(NUM_USERS, seed)
    test = {
        user: rng.permutation(NUM_ITEMS)[: rng.integers(1, 8)].tolist()
        for user in range(NUM_USERS)
        if histories[user] and user % 5 != 4
    }
    plain = write_dataset(root / "plain", histories, test=test, num_items=NUM_ITEMS)
    with write_artifact(root / "dataset", "dataset", config={}) as writer:
        shutil.copytree(plain.artifact.path, writer.folder, dirs_exist_ok=True)
        (writer.folder / "manifest.json").unlink()
        items = pq.read_table(plain.artifact.path / ITEMS)
        for name, count in (("topic_l1", 3), ("topic_l2", 6)):
            codes = rng.integers(0, count, NUM_ITEMS)
            labels = [f"{name} {code}" if topics and item % 9 else None for item, code in enumerate(codes)]
            items = items.set_column(items.column_names.index(name), name, pa.array(labels, pa.string()))
        pq.write_table(items, writer.folder / ITEMS)
        writer.summary.update(plain.artifact.summary | {"has_topics": topics})
    shutil.rmtree(root / "plain")
    return open_dataset(root / "dataset")


def make_model(root: Path, name: str, heads: list[str], seed: int = 1, **sections: Any) -> Config:
    """A recipe whose index artifact holds random unit embeddings."""
    defaults: dict[str, Any] = {
        "retrieval": {"k": 4, "k_ann": 12, "num_probes": 3, "alpha": 50},
        "evaluation": {"num_users": 100, "num_triggers": 6, "recall_at": [2, 5, 15], "alphas": [0, 25, 100]},
        "index": {"num_clusters": 6},
    }
    config = make_config(root, **{**defaults, **sections}).model_copy(update={"name": name})
    dataset = open_dataset(config.dataset_dir)
    inputs = {"dataset": dataset.artifact}
    folder = config.model_dir("embeddings")
    with write_artifact(folder, "embeddings", config=config.model_dump(mode="json"), inputs=inputs) as writer:
        for place, head in enumerate(heads):
            np.save(writer.folder / vectors_file(head), random_unit(dataset.num_items, seed + place))
        writer.summary |= EmbeddingsSummary(heads=heads, dim=DIM, num_items=dataset.num_items).model_dump()
    build_index(config, config.model_dir("index"))
    return config


def random_unit(num_items: int, seed: int) -> npt.NDArray[np.float32]:
    """[num_items, DIM] unit rows."""
    vectors = np.random.default_rng(seed).normal(size=(num_items, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
