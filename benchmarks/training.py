"""Pairs a second of the training engine, against the same model written plainly in PyTorch.

Both train on the same pairs, the same negatives and masks, with the same towers, heads, teacher and losses.

* ``mtmh``: this package as ``mtmh train`` runs it: TorchRec's planner and pipeline, Adagrad fused into the backward,
  each distinct item embedded once, the chunked loss; its loader runs beside it.
* ``plain``: ``nn.EmbeddingBag(sparse=True)`` and ``torch.optim.Adagrad`` on sparse gradients; each trigger, candidate
  and negative embedded as it comes; the ``M x L`` matrices held, autograd does the rest; DDP on more than one rank. Its
  batches and masks are made beforehand, so its figure is free of any cost of data.

Every run is a process group of its own; runs of the two alternate, so that a busy machine hits both. One more run of
``mtmh`` says where a step's time goes; the JSON is written after every run.

    python -m benchmarks.training --out training.json
    python -m benchmarks.training --engines mtmh --repeats 1 --steps 2 --items 20000 --users 5000 --batch-size 768
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mtmh.modules import DenseNN, HeadMLP, accidental_hits
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from benchmarks.loader import build_content, build_dataset, open_loader
from benchmarks.report import report_head
from mtmh.artifacts import write_atomically
from mtmh.config import Config, load_config
from mtmh.data.batch import PairBatch
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import FeatureSchema
from mtmh.distributed.optimizers import build_optimizer, set_learning_rates
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.distributed.sharding import shard
from mtmh.training import task as task_module
from mtmh.training.model_builder import build_model
from mtmh.training.progress import quiet_libraries
from mtmh.training.shared_negatives import with_draws
from mtmh.training.task import TrainTask, items_per_step

ENGINES = ("mtmh", "plain")
PARTS = (  # of a step, in their order; what waits for the other ranks counts where it waits
    "data wait",
    "ids to the tables",
    "lookup, embeddings back",
    "towers",
    "negatives of all ranks",
    "loss",  # both losses of all heads, and their gradients: the chunked pass makes them at once
    "backward: loss, towers",  # with the negatives' gradients to the ranks they came from
    "backward: tables and their update",  # with the rows' gradients to the tables' ranks, and the wait for DDP
    "dense optimizer",  # and zero_grad
)
WARM_UP = 3
MASKED = -1e30


def main() -> None:
    """Runs all cases and prints the tables."""
    args = parse_args()
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = write_recipe(root, args)
        dataset = build_dataset(root / "dataset", args.items, args.users, mean_length=60.0, num_floats=8)
        build_content(root / "content", dataset)
        runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
        parts: dict[int, dict[str, float]] = {}
        for repeat in range(args.repeats):
            for world_size in args.ranks:
                for engine in args.engines:
                    runs.setdefault((engine, world_size), []).append(launch(engine, world_size, recipe, args))
                    write_report(args, runs, parts)
                if repeat == 0:
                    parts[world_size] = launch("parts", world_size, recipe, args)
                    write_report(args, runs, parts)
    print_tables(summaries(runs), parts)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=6144)
    parser.add_argument("--uniform", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_recipe(root: Path, args: argparse.Namespace) -> Path:
    """The recipe of all cases."""
    tree = {
        "name": "benchmark",
        "paths": {"root": str(root)},
        "data": {"source": "synthetic"},
        "model": {"embedding_dim": args.dim},
        "loss": {"num_uniform_negatives": args.uniform},
        "training": {"batch_size": args.batch_size, "epochs": 100},
    }
    path = root / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    load_config(path)  # says at once what is wrong with it
    return path


def launch(engine: str, world_size: int, recipe: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run in processes of its own; with one rank all cores are its threads, with more each rank has its share."""
    threads = max(1, (os.cpu_count() or 1) // world_size)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    worker = ["-m", "benchmarks.training", "--worker", engine, "--recipe", str(recipe), "--steps", str(args.steps)]
    done = subprocess.run(
        [sys.executable, *torchrun, *worker],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{engine} on {world_size} rank(s) failed; this was its last output:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{engine} on {world_size}: {json.dumps(result)}", file=sys.stderr)
    return result


def work(args: argparse.Namespace) -> None:
    """One rank of one run; rank 0 prints the result as JSON."""
    config = load_config(args.recipe)
    with quiet_libraries(), join_ranks("cpu") as ranks:
        torch.manual_seed(config.seed)
        result = {"mtmh": run_mtmh, "plain": run_plain, "parts": run_parts}[args.worker](config, ranks, args.steps)
        if ranks.is_first:
            print(json.dumps(result))


def timed(step: Callable[[], Tensor], num_steps: int, batch_size: int) -> dict[str, float]:
    """Pairs a second over ``num_steps`` calls after the warm-up; CPU seconds and memory of all ranks."""
    for _ in range(WARM_UP):
        step()
    dist.barrier()
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(num_steps):
        losses = step()
    dist.barrier()
    seconds = time.perf_counter() - began
    used = torch.tensor([time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6])
    total = losses.clone()
    dist.all_reduce(used)
    dist.all_reduce(total)
    return {
        "pairs_per_second": num_steps * batch_size / seconds,
        "cpu_seconds_per_step": used[0].item() / num_steps,
        "peak_rss_gb": used[1].item(),
        "engagement_loss": total[0, 0].item(),
    }


# --- mtmh


def build(config: Config, ranks: Ranks) -> tuple[Any, Any, Iterator[PairBatch]]:
    """Sharded model, optimizer and batches, as in the trainer."""
    loader = open_loader(config, ranks)
    model = build_model(config.model, features_of(config), ranks.device, tables=torch.device("meta"))
    sharded, _ = shard(
        TrainTask(model, config.loss, config.seed),
        config.sharding,
        ranks,
        items_per_step=items_per_step(config.training, config.loss),
        training=config.training,
        seed=config.seed,
    )
    return sharded, build_optimizer(sharded, config.training), loader.batches()


def run_mtmh(config: Config, ranks: Ranks, num_steps: int) -> dict[str, float]:
    """The engine as ``train`` runs it, without checkpoints and log."""
    sharded, optimizer, batches = build(config, ranks)
    pipeline = TrainPipelineSparseDist(sharded, optimizer, ranks.device, execute_all_batches=True)
    feed = with_draws(batches, config.loss, config.seed)

    def step() -> Tensor:
        set_learning_rates(optimizer, config.training, 0)
        losses: Tensor = pipeline.progress(feed)
        return losses

    return timed(step, num_steps, config.training.global_batch)


class Stopwatch:
    """Charges the time since the last mark to a part of the step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """``part`` ends here."""
        now = time.perf_counter()
        self.spent[part] += now - self.last
        self.last = now

    def after(self, part: str) -> Callable[..., None]:
        """A hook at whose call ``part`` ends."""
        return lambda *_: self.mark(part)


def watch_forward(sharded: nn.Module, watch: Stopwatch) -> None:
    """Ends a part of the step where the parts of the forward, and the backward of the tables, begin."""
    task = next(module for module in sharded.modules() if isinstance(module, TrainTask))
    sparse: Any = task.model.sparse_nn
    module: Any = task_module
    compute, share = sparse.ebc.compute_and_output_dist, module.share_negatives

    def ids_arrived(*args: Any, **kwargs: Any) -> Any:
        watch.mark("ids to the tables")
        return compute(*args, **kwargs)

    def shared(*args: Any) -> Any:
        negatives = share(*args)
        watch.mark("negatives of all ranks")
        return negatives

    def embedded(_: nn.Module, __: Any, pooled: Tensor) -> None:
        watch.mark("lookup, embeddings back")
        pooled.register_hook(watch.after("backward: loss, towers"))

    sparse.ebc.compute_and_output_dist = ids_arrived
    sparse.register_forward_hook(embedded)
    task.loss.register_forward_pre_hook(watch.after("towers"))
    module.share_negatives = shared  # of this process alone


def run_parts(config: Config, ranks: Ranks, num_steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step, one after another without the pipeline's overlap; mean over the ranks."""
    sharded, optimizer, batches = build(config, ranks)
    feed = with_draws(batches, config.loss, config.seed)
    watch = Stopwatch()
    watch_forward(sharded, watch)
    for number in range(WARM_UP + num_steps):
        if number == WARM_UP:
            watch.spent = dict.fromkeys(PARTS, 0.0)
        batch = next(feed)
        watch.mark("data wait")
        set_learning_rates(optimizer, config.training, 0)
        optimizer.zero_grad()
        watch.mark("dense optimizer")
        loss, _ = sharded(batch)
        watch.mark("loss")
        loss.sum().backward()
        watch.mark("backward: tables and their update")
        optimizer.step()
        watch.mark("dense optimizer")
    spent = torch.tensor(list(watch.spent.values()), dtype=torch.float64)
    dist.all_reduce(spent)
    return dict(zip(PARTS, (spent / ranks.world_size / num_steps * 1e3).tolist(), strict=True))


def features_of(config: Config) -> FeatureSchema:
    """The inputs of the towers."""
    return open_dataset(config.dataset_dir).summary.features


# --- plain


class PlainModel(nn.Module):
    """The same towers and heads over ``nn.EmbeddingBag``."""

    def __init__(self, config: Config, features: FeatureSchema) -> None:
        super().__init__()
        model = config.model
        tables = [
            nn.EmbeddingBag(feature.num_rows, model.embedding_dim, mode="mean", sparse=True)
            for feature in features.id_features
        ]
        for table in tables:
            nn.init.uniform_(table.weight, -0.5 / model.embedding_dim**0.5, 0.5 / model.embedding_dim**0.5)
        self.tables = nn.ModuleList(tables)
        self.dense = DenseNN(len(features.float_features), model.dense_hidden, model.dense_dim)
        width = len(self.tables) * model.embedding_dim + model.dense_dim
        self.heads = nn.ModuleList(
            HeadMLP(width, model.head_hidden, model.head_dim, model.normalize) for _ in model.heads
        )

    def forward(self, ids: list[tuple[Tensor, Tensor]], dense: Tensor) -> list[Tensor]:
        """Embeddings of B items under each head, [B, D]."""
        pooled = [table(values, offsets) for table, (values, offsets) in zip(self.tables, ids, strict=True)]
        together = torch.cat([*pooled, self.dense(dense)], dim=1)
        return [head(together) for head in self.heads]


class PlainBatch:
    """Triggers, candidates and uniform negatives, one after another, each with its own features."""

    def __init__(self, batch: PairBatch) -> None:
        rows = torch.cat([batch.trigger, batch.positive, batch.uniform])
        self.num_pairs = len(batch.trigger)
        self.dense = batch.dense[rows]
        self.ids = []
        for key in batch.sparse.keys():  # noqa: SIM118
            feature = batch.sparse[key]
            lengths, starts = feature.lengths()[rows], feature.offsets()[:-1][rows]
            ends = lengths.cumsum(0)
            place = torch.repeat_interleave(starts - (ends - lengths), lengths) + torch.arange(int(ends[-1]))
            self.ids.append((feature.values()[place], ends - lengths))
        self.weight = batch.weight
        self.content = batch.content[rows]
        self.log_q = gathered(batch.log_q[rows[self.num_pairs :]])
        self.negative_content = gathered(self.content[self.num_pairs :])
        self.total_weight = gathered(batch.weight).sum()
        items = batch.item_index[rows]
        own = torch.stack([items[: self.num_pairs], items[self.num_pairs : 2 * self.num_pairs]], dim=1).view(-1)
        pair = torch.arange(self.num_pairs + 1)
        negative_items = gathered(items[self.num_pairs :])
        hits = [
            accidental_hits(batch.history_values, batch.history_offsets, batch.history_row, negative_items),
            accidental_hits(own, 2 * pair, pair[:-1], negative_items),
        ]
        self.hits = (torch.cat([rows for rows, _ in hits]), torch.cat([columns for _, columns in hits]))


def gathered(tensor: Tensor) -> Tensor:
    """Rows of all ranks, with gradients."""
    return tensor if dist.get_world_size() == 1 else torch.cat(all_gather(tensor))


def plain_loss(embeddings: list[Tensor], batch: PlainBatch, config: Config) -> tuple[Tensor, Tensor]:
    """InfoNCE and KL over all negatives as one writes them first."""
    num_pairs, loss = batch.num_pairs, config.loss

    def log_softmax(rows: Tensor, negative: Tensor, temperature: float) -> Tensor:
        trigger, positive = rows[:num_pairs], rows[num_pairs : 2 * num_pairs]
        logits = trigger @ negative.T / temperature - (batch.log_q + torch.tensor(len(negative)).log())
        logits = logits.index_put(batch.hits, torch.tensor(MASKED))
        own = (trigger * positive).sum(dim=1, keepdim=True) / temperature
        return functional.log_softmax(torch.cat([own, logits], dim=1), dim=1)

    with torch.no_grad():
        log_target = log_softmax(batch.content, batch.negative_content, loss.teacher_temperature)
    total, reported = torch.zeros(()), []
    for head, rows in zip(config.model.heads, embeddings, strict=True):
        log_p = log_softmax(rows, gathered(rows[num_pairs:]), loss.temperature)
        engagement = -(batch.weight * log_p[:, 0]).sum() / batch.total_weight
        total = total + head.engagement_weight * engagement
        if head.relevance_weight:
            divergence = functional.kl_div(log_p, log_target, reduction="none", log_target=True).sum(dim=1)
            total = total + head.relevance_weight * (batch.weight * divergence).sum() / batch.total_weight
        reported.append(engagement.detach())
    return total * dist.get_world_size(), torch.stack(reported)[None]


def run_plain(config: Config, ranks: Ranks, num_steps: int) -> dict[str, float]:
    """The plain training loop."""
    batches = [PlainBatch(batch) for batch in islice(open_loader(config, ranks).iterate(), WARM_UP + num_steps)]
    plain: nn.Module = PlainModel(config, features_of(config))
    named = list(plain.named_parameters())
    tables = [parameter for name, parameter in named if name.startswith("tables.")]
    towers = [parameter for name, parameter in named if not name.startswith("tables.")]
    model = plain if ranks.world_size == 1 else nn.parallel.DistributedDataParallel(plain)
    training = config.training
    optimizers = [
        torch.optim.Adagrad(tables, lr=training.learning_rate),
        torch.optim.Adagrad(towers, lr=training.dense_learning_rate),
    ]
    feed = iter(batches)

    def step() -> Tensor:
        batch = next(feed)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, reported = plain_loss(model(batch.ids, batch.dense), batch, config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return reported

    return timed(step, num_steps, training.global_batch)


# --- report


def summary(engine: str, world_size: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread over the repeats."""
    rates = [result["pairs_per_second"] for result in results]
    return {
        "engine": engine,
        "ranks": world_size,
        "pairs_per_second": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "cpu_seconds_per_step": statistics.median(result["cpu_seconds_per_step"] for result in results),
        "peak_rss_gb": statistics.median(result["peak_rss_gb"] for result in results),
        "engagement_loss": results[0]["engagement_loss"],
    }


def summaries(runs: dict[tuple[str, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each engine and number of ranks."""
    return [summary(engine, world_size, results) for (engine, world_size), results in runs.items()]


def write_report(
    args: argparse.Namespace, runs: dict[tuple[str, int], list[dict[str, Any]]], parts: dict[int, dict[str, float]]
) -> None:
    """The figures so far, as JSON."""
    if args.out is not None:
        rows = summaries(runs)
        report = report_head(args) | {"results": rows, "against_plain": against_plain(rows), "parts_ms": parts}
        write_atomically(args.out, json.dumps(report, indent=2) + "\n")


def against_plain(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """How many times as fast as plain PyTorch, by number of ranks; none where only one of the two was run."""
    found = []
    for world_size in sorted({row["ranks"] for row in rows}):
        by_engine = {row["engine"]: row for row in rows if row["ranks"] == world_size}
        if by_engine.keys() == set(ENGINES):
            wall = by_engine["mtmh"]["pairs_per_second"] / by_engine["plain"]["pairs_per_second"]
            cpu = by_engine["plain"]["cpu_seconds_per_step"] / by_engine["mtmh"]["cpu_seconds_per_step"]
            found.append({"ranks": world_size, "wall_ratio": wall, "cpu_ratio": cpu})
    return found


def print_tables(rows: list[dict[str, Any]], parts: dict[int, dict[str, float]]) -> None:
    """For people."""
    print(f"{'engine':<8}{'ranks':>6}{'pairs/s':>10}{'min':>9}{'max':>9}{'CPU s/step':>12}{'peak GB':>9}{'loss':>8}")
    for row in rows:
        print(
            f"{row['engine']:<8}{row['ranks']:>6}{row['pairs_per_second']:>10,.0f}{row['min']:>9,.0f}{row['max']:>9,.0f}"
            f"{row['cpu_seconds_per_step']:>12.2f}{row['peak_rss_gb']:>9.2f}{row['engagement_loss']:>8.3f}"
        )
    for found in against_plain(rows):
        print(
            f"\n{found['ranks']} rank(s): mtmh is {found['wall_ratio']:.2f} times as fast as plain;"
            f" {found['cpu_ratio']:.2f} times by CPU time"
        )
    print(f"\n{'a step of mtmh, ms (share)':<36}" + "".join(f"{f'{count} rank(s)':>18}" for count in parts))
    totals = {world_size: sum(spent.values()) for world_size, spent in parts.items()}
    for part in PARTS:
        cells = (f"{spent[part]:,.1f} ({spent[part] / totals[count]:.1%})" for count, spent in parts.items())
        print(f"{part:<36}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'all':<36}" + "".join(f"{f'{total:,.1f} (100.0%)':>18}" for total in totals.values()))


if __name__ == "__main__":
    main()
