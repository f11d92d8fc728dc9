"""Content embeddings in a sharded table that does not learn, against the mapped file, on 1 and 2 real gloo ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_run import losses_of, state_of, tiny_config, write_inputs

from mtmh.artifacts import write_artifact
from mtmh.config import Config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.distributed.content_table import CONTENT_ROWS
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.sharding import local_shards, shard
from mtmh.training.content import content_table, fill_content_table
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

STEPS = 4
STORED = ("mapped", "table")
CASES: dict[str, dict[str, dict[str, Any]]] = {
    # The teacher as an input of the tower, in distillation and in the weights of pairs; a validation run before.
    "everything": {
        "model": {"content_dim": 4, "heads": [{"name": "engagement"}, {"name": "relevance", "relevance_weight": 0.5}]},
        "pairs": {"sim": {"kind": "content", "threshold": 0.1, "boost": 3.0}},
        "training": {"max_epochs": 1, "max_steps": None, "epochs": "auto", "patience": 1},
    },
    "semantic": {
        "model": {"heads": [{"name": "both", "semantic_weight": 10.0}]},
        "loss": {"semantic": {"threshold": 0.4}},
        "sharding": {"default": "data_parallel"},
        "training": {"optimizer": "adagrad"},
    },
    "raw_ids": {"model": {"id_tables": {"item_id": {"rows": 480, "buckets": 12}}}},
}


def config_of(root: Path, case: str, stored: str, world_size: int) -> Config:
    sections = {**CASES[case], "content": {"storage": stored}}
    sections["training"] = {"max_steps": STEPS} | sections.get("training", {})
    return tiny_config(root, f"{case}-{stored}-{world_size}", **sections)


def run_everything(rank: int, world_size: int, root: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    if world_size > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=world_size)
    with join_ranks("cpu"):
        check_the_table(root)
        for case in CASES:
            for stored in STORED:
                train(config_of(root, case, stored, world_size))
    if world_size > 1:
        dist.destroy_process_group()


def check_the_table(root: Path) -> None:
    """Each rank has its own rows of the file and no others, in the file's type, with no state of an optimizer."""
    content = open_content(root / "content", open_dataset(root / "dataset"))
    config = config_of(root, "semantic", "table", 1)
    with join_ranks("cpu") as ranks:
        sharded, _ = shard(
            content_table(content), config.sharding, ranks, items_per_step=64, training=config.training, seed=3
        )
        fill_content_table(sharded, content)
        (weight,) = sharded.state_dict().values()
        assert tuple(weight.size()) == (200, 8)  # 6 numbers, filled up
        held = 0
        for (first, _), piece in local_shards(weight):
            assert piece.dtype == torch.float16
            assert torch.equal(piece[:, :6], torch.from_numpy(content.embeddings[first : first + len(piece)]))
            assert not piece[:, 6:].any()
            held += len(piece)
        assert held == 200 // ranks.world_size
        assert not [value for state in sharded.fused_optimizer.state_dict()["state"].values() for value in state]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("content-table")
    write_inputs(root)
    dataset = open_dataset(root / "dataset")
    whole = open_content(root / "content", dataset).embeddings
    halves = np.array(whole, np.float16)
    with write_artifact(root / "content", "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / "embeddings.npy", halves)
    run: Callable[[int, int, Path], None] = run_everything
    mp.start_processes(run, args=(2, root), start_method="forkserver", nprocs=2)
    run_everything(0, 1, root)
    return root


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_the_mapped_file(root: Path, case: str, world_size: int) -> None:
    mapped, table = (config_of(root, case, stored, world_size) for stored in STORED)
    losses, expected = losses_of(table), losses_of(mapped)
    assert len(expected) >= STEPS
    assert losses == expected
    weights, expected_weights = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (table, mapped))
    assert not any(CONTENT_ROWS in name for name in weights)
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_computes(root: Path, case: str) -> None:
    one, two = (losses_of(config_of(root, case, "table", world_size)) for world_size in (1, 2))
    assert one.keys() == two.keys()
    for step, heads in one.items():
        for head, parts in heads.items():
            assert two[step][head] == pytest.approx(parts, rel=1e-5)


def test_a_run_goes_on_with_the_other_storage(root: Path) -> None:
    config = config_of(root, "semantic", "table", 1)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": STEPS + 2})})
    mapped = longer.model_copy(update={"content": config_of(root, "semantic", "mapped", 1).content})
    train(mapped)
    assert losses_of(mapped).keys() == set(range(1, STEPS + 3))
