"""Pairs a second that one core turns into training batches, and the time of each part of that.

Builds a dataset of the asked size (histories of skewed lengths over items of skewed popularity, three id features, one
of them multi-valued, and floats), then times the loader without its background thread. On a machine with other work
"per CPU s" (process time, all threads) is the figure of one core; on a quiet one it equals pairs/s.

    python benchmarks/loader.py --out loader.json
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.report import report_head
from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import EMBEDDINGS, ContentEmbeddings, open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.loader import PairLoader
from mtmh.data.schema import (
    HISTORIES,
    HISTORY_LENGTHS,
    ITEM_TABLE,
    ITEMS,
    RAW_IDS,
    DatasetSummary,
    FeatureSchema,
    IdFeature,
)
from mtmh.distributed.ranks import Ranks

CONTENT_DIM = 128
VARIANTS: dict[str, dict[str, Any]] = {
    "masks": {"loss": {"mask_history": True}},
    "no masks": {"loss": {"mask_history": False}},
    "masks, teacher": {"loss": {"mask_history": True}, "teacher": True},
    "no masks, teacher": {"loss": {"mask_history": False}, "teacher": True},
    "masks, teacher, SIM, propensity, id dropout": {
        "loss": {"mask_history": True, "propensity": {}},
        "pairs": {"sim": {"kind": "content"}},
        "model": {"id_dropout": 0.1},
        "teacher": True,
    },
}
PARTS = {  # function -> what it does, for the breakdown
    ("stream.py", "read"): "pairs of the step",
    ("negatives.py", "draw"): "uniform negatives",
    ("distinct.py", "__call__"): "distinct items and users",
    ("item_table.py", "gather"): "item features",
    ("content_store.py", "gather"): "teacher embeddings",
    ("weights.py", "__call__"): "pair weights",
    ("negatives.py", "__call__"): "log q",
    ("randomness.py", "chosen"): "id dropout",
    ("histories.py", "select"): "mask histories",
}


def main() -> None:
    """Runs every variant and prints the table."""
    args = parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = build_dataset(Path(folder) / "dataset", args.items, args.users, args.mean_length, args.floats)
        content = build_content(Path(folder) / "content", dataset)
        rows = [measure(name, dataset, content, args) for name in VARIANTS]
    print(f"{'variant':<45} {'pairs/s (median)':>16} {'min':>10} {'max':>10} {'per CPU s':>10} {'first batch':>12}")
    for row in rows:
        print(
            f"{row['variant']:<45} {row['pairs_per_second']:>16,.0f} {row['min']:>10,.0f} {row['max']:>10,.0f} "
            f"{row['pairs_per_cpu_second']:>10,.0f} {row['first_batch_seconds']:>10.2f} s"
        )
    for row in rows:
        print(
            f"\n{row['variant']}: {row['items_per_batch']:.0f} distinct items, {row['history_items_per_batch']:.0f} "
            "history items a batch; ms a batch under the profiler:"
        )
        print("  " + ", ".join(f"{part} {ms:.2f}" for part, ms in row["profile_ms"].items()))
    if args.out is not None:
        report = report_head(args) | {"results": rows}
        args.out.write_text(json.dumps(report, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--mean-length", type=float, default=60.0, help="events of a user")
    parser.add_argument("--floats", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=6144)
    parser.add_argument("--steps", type=int, default=150, help="steps a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def measure(variant: str, dataset: Dataset, content: ContentEmbeddings, args: argparse.Namespace) -> dict[str, Any]:
    """Times consecutive stretches of one run: reading and shuffling of blocks is in proportion in each."""
    settings = dict(VARIANTS[variant])
    teacher = content if settings.pop("teacher", False) else None
    config = Config.model_validate(
        {
            "name": "benchmark",
            "paths": {"root": "unused"},
            "data": {"source": "synthetic"},
            "training": {"batch_size": args.batch_size, "epochs": 1000},
            **settings,
        }
    )
    loader = PairLoader(dataset, config.pairs, config.loss, config.training, config.model, config.seed, content=teacher)
    batches = loader.iterate()
    start = time.perf_counter()
    first = next(batches)
    first_batch_seconds = time.perf_counter() - start
    consume(batches, args.steps // 3)
    wall, cpu = [], []
    for _ in range(args.repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        consume(batches, args.steps)
        wall.append(args.steps * args.batch_size / (time.perf_counter() - wall_start))
        cpu.append(args.steps * args.batch_size / (time.process_time() - cpu_start))
    profile = cProfile.Profile()
    profile.runcall(consume, batches, args.steps)
    return {
        "variant": variant,
        "pairs_per_second": statistics.median(wall),
        "min": min(wall),
        "max": max(wall),
        "pairs_per_cpu_second": statistics.median(cpu),
        "first_batch_seconds": first_batch_seconds,
        "items_per_batch": len(first.item_index),
        "history_items_per_batch": len(first.history_values),
        "profile_ms": breakdown(profile, args.steps),
    }


def consume(batches: Iterator[PairBatch], steps: int) -> None:
    """Makes some batches and drops them."""
    for _ in islice(batches, steps):
        pass


def breakdown(profile: cProfile.Profile, steps: int) -> dict[str, float]:
    """Milliseconds a step spent in each part, callees included."""
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = 0.0
    parts = dict.fromkeys(PARTS.values(), 0.0)
    for (file, _, function), (_, _, _, seconds, _) in stats.items():
        if (Path(file).name, function) in PARTS and "mtmh" in file:
            parts[PARTS[Path(file).name, function]] += seconds / steps * 1e3
        if (Path(file).name, function) == ("loader.py", "iterate"):
            total += seconds / steps * 1e3
    return {**parts, "all": total}


def open_loader(config: Config, ranks: Ranks) -> PairLoader:
    """This rank's loader."""
    dataset = open_dataset(config.dataset_dir)
    return PairLoader(
        dataset,
        config.pairs,
        config.loss,
        config.training,
        config.model,
        config.seed,
        ranks.rank,
        ranks.world_size,
        open_content(config.content_dir, dataset),
    )


def build_dataset(path: Path, num_items: int, num_users: int, mean_length: float, num_floats: int) -> Dataset:
    """A dataset artifact written straight from arrays; no test period."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(mean_length) - 0.5, 1.0, num_users), 2, 1000).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    popularity = 1.0 / np.arange(10, num_items + 10) ** 0.8
    cumulative = np.cumsum(popularity[rng.permutation(num_items)])
    items = np.searchsorted(cumulative, rng.random(offsets[-1]) * cumulative[-1]).astype(np.int32)
    train_count = np.bincount(items, minlength=num_items).astype(np.int64)
    known = train_count > 0
    tag_counts = rng.integers(1, 4, num_items)
    columns: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {
        "item_id": (np.where(known, np.cumsum(known), 0), np.arange(num_items + 1)),
        "brand": (rng.integers(0, 5000, num_items), np.arange(num_items + 1)),
        "tags": (rng.integers(0, 300, tag_counts.sum()), np.concatenate([[0], np.cumsum(tag_counts)])),
    }
    num_rows = {"item_id": int(known.sum()) + 1, "brand": 5000, "tags": 300}
    summary = DatasetSummary(
        source="benchmark",
        id_type="int64",
        num_items=num_items,
        num_fresh_items=int((~known).sum()),
        num_users=num_users,
        num_train_events=len(items),
        num_test_users=0,
        num_test_events=0,
        num_events_read=len(items),
        dropped_events={},
        dropped_items={},
        cutoff=None,
        features=FeatureSchema(
            id_features=[IdFeature(name=name, num_rows=rows) for name, rows in num_rows.items()],
            float_features=[f"float_{number}" for number in range(num_floats)],
        ),
        has_topics=False,
        content_embedding_dim=None,
    )
    with write_artifact(path, "dataset", config={}) as writer:
        table = writer.folder / ITEM_TABLE
        table.mkdir()
        for name, (values, starts) in columns.items():
            np.save(table / f"{name}.values.npy", values.astype(np.int32))
            np.save(table / f"{name}.offsets.npy", starts.astype(np.int64))
        np.save(table / "float_features.npy", rng.standard_normal((num_items, num_floats), np.float32))
        np.save(table / "train_count.npy", train_count)
        np.save(writer.folder / RAW_IDS, np.arange(num_items))
        np.save(writer.folder / HISTORY_LENGTHS, lengths)
        pq.write_table(pa.table({"item_id": np.arange(num_items)}), writer.folder / ITEMS)
        lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(items))
        histories = pa.table({"user_index": np.arange(num_users), "items": lists})
        pq.write_table(histories, writer.folder / HISTORIES, row_group_size=8192)
        writer.summary.update(summary.model_dump())
    return open_dataset(path)


def build_content(path: Path, dataset: Dataset) -> ContentEmbeddings:
    """Random unit vectors, float16, for every item."""
    vectors = np.random.default_rng(1).standard_normal((dataset.num_items, CONTENT_DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with write_artifact(path, "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / EMBEDDINGS, vectors.astype(np.float16))
    return open_content(path, dataset)


if __name__ == "__main__":
    main()
