"""Tables of raw ids on 1, 2 and 3 real gloo ranks: the same rows for the same ids, full and evicting."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_run import read_whole, state_of, tiny_config, write_inputs

from mtmh.config import Config, decisive
from mtmh.data.dataset import open_dataset
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import Ranks, join_ranks, on_first
from mtmh.distributed.sharding import buckets_of, shard, table_constraints, tables_of
from mtmh.distributed.state_files import write_state
from mtmh.tower.embed import embed_catalogue
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.model_builder import build_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.task import TrainTask, items_per_step
from mtmh.training.trainer import train

STEPS = 5
EVICTIONS = {
    "lru": {"eviction": "lru"},
    "ttl": {"eviction": "ttl", "ttl_steps": 1},
}


def id_config(root: Path, eviction: str, name: str, steps: int = STEPS) -> Config:
    """A table of 96 rows for the 180 items of the training period."""
    table = {"rows": 96, "buckets": 12, "max_probe": 4} | EVICTIONS[eviction]
    return tiny_config(root, name, model={"id_tables": {"item_id": table}}, training={"max_steps": steps})


def run_everything(rank: int, world_size: int, root: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    if world_size > 1:
        torch.set_num_threads(1)
        store = f"file://{root}/store-{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    with join_ranks("cpu") as ranks:
        for eviction in EVICTIONS if world_size < 3 else ():
            train(id_config(root, eviction, f"{eviction}-{world_size}"))
        if world_size < 3:  # the model of 2 ranks, sharded and whole
            embed_catalogue(id_config(root, "lru", "lru-2"), root / f"embeddings-{world_size}")
        if world_size == 2:
            train(id_config(root, "lru", "handover-2", steps=3))
        else:
            config = id_config(root, "lru", f"handover-{world_size}")
            on_first(ranks, lambda: shutil.copytree(root / "handover-2", config.model_dir("checkpoints").parent))
            resave(config, root / f"resaved-{world_size}", ranks)
            train(config)
    if world_size > 1:
        dist.destroy_process_group()


def resave(config: Config, folder: Path, ranks: Ranks) -> None:
    """Restores the checkpoint of 2 ranks and writes the state again."""
    dataset = open_dataset(config.dataset_dir)
    model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
    sharded, _ = shard(
        TrainTask(model, config.loss),
        config.sharding,
        ranks,
        items_per_step=items_per_step(config.training, config.loss),
        training=config.training,
        seed=config.seed,
    )
    optimizer = build_optimizer(sharded, config.training)
    root = config.model_dir("checkpoints")
    checkpoints = Checkpoints(
        root, RunRecord.of_dataset(config.model_dump(mode="json"), decisive(config, "checkpoint"), dataset, {}), ranks
    )
    found = latest_checkpoint(root)
    assert checkpoints.restore(found, training_state(sharded, optimizer)) == 3
    write_state(training_state(sharded, optimizer), folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("id-ranks")
    write_inputs(root)
    run: Callable[[int, int, Path], None] = run_everything
    for world_size in (2, 3):
        mp.start_processes(run, args=(world_size, root), start_method="forkserver", nprocs=world_size)
    run_everything(0, 1, root)
    return root


def assert_same_tables(first: Config, other: Config) -> None:
    state, expected = (state_of(latest_checkpoint(config.model_dir("checkpoints"))) for config in (first, other))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(state[name], value, rtol=2e-4, atol=2e-5, msg=name)
        else:
            assert torch.equal(state[name], value), name


def assert_same_log(first: Config, other: Config) -> None:
    lines, expected = (
        [json.loads(line) for line in (config.model_dir("checkpoints") / "metrics.jsonl").read_text().splitlines()]
        for config in (first, other)
    )
    for line, wanted in zip(lines, expected, strict=True):
        found = line["id_tables"]
        # Ranks look up an item each, so look-ups and collisions are counted once for each rank that has it.
        for key in ("item_id/inserts", "item_id/evictions", "item_id/occupancy"):
            assert found[key] == wanted["id_tables"][key], (line["step"], key)
        for head, losses in wanted["loss"].items():
            assert line["loss"][head] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_rows_weights_and_losses_do_not_depend_on_the_number_of_ranks(root: Path, eviction: str) -> None:
    alone, two = (id_config(root, eviction, f"{eviction}-{ranks}") for ranks in (1, 2))
    assert_same_tables(two, alone)
    assert_same_log(two, alone)


def test_the_tables_were_full(root: Path) -> None:
    taken = {}
    for eviction in EVICTIONS:
        state = state_of(latest_checkpoint(id_config(root, eviction, f"{eviction}-1").model_dir("checkpoints")))
        (name,) = (name for name in state if name.endswith("_hash_zch_identities"))
        taken[eviction] = state[name]
    assert all(int((ids >= 0).sum()) > 80 for ids in taken.values())
    assert not torch.equal(taken["lru"], taken["ttl"])


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_checkpoint_of_2_ranks_restores_exactly_on_other_numbers_and_goes_on(root: Path, world_size: int) -> None:
    written = state_of(latest_checkpoint(root / "handover-2" / "checkpoints"))
    restored = read_whole(root / f"resaved-{world_size}")
    assert restored.keys() == written.keys()
    assert any(name.endswith("_hash_zch_metadata") for name in written)
    for name, value in written.items():
        assert torch.equal(restored[name], value), name
    assert_same_tables(id_config(root, "lru", f"handover-{world_size}"), id_config(root, "lru", "lru-1"))


def test_a_sharded_model_embeds_as_a_whole_one(root: Path) -> None:
    for head in ("engagement", "relevance"):
        whole, sharded = (np.load(root / f"embeddings-{ranks}" / f"{head}.npy") for ranks in (1, 2))
        np.testing.assert_allclose(sharded, whole, atol=1e-6)


def test_ranks_that_do_not_divide_the_buckets_are_refused(root: Path) -> None:
    config = id_config(root, "lru", "refused")
    features = open_dataset(config.dataset_dir).summary.features
    model = build_model(config.model, features, torch.device("meta"))
    ranks, buckets = Ranks(0, 5, 5, torch.device("cpu")), buckets_of(model)
    with pytest.raises(ValueError, match=r"5 ranks cannot share the 12 buckets of table item_id"):
        table_constraints(tables_of(model), config.sharding, ranks, optimizer="adagrad", buckets=buckets)
