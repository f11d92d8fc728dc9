"""Cost of raw 64-bit ids, against a vocabulary made by prepare.

* The map alone: ids/s that find their row, that are given a free one, and that take one from another id, by how full
  the table is.
* The whole training step on one process: pairs/s with a vocabulary, with a table of raw ids that has room, and with
  one that is too small and evicts all the time. The cases alternate, so that a busy machine hits all.

    OMP_NUM_THREADS=1 python -m benchmarks.id_tables --out id_tables.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mtmh.modules import HashIdRows, IdTable, build_managed_ebc
from rich.console import Console
from rich.table import Table
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import JaggedTensor

from benchmarks.loader import build_dataset
from benchmarks.report import report_head
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.loader import PairLoader
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.distributed.raw_id_tables import IdTables
from mtmh.distributed.sharding import shard
from mtmh.training.model_builder import build_model
from mtmh.training.progress import quiet_libraries
from mtmh.training.shared_negatives import with_draws
from mtmh.training.task import TrainTask, items_per_step

BUCKETS = 48
FILLS = (0.0, 0.5, 0.9)
WARM_UP = 3


def main() -> None:
    """Runs all cases and prints the tables."""
    args = parse_args()
    report: dict[str, Any] = report_head(args) | {"map": [], "training": []}
    report["machine"]["threads"] = torch.get_num_threads()
    for name, run in (("map", run_map), ("training", run_training)):
        report[name] = run(args)
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=2))
    print_rows("The map alone, one process", report["map"])
    print_rows("The training step, one process", report["training"])


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_800_000, help="of the map alone")
    parser.add_argument("--ids", type=int, default=12_288, help="of a step of the map alone")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=6144)
    parser.add_argument("--uniform", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


# --- the map


def run_map(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ids a second."""
    rows = args.rows // BUCKETS * BUCKETS
    results = []
    for fill in FILLS:
        table = make_map(IdTable(rows, BUCKETS))
        feed(table, draw(int(fill * rows)))
        known = table.identities[table.identities >= 0]
        if len(known):
            picks = [known[torch.randint(len(known), (args.ids,))] for _ in range(args.repeats)]
            results.append(row("find", fill, table, picks))
        results.append(row("insert", fill, table, [draw(args.ids) for _ in range(args.repeats)]))
    full = make_map(IdTable(rows, BUCKETS, eviction="lru"))
    feed(full, draw(rows * 5 // 4))
    results.append(row("evict (lru)", 1.0, full, [draw(args.ids) for _ in range(args.repeats)]))
    return results


def make_map(table: IdTable) -> HashIdRows:
    """The map of a table."""
    managed = build_managed_ebc({"item_id": table}, {"item_id": 4})
    (rows,) = (module for module in managed.modules() if isinstance(module, HashIdRows))
    return rows


def draw(num_ids: int) -> torch.Tensor:
    """Ids that no table has seen."""
    return torch.randint(0, 2**62, (num_ids,))


def feed(table: HashIdRows, ids: torch.Tensor) -> None:
    """Steps of training; ids are random, so that scrambling them is not needed."""
    for part in torch.split(ids, 1 << 18):
        table.now += 1
        table.remap({"item_id": JaggedTensor(values=part, lengths=torch.ones_like(part))})
        table.evict()


def row(what: str, fill: float, table: HashIdRows, batches: list[torch.Tensor]) -> dict[str, Any]:
    """Ids a second of the median batch."""
    seconds = [clocked(partial(feed, table, ids)) for ids in batches]
    return {"ids": what, "fill": fill, "ids/s": len(batches[0]) / statistics.median(seconds)}


def clocked(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- the training step


def run_training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Pairs a second."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build_dataset(root / "dataset", args.items, args.users, mean_length=60.0, num_floats=8)
        roomy = -(-args.items * 3 // 2 // BUCKETS) * BUCKETS
        tight = -(-args.items // 10 // BUCKETS) * BUCKETS
        tables = {
            "vocabulary": None,
            "raw ids, with room": {"rows": roomy, "eviction": "lru"},
            "raw ids, a tenth of the rows": {"rows": tight, "eviction": "lru"},
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in tables}
        with quiet_libraries(), join_ranks("cpu") as ranks:
            for _ in range(args.repeats):
                for name, table in tables.items():
                    runs[name].append(train_steps(make_config(root, table, args), ranks, args.steps))
    rows = []
    for name, results in runs.items():
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        rows.append({"item ids": name} | medians)
    return rows


def make_config(root: Path, table: dict[str, Any] | None, args: argparse.Namespace) -> Config:
    """The recipe of one case."""
    return Config.model_validate(
        {
            "name": "benchmark",
            "paths": {"root": str(root)},
            "data": {"source": "synthetic"},
            "model": {
                "id_tables": {} if table is None else {"item_id": table},
                "heads": [{"name": "engagement"}, {"name": "relevance"}],
            },
            "loss": {"num_uniform_negatives": args.uniform},
            "training": {"batch_size": args.batch_size, "epochs": 100},
        }
    )


def train_steps(config: Config, ranks: Ranks, num_steps: int) -> dict[str, float]:
    """The engine as ``train`` runs it, without checkpoints and log."""
    dataset = open_dataset(config.dataset_dir)
    torch.manual_seed(config.seed)
    model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
    sharded, _ = shard(
        TrainTask(model, config.loss, config.seed),
        config.sharding,
        ranks,
        items_per_step=items_per_step(config.training, config.loss),
        training=config.training,
        seed=config.seed,
    )
    optimizer, id_tables = build_optimizer(sharded, config.training), IdTables(sharded)
    pipeline = TrainPipelineSparseDist(sharded, optimizer, ranks.device, execute_all_batches=True)
    loader = PairLoader(dataset, config.pairs, config.loss, config.training, config.model, config.seed)
    batches = with_draws(loader.batches(), config.loss, config.seed)

    def steps(number: int) -> None:
        for _ in range(number):
            set_learning_rates(optimizer, config.training, 0)
            id_tables.tick()
            pipeline.progress(batches)

    steps(WARM_UP)
    if config.model.id_tables:
        id_tables.counts()
    seconds = clocked(lambda: steps(num_steps))
    counts = id_tables.counts() if config.model.id_tables else {}
    return {
        "pairs/s": num_steps * config.training.global_batch / seconds,
        "inserts a step": counts.get("item_id/inserts", 0.0) / num_steps,
        "evictions a step": counts.get("item_id/evictions", 0.0) / num_steps,
        "occupancy": counts.get("item_id/occupancy", 0.0),
    }


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """One table."""
    view = Table(*rows[0], title=title)
    for row in rows:
        view.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(view)


if __name__ == "__main__":
    main()
