"""Time that training stands still while it saves: steps that save, at once or in the background, beside plain ones.

One process, or torchrun's ranks with ``--ranks``: the engine as ``mtmh train`` runs it. Every so many steps it saves;
timed are

* ``save``: until the call returns: all of the writing, or in the background the copy of the state, and the wait for
  the save before if that is not done;
* ``step while saving``: the steps after a save in the background, until its folder is there;
* ``step``: all others, for which nothing is saved.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_stall --out checkpoint_stall.json
    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_stall --items 20000 --users 5000 --batch-size 768 --saves 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from benchmarks.loader import build_content, build_dataset, open_loader
from benchmarks.report import report_head
from mtmh.artifacts import MANIFEST, write_atomically
from mtmh.config import Config, decisive, load_config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.distributed.sharding import shard
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.model_builder import build_model
from mtmh.training.progress import quiet_libraries
from mtmh.training.shared_negatives import with_draws
from mtmh.training.task import TrainTask, items_per_step

WAYS = ("at once", "in the background")
WARM_UP = 3


def main() -> None:
    """Runs both ways and prints the table."""
    args = parse_args()
    if args.worker:
        work(args)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        recipe = write_inputs(Path(folder), args)
        for way in WAYS:
            rows.append(launch(way, recipe, args))
            print(json.dumps(rows[-1]), file=sys.stderr)
    if args.out is not None:
        write_atomically(args.out, json.dumps(report_head(args) | {"results": rows}, indent=2) + "\n")
    print_table(rows)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=6144)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--every", type=int, default=10, help="steps from one save to the next")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; the system's temporary one by default")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_inputs(root: Path, args: argparse.Namespace) -> Path:
    """Dataset, teacher and the recipe of both ways."""
    tree = {
        "name": "benchmark",
        "paths": {"root": str(root)},
        "data": {"source": "synthetic"},
        "model": {"embedding_dim": args.dim},
        "training": {"batch_size": args.batch_size, "epochs": 100},
    }
    path = root / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    load_config(path)  # says at once what is wrong with it
    dataset = build_dataset(root / "dataset", args.items, args.users, mean_length=60.0, num_floats=8)
    build_content(root / "content", dataset)
    return path


def launch(way: str, recipe: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run in processes of its own; an empty folder of checkpoints each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    worker = ["-m", "benchmarks.checkpoint_stall", "--worker", way, "--recipe", str(recipe)]
    sizes = ["--every", str(args.every), "--saves", str(args.saves)]
    done = subprocess.run(
        [sys.executable, *torchrun, *worker, *sizes], env=os.environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"saving {way} failed; this was its last output:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(args: argparse.Namespace) -> None:
    """One rank of one run; the first prints the result as JSON."""
    config = load_config(args.recipe, [f"name={args.worker.replace(' ', '-')}"])
    with quiet_libraries(), join_ranks("cpu") as ranks:
        torch.manual_seed(config.seed)
        result = measure(config, ranks, args.worker, args.every, args.saves)
        if ranks.is_first:
            print(json.dumps(result))


def measure(config: Config, ranks: Ranks, way: str, every: int, num_saves: int) -> dict[str, Any]:
    """Milliseconds of saves and steps on this rank: median and largest."""
    dataset = open_dataset(config.dataset_dir)
    content = open_content(config.content_dir, dataset)
    features = dataset.summary.features
    record = RunRecord.of_dataset(
        config.model_dump(mode="json"),
        decisive(config, "checkpoint"),
        dataset,
        {"dataset": dataset.artifact, "content": content.artifact},
    )
    checkpoints = Checkpoints(config.model_dir("checkpoints"), record, ranks)
    model = build_model(config.model, features, ranks.device, tables=torch.device("meta"))
    sharded, _ = shard(
        TrainTask(model, config.loss, config.seed),
        config.sharding,
        ranks,
        items_per_step=items_per_step(config.training, config.loss),
        training=config.training,
        seed=config.seed,
    )
    optimizer = build_optimizer(sharded, config.training)
    pipeline = TrainPipelineSparseDist(sharded, optimizer, ranks.device, execute_all_batches=True)
    feed = with_draws(open_loader(config, ranks).batches(), config.loss, config.seed)
    saves: list[float] = []
    plain: list[float] = []
    beside: list[float] = []
    path: Path | None = None
    with checkpoints:
        for step in range(1, WARM_UP + (num_saves + 1) * every + 1):
            saving = path is not None and not (path / MANIFEST).is_file()
            began = time.perf_counter()
            set_learning_rates(optimizer, config.training, step)
            pipeline.progress(feed)
            if step > WARM_UP:
                (beside if saving else plain).append(time.perf_counter() - began)
            if step > WARM_UP and (step - WARM_UP) % every == 0 and len(saves) < num_saves:
                dist.barrier()  # the wait for other ranks is no part of saving
                began = time.perf_counter()
                path = checkpoints.save(step, training_state(sharded, optimizer), behind=way == WAYS[1])
                saves.append(time.perf_counter() - began)
    assert path is not None
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"way": way, "ranks": ranks.world_size, "checkpoint_mb": size / 1e6} | {
        name: {"median_ms": 1e3 * statistics.median(times), "max_ms": 1e3 * max(times), "number": len(times)}
        for name, times in (("save", saves), ("step while saving", beside), ("step", plain))
        if times
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """For people, as Markdown."""
    columns = ("save", "step while saving", "step")
    print("| saving | ranks | checkpoint | " + " | ".join(f"{name}, ms (largest)" for name in columns) + " |")
    print("|---|---:|---:|" + "---:|" * len(columns))
    for row in rows:
        times = (f"{row[c]['median_ms']:,.0f} ({row[c]['max_ms']:,.0f})" if c in row else "–" for c in columns)
        print(f"| {row['way']} | {row['ranks']} | {row['checkpoint_mb']:,.0f} MB | " + " | ".join(times) + " |")


if __name__ == "__main__":
    main()
