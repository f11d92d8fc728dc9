"""Trains the click model on every rank of torchrun, with our own planner, sharder and optimizers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from click_model import ClickModel
from mtmh.modules import MTMH, DenseNN, Head, SparseNN, build_ebc
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

import mtmh
from mtmh.training.model_builder import load_weights, model_of

NUM_USERS, NUM_COUNTRIES = 5_000, 40
BATCH = 64  # clicks of one rank
META = torch.device("meta")  # tables wait here for the sharder, which allocates each rank's part


def main() -> None:
    """Builds, shards, loads, trains, and leaves a report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, help="of `mtmh train`; without it the tower starts untrained")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    arguments = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    torch.manual_seed(7)

    checkpoint = arguments.checkpoint
    tower = model_of(checkpoint, device, tables=META) if checkpoint else new_tower(device)
    store = ItemStore(tower, device)
    model = ClickModel(tower, "engagement", NUM_USERS, NUM_COUNTRIES, dim=16)
    model.user_mlp.to(device)
    sharded, optimizer = shard(model, device)
    if checkpoint:
        load_weights(sharded.module.item_tower, checkpoint)  # all ranks together, each its shards

    shown = store.draw(100, torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeddings = sharded.module.item_tower(*shown)

    rng = torch.Generator().manual_seed(100 + rank)
    users = draw_ids({"user_id": NUM_USERS, "country": NUM_COUNTRIES}, BATCH, rng).to(device)
    items, item_floats = store.draw(BATCH, rng)
    clicked = (torch.rand(BATCH, generator=rng) < 0.3).float().to(device)
    before, losses = held(sharded), []
    for _ in range(arguments.steps):  # one batch again and again: this shows the plumbing, not a result
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(sharded(users, items, item_floats), clicked)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = held(sharded)
    part = {"losses": losses, "changed": {name: not torch.equal(before[name], after[name]) for name in before}}
    parts: list[dict[str, object] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    if rank == 0:
        plan = {name: p.sharding_type for tables in sharded.plan.plan.values() for name, p in tables.items()}
        arguments.out.mkdir(parents=True, exist_ok=True)
        np.savez(arguments.out / "embeddings.npz", **{head: rows.cpu() for head, rows in embeddings.items()})
        report = {"mtmh": mtmh.__file__, "plan": plan, "ranks": parts}
        (arguments.out / "report.json").write_text(json.dumps(report, indent=2))
        print(f"tables: {plan}\nloss of rank 0 of {len(parts)}: {losses[0]:.4f} -> {losses[-1]:.4f}")
    dist.destroy_process_group()


def new_tower(device: torch.device) -> MTMH:
    """An untrained item tower for our catalogue."""
    ebc = build_ebc({"item_id": 2_000, "brand": 50}, {"item_id": 32, "brand": 8}, device=META)
    with device:
        dense_nn = DenseNN(num_features=3, hidden=[16], out_dim=8)
        heads = [Head("engagement"), Head("relevance", relevance_weight=0.5)]
        return MTMH(SparseNN(ebc, ["item_id", "brand"]), dense_nn, heads, head_hidden=[64], head_dim=32)


def shard(model: ClickModel, device: torch.device) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Spreads all tables, ours and the tower's, by one plan; the tables' optimizer runs in the backward pass."""
    tables = [t for m in model.modules() if isinstance(m, EmbeddingBagCollection) for t in m.embedding_bag_configs()]
    constraints = {
        table.name: ParameterConstraints(
            sharding_types=["column_wise" if table.name == "item_id" else "table_wise"],
            compute_kernels=["fused"],
            min_partition=table.embedding_dim // 2,
        )
        for table in tables
    }
    apply_optimizer_in_backward(RowWiseAdagrad, model.user_ebc.parameters(), {"lr": 0.1})
    apply_optimizer_in_backward(RowWiseAdagrad, model.item_tower.sparse_nn.ebc.parameters(), {"lr": 0.02})
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        constraints=constraints, storage_reservation=FixedPercentageStorageReservation(0.15)
    )
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    rest = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    adagrad = KeyedOptimizerWrapper(rest, lambda parameters: torch.optim.Adagrad(parameters, lr=0.02))
    return sharded, CombinedOptimizer([sharded.fused_optimizer, adagrad])


class ItemStore:
    """Stands for the service that knows the items' features; here they are drawn.

    Args:
        tower: says which features, and the rows of each table. Ask before sharding.
        device: where the features go.
    """

    def __init__(self, tower: MTMH, device: torch.device) -> None:
        rows = {table.name: table.num_embeddings for table in tower.sparse_nn.ebc.embedding_bag_configs()}
        self.rows = {key: rows[key] for key in tower.sparse_nn.keys}
        self.num_floats = tower.dense_nn.num_features
        self.device = device

    def draw(self, count: int, rng: torch.Generator) -> tuple[KeyedJaggedTensor, Tensor]:
        """Features of ``count`` items: one id a feature, and floats [count, F]."""
        ids = draw_ids(self.rows, count, rng)
        return ids.to(self.device), torch.randn(count, self.num_floats, generator=rng).to(self.device)


def draw_ids(rows: dict[str, int], count: int, rng: torch.Generator) -> KeyedJaggedTensor:
    """``count`` bags of one id for each feature, below its number of rows."""
    values = torch.cat([torch.randint(size, (count,), generator=rng) for size in rows.values()])
    return KeyedJaggedTensor(keys=list(rows), values=values, lengths=torch.ones(len(values), dtype=torch.int64))


def held(sharded: DistributedModelParallel) -> dict[str, Tensor]:
    """Copies of what this rank holds: its shards of the tables, and the replicated layers."""
    values: dict[str, Tensor] = {}
    for name, value in sharded.state_dict().items():
        shards = [s.tensor for s in value.local_shards()] if hasattr(value, "local_shards") else [value]
        if shards:
            values[name] = torch.cat([part.detach().flatten() for part in shards])  # cat copies
    return values


if __name__ == "__main__":
    main()
