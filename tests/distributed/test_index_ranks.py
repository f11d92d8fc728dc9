"""Embeds a catalogue and builds its index on 1 and on 2 real gloo ranks: the same files come out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stored_index import HEADS, index_config, write_world
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import open_artifact
from mtmh.config import Config, ShardingConfig
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.index.build import build_index
from mtmh.tower import embed
from mtmh.tower.embed import embed_catalogue
from mtmh.tower.embedder import Embedder
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import train

STORAGES = ("flat", "pq")
# Recipes that could not have trained the model, or not so; it was trained row-wise with row-wise Adagrad.
RECIPES: dict[str, dict[str, Any]] = {
    "columns": {"sharding": {"default": "column_wise"}},
    "copies": {"sharding": {"default": "data_parallel"}, "training": {"optimizer": "adagrad"}},
    "mixed": {
        "sharding": {"default": "table_wise", "tables": {"tags": "column_wise"}, "communication": {"forward": "int8"}},
        "model": {"id_tables": {"item_id": {"rows": 48, "buckets": 3}}, "head_dim": 4},
    },
    "cached": {"sharding": {"uvm_caching": {"item_id": 0.1}}},
}
# 200 items: ranks with unequal numbers of steps, and a last shard that is smaller.
SHARD_ITEMS, CHUNK_ITEMS = 48, 30


def tiny(root: Path) -> Config:
    return tiny_config(root / "model", training={"max_steps": 2, "device": "cpu"}, sharding={"default": "row_wise"})


def run(rank: int, world_size: int, root: Path) -> None:
    """The work of one rank."""
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)
    embed._SHARD_ITEMS, embed._CHUNK_ITEMS = SHARD_ITEMS, CHUNK_ITEMS
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{root}/store-{world_size}", rank=rank, world_size=world_size
        )
    embed_catalogue(tiny(root), root / f"embeddings-{world_size}")
    embed_by_other_recipes(root, world_size)
    for storage in STORAGES:
        build_index(index_config(root / "world", storage), root / f"{storage}-{world_size}")
    if world_size > 1:
        with pytest.raises(ValueError, match=r"index.pq.m is 5"):
            build_index(index_config(root / "world", "pq", pq={"m": 5}), root / "refused")
        dist.destroy_process_group()


def embed_by_other_recipes(root: Path, world_size: int) -> None:
    """Their embeddings of some items, written by the first rank."""
    checkpoint = latest_checkpoint(tiny(root).model_dir("checkpoints"))
    with join_ranks("cpu") as ranks:
        for name, sections in RECIPES.items():
            sharding = tiny_config(root / "model", **sections).sharding
            embedder = Embedder.load(checkpoint, sharding, ranks, items_per_step=200)
            found = embedder.embed(open_dataset(root / "model" / "dataset").item_table, np.arange(5, 95))
            if ranks.is_first:
                np.savez(root / f"by-{name}-{world_size}.npz", **found)
        if world_size > 1:
            wrong = ShardingConfig(tables={"shop": "row_wise"})
            with pytest.raises(ValueError, match=r"sharding\.tables names no table: shop; the tables are item_id"):
                Embedder.load(checkpoint, wrong, ranks, items_per_step=200)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index-ranks")
    write_inputs(root / "model")
    train(tiny(root))
    write_world(root / "world")
    on_two: Callable[[int, int, Path], None] = run
    mp.start_processes(on_two, args=(2, root), start_method="forkserver", nprocs=2)
    before = embed._SHARD_ITEMS, embed._CHUNK_ITEMS
    run(0, 1, root)
    embed._SHARD_ITEMS, embed._CHUNK_ITEMS = before
    return root


def test_embeddings_of_a_sharded_model(root: Path) -> None:
    single, two = (open_artifact(root / f"embeddings-{world_size}", "embeddings") for world_size in (1, 2))
    assert single.summary == two.summary
    assert single.manifest.inputs == two.manifest.inputs
    for head in HEADS:
        alone, sharded = (np.load(part.path / f"{head}.npy", allow_pickle=False) for part in (single, two))
        np.testing.assert_allclose(sharded, alone, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(sharded, axis=1), 1.0, atol=1e-5)
    assert not list(root.glob("*.parts"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_sharded_model_loads_by_a_recipe_of_another_sharding(root: Path, name: str) -> None:
    alone, sharded = (np.load(root / f"by-{name}-{world_size}.npz") for world_size in (1, 2))
    whole = open_artifact(root / "embeddings-1", "embeddings")
    for head in HEADS:
        np.testing.assert_allclose(sharded[head], alone[head], atol=1e-6)
        np.testing.assert_allclose(sharded[head], np.load(whole.path / f"{head}.npy")[5:95], atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_index_files_are_the_same(root: Path, storage: str) -> None:
    alone, two = (open_artifact(root / f"{storage}-{world_size}", "index") for world_size in (1, 2))
    assert alone.manifest.files == two.manifest.files
    assert alone.summary == two.summary
    of_head = 4 if storage == "flat" else 3  # the clusters nearest to its items, too
    assert len(alone.manifest.files) == of_head * len(HEADS) + 5  # five of the items


def test_nothing_is_left_of_a_refused_build(root: Path) -> None:
    assert not (root / "refused").exists()
    assert not list(root.glob(".*"))


def test_a_killed_run_goes_on_with_another_number_of_ranks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_SHARD_ITEMS", SHARD_ITEMS)
    config = tiny(root)
    parts = root / "again.parts"
    done = open_artifact(root / "embeddings-2", "embeddings")
    checkpoint = done.manifest.inputs["checkpoint"]
    parts.mkdir()
    (parts / embed.PLAN).write_text(f'{{"dataset": "{done.manifest.inputs["dataset"]}", "checkpoint": "{checkpoint}"}}')
    for head in HEADS:
        shutil.copy(done.path / f"{head}.npy", parts)
        # What was not recorded as done is embedded again, whatever is there.
        rows = np.load(parts / f"{head}.npy", mmap_mode="r+", allow_pickle=False)
        rows[SHARD_ITEMS:] = 0
        rows.flush()
    (parts / "shard-000000.done").touch()
    artifact = embed_catalogue(config, root / "again")
    for head in HEADS:
        found, expected = (np.load(path / f"{head}.npy", allow_pickle=False) for path in (artifact.path, done.path))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not parts.exists()
