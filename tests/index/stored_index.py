"""A dataset and embeddings of two heads, for tests that build indexes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_dataset import make_config, random_histories, write_dataset

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import ITEMS
from mtmh.tower.artifact import EmbeddingsSummary

NUM_ITEMS, DIM, HEADS = 3000, 16, ["engagement", "relevance"]


@cache
def clustered(place: int) -> npt.NDArray[np.float32]:
    """[NUM_ITEMS, DIM] float32 unit vectors around 40 centres, for the head at ``place``."""
    rng = np.random.default_rng(10 + place)
    vectors = rng.normal(size=(40, DIM))[rng.integers(0, 40, NUM_ITEMS)] + 0.4 * rng.normal(size=(NUM_ITEMS, DIM))
    unit: npt.NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def write_world(root: Path) -> None:
    """The dataset, with display columns, and the embeddings of model ``test``."""
    plain = write_dataset(root / "dataset", random_histories(5), num_items=NUM_ITEMS)
    items = pq.read_table(plain.artifact.path / ITEMS)
    for name in ("topic_l1", "topic_l2"):
        labels = pa.array([f"{name} {item % 3}" for item in range(NUM_ITEMS)])
        items = items.set_column(items.column_names.index(name), name, labels)
    files = {path.relative_to(plain.artifact.path): path.read_bytes() for path in _files(plain.artifact.path)}
    summary = plain.artifact.summary
    with write_artifact(root / "dataset", "dataset", config={}) as writer:
        for file, content in files.items():
            (writer.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (writer.folder / file).write_bytes(content)
        pq.write_table(items, writer.folder / ITEMS)
        writer.summary |= summary
    inputs = {"dataset": open_dataset(root / "dataset").artifact}
    with write_artifact(index_config(root).model_dir("embeddings"), "embeddings", config={}, inputs=inputs) as writer:
        for place, head in enumerate(HEADS):
            np.save(writer.folder / f"{head}.npy", clustered(place))
        writer.summary |= EmbeddingsSummary(heads=HEADS, dim=DIM, num_items=NUM_ITEMS).model_dump()


def index_config(root: Path, storage: str = "flat", **index: Any) -> Config:
    """A recipe over ``write_world``; shards and clusters are small and of odd sizes."""
    settings = {"num_clusters": 37, "shard_items": 701, "storage": storage, "pq": {"m": 4}, "refine_factor": 8}
    return make_config(root, index=settings | index, retrieval={"num_probes": 8})


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
