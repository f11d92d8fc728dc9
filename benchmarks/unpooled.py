"""A single-valued feature as a sequence collection beside a pooled one: equal results, and what travels a step.

A table that is cut by rows gives pooled embeddings as sums over ranks: each rank sends a row for every item of all
ranks, nearly all of them zeros. As a sequence, only the rows that were asked for travel. Both ways train the
same table on the same ids, step by step in turn, on 1 and 2 gloo ranks.

    OMP_NUM_THREADS=1 python -m benchmarks.unpooled --out unpooled.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mtmh.modules.sparse_nn import build_ebc
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.report import report_head
from mtmh.artifacts import write_atomically
from mtmh.distributed.sharding import TableSharder, local_shards

WAYS = ("pooled", "sequence")
WARM_UP = 3


class Lookup(nn.Module):
    """Rows of one id an item, [U, D]."""

    def __init__(self, way: str, rows: int, dim: int) -> None:
        super().__init__()
        self.tables: nn.Module = build_ebc({"item_id": rows}, {"item_id": dim}, device="meta")
        if way == "sequence":
            (table,) = cast(EmbeddingBagCollection, self.tables).embedding_bag_configs()
            config = EmbeddingConfig(
                name="item_id", feature_names=["item_id"], num_embeddings=rows, embedding_dim=table.embedding_dim
            )
            self.tables = EmbeddingCollection([config], device=torch.device("meta"))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Rows in the order of the ids."""
        found = self.tables(features)
        if isinstance(self.tables, ShardedEmbeddingBagCollection):
            return cast(Tensor, KeyedTensor.regroup([found], [["item_id"]])[0])
        return cast(Tensor, found["item_id"].values())


def sharded_lookup(way: str, args: argparse.Namespace) -> DistributedModelParallel:
    """The table cut by rows, filled with the same values either way, updated in the backward."""
    lookup = Lookup(way, args.rows, args.dim)
    _apply_optimizer_in_backward(RowWiseAdagrad, lookup.parameters(), {"lr": 0.05, "eps": 1e-8})
    sharders = [TableSharder(), EmbeddingCollectionSharder()]
    constraints = {"item_id": ParameterConstraints([ShardingType.ROW_WISE.value], compute_kernels=["fused"])}
    topology = Topology(dist.get_world_size(), "cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(
        lookup, sharders, dist.group.WORLD
    )
    sharded = DistributedModelParallel(lookup, device=torch.device("cpu"), plan=plan, sharders=sharders)
    values = torch.randn(args.rows, args.dim, generator=torch.Generator().manual_seed(0))
    for (first, _), piece in (pair for value in sharded.state_dict().values() for pair in local_shards(value)):
        piece.copy_(values[first : first + len(piece)])
    return sharded


def work(rank: int, ranks: int, args: argparse.Namespace, folder: str) -> None:
    """One rank; the first writes what it found."""
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)
    lookups = {way: sharded_lookup(way, args) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    ids_of = torch.Generator().manual_seed(1 + rank)
    difference = 0.0
    for step in range(WARM_UP + args.steps):
        ids = torch.randint(0, args.rows, (args.items,), generator=ids_of)
        features = KeyedJaggedTensor(["item_id"], ids, lengths=torch.ones(args.items, dtype=torch.int64))
        gradient = torch.randn(args.items, args.dim, generator=ids_of)
        found = {}
        for way in WAYS if step % 2 else reversed(WAYS):
            dist.barrier()
            began = time.perf_counter()
            found[way] = lookups[way](features)
            (found[way] * gradient).sum().backward()
            times[way].append(1000 * (time.perf_counter() - began))
        difference = max(difference, float((found["pooled"] - found["sequence"]).detach().abs().max()))
    tables = [
        [piece for value in lookups[way].state_dict().values() for _, piece in local_shards(value)] for way in WAYS
    ]
    drift = max(float((a - b).abs().max()) for a, b in zip(*tables, strict=True))
    if rank == 0:
        per_row = 4 * args.dim * args.items
        row = {"ranks": ranks, "largest difference of a row": difference, "of the table afterwards": drift}
        row |= {f"{way}: ms": statistics.median(times[way][WARM_UP:]) for way in WAYS}
        # Sent each way to others by one rank, with ids that lie anywhere: by arithmetic.
        row |= {"pooled: MB": per_row * (ranks - 1) / 1e6, "sequence: MB": per_row * (ranks - 1) / ranks / 1e6}
        Path(folder, f"result-{ranks}.json").write_text(json.dumps(row))
    dist.destroy_process_group()


def main() -> None:
    """Runs both ways on one and on two ranks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--items", type=int, default=5120, help="of a rank and step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            mp.spawn(work, args=(ranks, args, folder), nprocs=ranks)
            rows.append(json.loads(Path(folder, f"result-{ranks}.json").read_text()))
            print("  ".join(f"{name} {value:,.6g}" for name, value in rows[-1].items()))
    if args.out is not None:
        write_atomically(args.out, json.dumps(report_head(args) | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
