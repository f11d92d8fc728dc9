"""Constraints and pipelines of tables that only a GPU can train, as far as they can be told without one."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from mtmh.modules import SparseNN, build_ebc
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from mtmh.config import ShardingConfig
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.distributed.sharding import shard, table_constraints, tables_of, train_pipeline

CACHED = ShardingConfig(uvm_caching={"item_id": 0.1})


def model() -> SparseNN:
    dims = {"item_id": 8, "brand": 8}
    return SparseNN(build_ebc({"item_id": 100, "brand": 10}, dims, device="meta"), [*dims])


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", None])
def test_rows_of_a_cached_table_may_come_ahead_where_it_trains(optimizer: Literal["rowwise_adagrad"] | None) -> None:
    on_gpu = Ranks(0, 1, 1, torch.device("cuda", 0))
    found = table_constraints(tables_of(model()), CACHED, on_gpu, optimizer=optimizer, buckets={})
    cache = found["item_id"].cache_params
    assert cache is not None
    assert (cache.load_factor, cache.prefetch_pipeline) == (0.1, optimizer is not None)
    assert found["brand"].cache_params is None


@pytest.mark.parametrize(
    ("sharding", "kind"),
    [(ShardingConfig(), TrainPipelineSparseDist), (CACHED, PrefetchTrainPipelineSparseDist)],
    ids=["on the GPU", "in host memory"],
)
def test_the_pipeline_fetches_ahead_where_tables_lie_in_host_memory(sharding: ShardingConfig, kind: type) -> None:
    with join_ranks("cpu") as ranks:
        sharded, _ = shard(model(), ShardingConfig(), ranks, items_per_step=8)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        assert type(train_pipeline(sharded, optimizer, sharding, ranks.device)) is kind
