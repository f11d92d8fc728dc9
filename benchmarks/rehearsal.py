"""A rehearsal, on one machine, of what many ranks do with a catalogue that is large beside it.

Ranks on gloo, each with a small slice of the tables, train a few steps over a catalogue of many items whose features
and content embeddings are mapped from files, and write a checkpoint. The figures are of memory and of the times that
grow with the catalogue: a start, from the first line of the program to the first step, and a checkpoint. Nothing is
learned.

    OMP_NUM_THREADS=1 python -m benchmarks.rehearsal --items 100000000 --ranks 8 --out rehearsal.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.compare import made_by

BEGAN = time.perf_counter()

USERS, EVENTS_A_USER = 4000, 50
DIM, CONTENT = 4, 32
PAIRS = 256  # of a rank and step
WAYS = {
    "mapped": {},
    "table": {"content": {"storage": "table"}},
    "ride_along": {"data": {"item_features": "ride_along"}},
}


def write_inputs(root: Path, num_items: int, ways: list[str]) -> None:
    """Datasets and content; a large catalogue of items that nobody has seen but for some, spread all over it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mtmh.artifacts import write_artifact
    from mtmh.data import schema as names
    from mtmh.data.content_store import EMBEDDINGS, join_content
    from mtmh.data.dataset import open_dataset
    from mtmh.prepare.ride_along import write_ride_along

    rng = np.random.default_rng(0)
    items = rng.integers(0, num_items, USERS * EVENTS_A_USER).astype(np.int32)
    features = names.FeatureSchema(
        id_features=[names.IdFeature(name=names.ITEM_ID, num_rows=num_items + 1)], float_features=["price"]
    )
    summary = names.DatasetSummary(
        source="rehearsal",
        id_type="int64",
        num_items=num_items,
        num_fresh_items=0,
        num_users=USERS,
        num_train_events=len(items),
        num_test_users=0,
        num_test_events=0,
        num_events_read=len(items),
        dropped_events={},
        dropped_items={},
        cutoff=None,
        features=features,
        has_topics=False,
        content_embedding_dim=None,
    )
    counts = np.bincount(items, minlength=num_items)
    counts[counts == 0] = 1  # so that uniform negatives come from the whole catalogue
    for way in ways:
        folder = root / way
        with write_artifact(folder / "dataset", "dataset", config={}) as writer:
            table = writer.folder / names.ITEM_TABLE
            table.mkdir()
            np.save(table / "item_id.values.npy", np.arange(1, num_items + 1, dtype=np.int32))
            np.save(table / "item_id.offsets.npy", np.arange(num_items + 1))
            np.save(writer.folder / names.RAW_IDS, np.arange(num_items))
            np.save(table / names.FLOAT_FEATURES, np.zeros((num_items, 1), np.float32))
            np.save(table / names.TRAIN_COUNTS, counts)
            offsets = np.arange(0, len(items) + 1, EVENTS_A_USER, dtype=np.int32)
            lists = pa.ListArray.from_arrays(offsets, items)
            pq.write_table(pa.table({"user_index": range(USERS), "items": lists}), writer.folder / names.HISTORIES)
            np.save(writer.folder / names.HISTORY_LENGTHS, np.full(USERS, EVENTS_A_USER, np.int32))
            if way == "ride_along":
                write_ride_along({}, writer.folder, dataset=writer.folder, schema=features, num_items=num_items)
            writer.summary |= summary.model_copy(update={"rides_along": way == "ride_along"}).model_dump()
        dataset = open_dataset(folder / "dataset")
        with write_artifact(folder / "content", "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
            # A sparse file: pages of zeros, which take memory when they are read as any others do.
            shape = (num_items, CONTENT)
            np.lib.format.open_memmap(writer.folder / EMBEDDINGS, mode="w+", dtype=np.float16, shape=shape)
            join_content(writer.folder, dataset)


def recipe(root: Path, way: str, ranks: int, steps: int) -> dict[str, Any]:
    """Settings of the run."""
    sections: dict[str, Any] = {
        "name": "rehearsal",
        "paths": {"root": str(root / way)},
        "data": {"source": "synthetic"},
        "model": {
            "embedding_dim": DIM,
            "embedding_dtype": "fp16",
            "head_hidden": [32],
            "head_dim": 32,
            "content_dim": 0,
        },
        "loss": {"num_uniform_negatives": 128 * ranks, "teacher_dim": 0},
        "sharding": {"default": "row_wise"},
        "training": {"batch_size": PAIRS * ranks, "num_shards": ranks, "epochs": 1, "max_steps": steps, "log_every": 1},
    }
    for section, values in WAYS[way].items():
        sections[section] = {**sections.get(section, {}), **values}
    return sections


def work(root: Path, way: str, steps: int) -> None:
    """One rank; leaves its figures in a file."""
    from mtmh.config import Config
    from mtmh.data.loader import PairLoader
    from mtmh.training.checkpoint import Checkpoints
    from mtmh.training.trainer import train

    times: dict[str, float] = {}
    memory: dict[str, float] = {}
    save, iterate = Checkpoints.save, PairLoader.iterate

    def timed_save(self: Checkpoints, *args: Any, **options: Any) -> Path:
        began = time.perf_counter()
        times["steps_s"] = began - BEGAN - times["start_s"]
        path = save(self, *args, **options)
        times["checkpoint_s"] = time.perf_counter() - began
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        now = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
        memory["anonymous_gib"], memory["resident_gib"] = now["Anonymous"], now["Rss"]  # while the loader is there
        return path

    def timed_iterate(self: PairLoader, *args: Any) -> Any:
        times["start_s"] = time.perf_counter() - BEGAN
        return iterate(self, *args)

    config = Config.model_validate(recipe(root, way, int(os.environ["WORLD_SIZE"]), steps))
    with patch.object(Checkpoints, "save", timed_save), patch.object(PairLoader, "iterate", timed_iterate):
        checkpoint = train(config)
    figures = (
        times
        | memory
        | {
            "checkpoint_gib": sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / 2**30,
        }
    )
    (root / f"{way}-{os.environ['RANK']}.json").write_text(json.dumps(figures))


def run(root: Path, way: str, ranks: int, steps: int) -> dict[str, Any]:
    """All ranks; the largest of each figure."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    worker = ["-m", "benchmarks.rehearsal", "--worker", way, "--scratch", str(root), "--steps", str(steps)]
    shutil.rmtree(root / way / "rehearsal", ignore_errors=True)  # a run that is done would not begin again
    began = time.perf_counter()
    subprocess.run([*torchrun, *worker], env=os.environ, check=True)
    found = [json.loads((root / f"{way}-{rank}.json").read_text()) for rank in range(ranks)]
    largest = {key: round(max(figures[key] for figures in found), 3) for key in found[0]}
    return {"way": way, "ranks": ranks, "whole_s": round(time.perf_counter() - began, 1), **largest}


def main() -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--scratch", type=Path, default=None, help="folder that stays; default: one that does not")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.scratch, args.worker, args.steps)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.scratch or Path(temporary)
        missing = [way for way in args.ways if not (root / way / "content").exists()]
        write_inputs(root, args.items, missing)
        results = [run(root, way, args.ranks, args.steps) for way in args.ways]
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    report = {"command": made_by(), "machine": machine, "items": args.items, "results": results}
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
