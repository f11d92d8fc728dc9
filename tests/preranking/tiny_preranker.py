"""A simulated dataset and a preranker small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.prepare.prepare import prepare
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file

TASKS: list[dict[str, Any]] = [
    {"name": "click"},
    {"name": "like", "event": ["like"], "weight": 2.0},
    {"name": "long_view", "min_value": 0.6},
]
PRERANKER: dict[str, Any] = {
    "tasks": TASKS,
    "history_length": 8,
    "window": 3,
    "embedding_dim": 8,
    "dense_hidden": [8],
    "dense_dim": 4,
    "hidden": [16],
    "dim": 8,
    "num_uniform_negatives": 30,
    "check_users": 50,
    "check_negatives": 10,
}
TRAINING: dict[str, Any] = {
    "batch_size": 48, "num_shards": 6, "shuffle_pairs": 96, "epochs": 2, "log_every": 1, "learning_rate": 0.05,
    "dense_learning_rate": 0.01,
    "warmup_steps": 4,
}  # fmt: skip


def tiny_config(root: Path, name: str = "tiny", training: dict[str, Any] | None = None, **preranker: Any) -> Config:
    """A recipe over `write_inputs`; settings given here replace its own key by key."""
    return Config.model_validate(
        {
            "name": name,
            "seed": 3,
            "paths": {"root": root, "dataset": root / "dataset"},
            "data": {
                "source": "synthetic",
                "options": {"num_users": 120, "num_items": 200, "num_events": 4000, "num_days": 20},
            },
            "preranker": {**PRERANKER, **preranker, "training": {**TRAINING, **(training or {})}},
        }
    )


def write_inputs(root: Path) -> None:
    """The dataset; `write_embeddings` gives a model its heads."""
    prepare(tiny_config(root), root / "dataset")


def write_embeddings(config: Config) -> None:
    """Random unit embeddings of two heads in place of a trained model's."""
    dataset = open_dataset(config.dataset_dir)
    rng = np.random.default_rng(1)
    with write_artifact(
        config.model_dir("embeddings"), "embeddings", config={}, inputs={"dataset": dataset.artifact}
    ) as writer:
        for head in ("engagement", "relevance"):
            vectors = rng.standard_normal((dataset.num_items, 6)).astype(np.float32)
            np.save(writer.folder / vectors_file(head), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        writer.summary |= EmbeddingsSummary(
            heads=["engagement", "relevance"], dim=6, num_items=dataset.num_items
        ).model_dump()
