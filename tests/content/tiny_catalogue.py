"""A catalogue of texts, pictures, concepts and topics small enough to train a teacher on in seconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.schema import ITEMS, DatasetSummary, FeatureSchema

NUM_ITEMS = 64
NUM_TOPICS = 4  # fine ones, two a coarse one
WORDS = [["oak", "pine", "elm"], ["rose", "tulip", "lily"], ["drum", "gong", "bell"], ["harp", "lute", "lyre"]]
COLOURS = [(200, 40, 40), (200, 160, 40), (40, 160, 200), (60, 40, 200)]
# Items with something missing or broken.
NO_TEXT, NO_IMAGE, NOTHING, CUT_OFF, NOT_THERE, NO_PICTURE = 3, 4, 5, 6, 7, 8


def topic_of(item: int) -> int:
    return item % NUM_TOPICS


def write_catalogue(root: Path, seed: int = 0) -> Dataset:
    """Dataset in ``root/dataset``, pictures in ``root/pictures``, concepts in ``root/concepts.parquet``."""
    rng = np.random.default_rng(seed)
    pictures = root / "pictures"
    pictures.mkdir(parents=True)
    texts: list[str | None] = []
    names: list[str | None] = []
    for item in range(NUM_ITEMS):
        words = rng.choice(WORDS[topic_of(item)], 2)
        texts.append(f"A {words[0]} and {words[1]}")
        names.append(f"{item}.png")
        pixels = np.array(COLOURS[topic_of(item)]) + rng.normal(0.0, 40.0, (8, 8, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pictures / f"{item}.png")
    texts[NO_TEXT], texts[NOTHING], names[NO_IMAGE], names[NOTHING] = "  ", None, None, None
    (pictures / f"{CUT_OFF}.png").write_bytes((pictures / f"{CUT_OFF}.png").read_bytes()[:60])
    (pictures / f"{NOT_THERE}.png").unlink()
    (pictures / f"{NO_PICTURE}.png").write_text("this is no picture")
    topics = [topic_of(item) for item in range(NUM_ITEMS)]
    ids = [10 * item for item in range(NUM_ITEMS)]
    write_dataset(
        root / "dataset",
        {
            "item_id": ids,
            "text": pa.array(texts, pa.string()),
            "image": pa.array(names, pa.string()),
            "topic_l1": [f"coarse {topic // 2}" for topic in topics],
            "topic_l2": [f"fine {topic}" for topic in topics],
        },
    )
    items = np.repeat(np.arange(NUM_ITEMS), 3)
    source = np.tile(["hashtag", "query", "generated"], NUM_ITEMS)
    shown = np.where(rng.random(len(items)) < 0.1, rng.integers(0, NUM_TOPICS, len(items)), items % NUM_TOPICS)
    concepts = [WORDS[topic][word] for topic, word in zip(shown, rng.integers(0, 3, len(items)), strict=True)]
    pq.write_table(pa.table({"item_id": 10 * items, "concept": concepts, "source": source}), root / "concepts.parquet")
    return open_dataset(root / "dataset")


def write_dataset(path: Path, columns: dict[str, Any], id_type: str = "int64", **summary_of: Any) -> Dataset:
    """A dataset artifact with an items table and nothing else; ``summary_of`` replaces fields of its summary."""
    table = pa.table(columns)
    summary = DatasetSummary(
        source="test",
        id_type=id_type,
        num_items=table.num_rows,
        num_fresh_items=0,
        num_users=0,
        num_train_events=0,
        num_test_users=0,
        num_test_events=0,
        num_events_read=0,
        dropped_events={},
        dropped_items={},
        cutoff=None,
        features=FeatureSchema(id_features=[], float_features=[]),
        has_topics="topic_l1" in columns,
        content_embedding_dim=None,
    )
    with write_artifact(path, "dataset", config={}) as writer:
        pq.write_table(table, writer.folder / ITEMS)
        writer.summary.update(summary.model_dump() | summary_of)
    return open_dataset(path)


def make_config(
    root: Path, data: Path | None = None, *, encoder: dict[str, Any] | None = None, **content: Any
) -> Config:
    """A recipe over ``write_catalogue(data or root)``; ``training`` inside ``encoder`` is merged key by key."""
    data = data or root
    training = {"batch_size": 24, "epochs": 2, "log_every": 2, "learning_rate": 3e-3, "backbone_learning_rate": 3e-3}
    tower = {
        "text": {"model": "random:tiny-text", "tune": "full"},
        "image": {"model": "random:tiny-image", "tune": "full"},
        "hidden": [16],
        "dim": 8,
        "images": str(data / "pictures"),
        "concepts": str(data / "concepts.parquet"),
    } | (encoder or {})
    tower["training"] = training | tower.get("training", {})
    sizes = {"batch_size": 7, "shard_items": 20, "max_tokens": 8}
    return Config.model_validate(
        {
            "name": "test",
            "seed": 3,
            "paths": {"root": str(root), "dataset": str(data / "dataset")},
            "data": {"source": "synthetic"},
            "content": {"kind": "encoder", "encoder": tower} | sizes | content,
            "training": {"device": "cpu"},
        }
    )


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()
