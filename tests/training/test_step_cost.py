"""Memory of a step by calculation against what a step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_dataset import make_config
from torch.distributed._tools.mem_tracker import MemTracker
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.config import Config
from mtmh.data.batch import PairBatch
from mtmh.data.schema import FeatureSchema, IdFeature
from mtmh.distributed.hardware import Cluster
from mtmh.distributed.ranks import join_ranks
from mtmh.specs import Head
from mtmh.training.model_builder import build_model
from mtmh.training.shared_negatives import with_draws
from mtmh.training.step_cost import StepCost, step_cost
from mtmh.training.task import GlobalLoss

PAIRS, UNIFORM, DIM, CONTENT = 512, 4096, 64, 48
ONE = Cluster("cpu", num_hosts=1, ranks_per_host=1)


def config_of(root: Path, relevance: float, batch_size: int = PAIRS, **loss: Any) -> Config:
    heads = [{"name": "engagement"}, {"name": "relevance", "relevance_weight": relevance}]
    return make_config(
        root,
        model={"heads": heads, "head_dim": DIM, "head_hidden": [32], "embedding_dim": 16, "content_dim": 8},
        loss={"num_uniform_negatives": UNIFORM, "mask_history": False, "log_q": "none", "teacher_dim": 0} | loss,
        training={"batch_size": batch_size, "num_shards": 1},
    )


def cost_of(config: Config, cluster: Cluster) -> StepCost:
    schema = FeatureSchema(
        id_features=[IdFeature(name="item_id", num_rows=100)], float_features=["price"], content_dim=CONTENT
    )
    model = build_model(config.model, schema, torch.device("meta"))
    return step_cost(config.model, config.loss, config.training, schema, CONTENT, model, cluster)


def batch_of(content: int) -> PairBatch:
    """All items differ."""
    num_items = 2 * PAIRS + UNIFORM
    items = torch.arange(num_items)
    return PairBatch(
        sparse=KeyedJaggedTensor(["item_id"], items, lengths=torch.ones_like(items)),
        dense=torch.zeros(num_items, 1),
        item_index=items,
        log_q=torch.zeros(num_items),
        content=torch.nn.functional.normalize(torch.randn(num_items, content), dim=1),
        trigger=items[:PAIRS].clone(),
        positive=items[PAIRS : 2 * PAIRS].clone(),
        uniform=items[2 * PAIRS :].clone(),
        step=0,
        epoch=0,
        weight=torch.ones(PAIRS),
        history_values=torch.empty(0, dtype=torch.int64),
        history_offsets=torch.zeros(2, dtype=torch.int64),
        history_row=torch.zeros(PAIRS, dtype=torch.int64),
    )


@pytest.mark.parametrize("relevance", [0.0, 0.5])
def test_negatives_and_loss_take_what_is_calculated(tmp_path: Path, relevance: float) -> None:
    config = config_of(tmp_path, relevance)
    cost = cost_of(config, ONE)
    with join_ranks("cpu"):
        batch = next(with_draws(iter([batch_of(CONTENT if relevance else 0)]), config.loss))
    embeddings = {head.name: torch.randn(len(batch.item_index), DIM, requires_grad=True) for head in config.model.heads}
    heads = tuple(Head(**head.model_dump()) for head in config.model.heads)
    with join_ranks("cpu"):
        loss = GlobalLoss(heads, config.loss)
        with MemTracker() as tracker:
            loss(embeddings, batch)[0].backward()
    taken = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert 0.9 * taken < cost.negatives + cost.loss < 1.6 * taken


def test_a_step_grows_with_what_it_holds(tmp_path: Path) -> None:
    one = cost_of(config_of(tmp_path, 0.5), ONE)
    more = cost_of(config_of(tmp_path, 0.5, num_uniform_negatives=10 * UNIFORM), ONE)
    assert more.negatives > 5 * one.negatives
    assert more.loss_ms > 5 * one.loss_ms
    many = Cluster("a100-80gb", num_hosts=2, ranks_per_host=8)
    whole = cost_of(config_of(tmp_path, 0.5, batch_size=16 * PAIRS), many)
    assert whole.negatives > one.negatives, "those of all ranks, on each"
    assert one.exchange_ms == 0 < whole.exchange_ms
    fewer = cost_of(config_of(tmp_path, 0.5, batch_size=16 * PAIRS, in_batch_share=0.25), many)
    assert fewer.negatives < whole.negatives
    narrow = cost_of(config_of(tmp_path, 0.5, teacher_dim=8), ONE)
    assert narrow.loss < one.loss
    assert cost_of(config_of(tmp_path, 0.0), ONE).loss < narrow.loss
    assert whole.memory == whole.batch + whole.towers + whole.activations + whole.negatives + whole.loss
    assert all(time > 0 for time in (whole.towers_ms, whole.loss_ms, whole.loader_ms))
